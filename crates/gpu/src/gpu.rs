//! The backend: what a model asks for, as kernels on buffers.

mod choice;
mod routed;
mod together;

use compute::{Cpu, ExpertUses, Handoffs, Matrix, Routing};
use std::path::Path;

use crate::attention::AttentionKernels;
use crate::best::Best;
use crate::buffers::Activations;
use crate::delta_net::DeltaNetKernels;
use crate::device::Device;
use crate::expert_kernels::ExpertKernels;
use crate::experts::{LayerSlots, Transit};
use crate::groups::Groups;
use crate::host::Host;
use crate::in_place::InPlace;
use crate::product::{Products, Tuning};
use crate::rowwise::{Addend, Chosen, Norm, Rowwise};
use crate::scratch::{Scratch, write_words};
use crate::weights::{Slabs, Weights, WeightsError};

/// A GPU that can run a model.
pub struct Gpu {
    pub(crate) device: Device,
    slabs: Slabs,
    pub(crate) products: Products,
    pub(crate) rowwise: Rowwise,
    pub(crate) best: Best,
    expert_kernels: ExpertKernels,
    /// Indices of tokens or rows.
    indices: Scratch,
    /// Inner activations of the shared expert, whose width may be another than that of the routed ones.
    shared_inner: [Option<Activations>; 2],
    chosen: Option<(Chosen, usize)>,
    /// The same for a layer to come.
    predicted: Option<(Chosen, usize)>,
    /// What is on the device in `chosen`.
    routed: Routing,
    bytes: Vec<u8>,
    transit: Transit,
    /// Experts that are read in the host's memory, where that is the device's, too.
    pub(crate) in_place: Option<InPlace>,
    pub(crate) layers: Vec<Option<LayerSlots>>,
    /// Most bytes of a buffer of slots.
    pub(crate) slot_buffer_bytes: u64,
    /// Most experts whose memory is kept after they were handed over, while they are copied from there.
    pub(crate) most_kept: usize,
    /// The same while they are read there.
    pub(crate) most_read: usize,
    /// The CPU, if it computes experts, too.
    pub(crate) host: Option<Host>,
    /// What was moved to the device in the course of requests.
    pub(crate) moved: Handoffs,
    /// The layer whose held experts were computed when they were chosen.
    computed: Option<usize>,
    pub(crate) attention: AttentionKernels,
    pub(crate) delta_net: DeltaNetKernels,
    /// Uses of a prompt's rows in a layer that is held.
    uses: ExpertUses,
    /// The same on the device.
    groups: Groups,
}

impl Gpu {
    /// A backend on an open device.
    pub fn new(device: Device) -> Self {
        Self {
            rowwise: Rowwise::new(&device),
            best: Best::new(&device),
            slabs: Slabs::default(),
            products: Products::new(Tuning::of(&device)),
            expert_kernels: ExpertKernels::new(&device),
            indices: Scratch::default(),
            shared_inner: [None, None],
            chosen: None,
            predicted: None,
            routed: Routing::default(),
            bytes: Vec::new(),
            transit: Transit::default(),
            in_place: InPlace::of(&device),
            layers: Vec::new(),
            slot_buffer_bytes: device.max_binding_bytes(),
            most_kept: 0,
            most_read: 0,
            host: None,
            moved: Handoffs::default(),
            computed: None,
            attention: AttentionKernels::default(),
            delta_net: DeltaNetKernels::default(),
            uses: ExpertUses::new(0),
            groups: Groups::default(),
            device,
        }
    }

    /// Cuts products as was found best on this device before, if that is kept in the directory.
    #[must_use]
    pub fn tuned(self, directory: &Path) -> Self {
        match Tuning::kept(&self.device, directory) {
            Some(tuning) => Self { products: self.products.with_tuning(tuning), ..self },
            None => self,
        }
    }

    /// Multiplies low-bit weights with activations in 32-bit floats, or as is usual in eight bits.
    #[must_use]
    pub fn with_precision(self, is_precise: bool) -> Self {
        Self { products: self.products.with_precision(is_precise), ..self }
    }

    /// Lets the CPU compute experts that are in the host's memory when that is sooner than moving them: the
    /// output then depends on which those are.
    #[must_use]
    pub fn beside(self, cpu: Cpu) -> Self {
        Self { host: Some(Host::new(cpu)), ..self }
    }

    pub(crate) fn put(&self, matrix: &Matrix) -> Result<Weights, WeightsError> {
        self.slabs.put(&self.device, matrix)
    }

    pub(crate) fn embed_rows(&mut self, table: &Weights, tokens: &[u32], out: &mut Activations) {
        let indices = write_words(&self.device, &mut self.indices, tokens);
        self.products.embed(&self.device, table, indices, tokens.len(), out);
    }

    pub(crate) fn gather_rows(&mut self, x: &Activations, rows: &[u32], out: &mut Activations) {
        let indices = write_words(&self.device, &mut self.indices, rows);
        self.rowwise.gather(&self.device, x, (indices, rows.len()), out);
    }

    /// Adds the outputs of experts to the residual stream, weighted as was chosen last or as `routing`
    /// says, and norms it if that is wanted.
    pub(crate) fn combine_outputs(
        &mut self,
        x: &mut Activations,
        routing: Option<&Routing>,
        top_k: usize,
        routed: &Activations,
        shared: Option<[&Activations; 2]>,
        norm: Option<Norm<'_>>,
    ) {
        if let Some(routing) = routing
            && *routing != self.routed
        {
            let experts = routing.experts.iter().flat_map(|expert| expert.to_le_bytes());
            let weights = routing.weights.iter().flat_map(|weight| weight.to_le_bytes());
            self.bytes.clear();
            self.bytes.extend(experts.chain(weights));
            let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
            self.device.write(&chosen.choices, 0, &self.bytes);
            self.routed.clone_from(routing);
        }
        let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
        let addend = Addend::Experts { choices: &chosen.choices, top_k, routed, shared };
        self.rowwise.sum(&self.device, x, addend, norm);
    }

    pub(crate) fn download_values(&mut self, buffer: &Activations, out: &mut Vec<f32>) {
        self.device.read(&buffer.buffer, 0, buffer.bytes(), &mut self.bytes);
        out.clear();
        out.extend(self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
}
