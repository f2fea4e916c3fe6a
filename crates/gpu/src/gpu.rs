//! The backend: what a model asks for, as kernels on buffers.

use compute::{ExpertUses, ExpertWeights, LoadedExpert, Matrix, RouterSpec, Routing};

use crate::attention::AttentionKernels;
use crate::buffers::Activations;
use crate::delta_net::DeltaNetKernels;
use crate::device::{Buffer, Device, Kernel};
use crate::experts::{ExpertLayout, LayerSlots, items, shapes, table};
use crate::kernel::KernelSource;
use crate::product::{Items, Operand, Products};
use crate::rowwise::{Chosen, Rowwise};
use crate::scratch::Scratch;
use crate::weights::{Slabs, Weights, WeightsError};

/// Experts that are moved to the device for one use, at a time.
const TRANSIT_SLOTS: usize = 16;
/// Rows up to which the routing of a layer that is held stays on the device.
const MOST_DEVICE_ROUTED_ROWS: usize = 8;

/// A GPU that can run a model.
pub struct Gpu {
    pub(crate) device: Device,
    slabs: Slabs,
    products: Products,
    pub(crate) rowwise: Rowwise,
    gated: Kernel,
    /// Indices of tokens or rows.
    indices: Scratch,
    /// Inner activations of experts.
    inner: [Option<Activations>; 2],
    chosen: Option<(Chosen, usize)>,
    /// What is on the device in `chosen`.
    routed: Routing,
    table: Scratch,
    words: Vec<u32>,
    bytes: Vec<u8>,
    transit: Scratch,
    pub(crate) layers: Vec<Option<LayerSlots>>,
    pub(crate) attention: AttentionKernels,
    pub(crate) delta_net: DeltaNetKernels,
    /// Uses of a prompt's rows in a layer that is held.
    uses: ExpertUses,
}

impl Gpu {
    /// A backend on an open device.
    pub fn new(device: Device) -> Self {
        let gated = device.kernel(&KernelSource {
            name: "gated",
            parts: &[include_str!("kernels/gated.wgsl")],
            constants: &[],
            flags: &[],
            writes: &[false, true],
            teams: None,
        });
        Self {
            rowwise: Rowwise::new(&device),
            slabs: Slabs::default(),
            products: Products::default(),
            gated,
            indices: Scratch::default(),
            inner: [None, None],
            chosen: None,
            routed: Routing::default(),
            table: Scratch::default(),
            words: Vec::new(),
            bytes: Vec::new(),
            transit: Scratch::default(),
            layers: Vec::new(),
            attention: AttentionKernels::default(),
            delta_net: DeltaNetKernels::default(),
            uses: ExpertUses::new(0),
            device,
        }
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

    pub(crate) fn multiply(&mut self, x: &Activations, weights: &Weights, out: &mut Activations) {
        self.products.multiply(&self.device, &Operand::of(weights), x, out);
    }

    /// The shared expert, or a dense block.
    pub(crate) fn gated_block(
        &mut self,
        x: &Activations,
        weights: &ExpertWeights<Weights>,
        out: &mut Activations,
    ) {
        let ExpertWeights { gate, up, down } = weights;
        let (rows, width) = (x.rows(), gate.rows);
        let [inner, other] = &mut self.inner;
        let inner = sized(inner, &self.device, rows, width);
        let is_fused = gate.format == up.format && std::sync::Arc::ptr_eq(&gate.buffer, &up.buffer);
        let mut operand = Operand::of(gate);
        if is_fused {
            operand.up = Some(up.parts);
            self.products.multiply(&self.device, &operand, x, inner);
        } else {
            let other = sized(other, &self.device, rows, width);
            self.products.multiply(&self.device, &operand, x, inner);
            self.products.multiply(&self.device, &Operand::of(up), x, other);
            gate_with(&self.device, &self.gated, inner, other);
        }
        self.products.multiply(&self.device, &Operand::of(down), inner, out);
    }

    /// Chooses experts; the choices stay on the device, and come to the host in `routing` if it is there.
    pub(crate) fn choose(
        &mut self,
        logits: &Activations,
        spec: RouterSpec,
        routing: Option<&mut Routing>,
    ) {
        let uses = logits.rows() * spec.top_k;
        if self.chosen.as_ref().is_none_or(|(_, held)| *held < uses) {
            let held = uses.next_power_of_two();
            let choices = self.device.buffer(8 * held as u64);
            let items = self.device.buffer(12 * held as u64);
            self.chosen = Some((Chosen { choices, items }, held));
        }
        let (chosen, _) = self.chosen.as_ref().expect("it was just made");
        self.rowwise.route(&self.device, logits, spec, chosen);
        self.routed.experts.clear();
        self.routed.weights.clear();
        let Some(routing) = routing else { return };
        self.device.read(&chosen.choices, 0, 8 * uses as u64, &mut self.bytes);
        let words = || self.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        routing.top_k = spec.top_k;
        routing.experts.clear();
        routing.experts.extend(words().take(uses));
        routing.weights.clear();
        routing.weights.extend(words().skip(uses).map(f32::from_bits));
        self.routed.clone_from(routing);
    }

    /// Adds the outputs of experts to the residual stream, weighted as was chosen last or as `routing`
    /// says.
    pub(crate) fn combine_outputs(
        &mut self,
        x: &mut Activations,
        routing: Option<&Routing>,
        top_k: usize,
        routed: &Activations,
        shared: Option<[&Activations; 2]>,
    ) {
        if let Some(routing) = routing
            && *routing != self.routed
        {
            self.words.clear();
            self.words.extend_from_slice(&routing.experts);
            self.words.extend(routing.weights.iter().map(|weight| weight.to_bits()));
            let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
            self.device.write(&chosen.choices, 0, &bytes_of(&self.words));
            self.routed.clone_from(routing);
        }
        let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
        self.rowwise.combine(&self.device, x, (&chosen.choices, top_k), routed, shared);
    }

    /// Chooses and computes the experts of a layer that is held as a whole. Few rows leave their choices on
    /// the device; many are grouped by expert, on the host.
    pub(crate) fn held_layer(
        &mut self,
        layer: usize,
        (logits, spec): (&Activations, RouterSpec),
        x: &Activations,
        out: &Activations,
    ) {
        if x.rows() <= MOST_DEVICE_ROUTED_ROWS {
            self.choose(logits, spec, None);
            self.chosen_experts(layer, x, spec.top_k, out);
            return;
        }
        let mut routing = Routing::default();
        self.choose(logits, spec, Some(&mut routing));
        let n_experts = slots_of(&self.layers, layer).map_or(0, LayerSlots::n_experts);
        let mut uses = std::mem::replace(&mut self.uses, ExpertUses::new(0));
        if uses.n_experts() != n_experts {
            uses = ExpertUses::new(n_experts);
        }
        uses.group(&routing);
        self.held_experts(layer, x, &uses, out);
        self.uses = uses;
    }

    /// Computes the experts that were chosen last, all of which are held.
    pub(crate) fn chosen_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        top_k: usize,
        out: &Activations,
    ) {
        let slots = self.layers[layer].as_ref().expect("the caller asked");
        let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
        let len = (x.rows() * top_k) as u32;
        let items = Items { table: &chosen.items, begin: 0, len, n_x: 1 };
        let parts = (&mut self.products, &self.gated, &mut self.inner);
        compute(&self.device, parts, &slots.layout, &slots.buffer, items, top_k, x, out);
    }

    /// Counts the uses of a layer, computes those of experts that are held, and takes them out; gives their
    /// number.
    pub(crate) fn take_held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &mut ExpertUses,
        out: &Activations,
    ) -> usize {
        let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) else { return 0 };
        slots.count(uses);
        self.held_experts(layer, x, uses, out);
        let Some(slots) = slots_of(&self.layers, layer) else { return 0 };
        let mut n_uses = 0;
        uses.take(|expert, uses| {
            let is_held = slots.place(expert).is_some();
            n_uses += if is_held { uses.len() } else { 0 };
            is_held
        });
        n_uses
    }

    /// Computes the uses of those of the experts that are held.
    fn held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &ExpertUses,
        out: &Activations,
    ) {
        let Some(slots) = slots_of(&self.layers, layer) else { return };
        let all = uses.distinct().iter();
        let held = all.filter_map(|&expert| Some((expert, slots.place(expert)?)));
        let Some(numbers) = table(uses, held, &mut self.words) else { return };
        let table = write_words(&self.device, &mut self.table, &self.words);
        let parts = (&mut self.products, &self.gated, &mut self.inner);
        let items = items(table, numbers);
        compute(&self.device, parts, &slots.layout, &slots.buffer, items, uses.top_k(), x, out);
    }

    /// Computes the uses of experts that are in the host's memory. Those that are used more than what is
    /// held stay on the device.
    pub(crate) fn host_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &Activations,
    ) {
        let Self { device, layers, products, gated, inner, words, transit, .. } = self;
        let mut slots = layers.get_mut(layer).and_then(Option::as_mut);
        if let Some(slots) = &mut slots {
            experts.iter().for_each(|expert| {
                slots.hold(device, expert.index, &expert.weights);
            });
        }
        // Only now is it known who stays: a later one may have taken an earlier one's slot.
        let place = |expert: &LoadedExpert| slots.as_deref()?.place(expert.index);
        let kept = experts.iter().filter_map(|expert| Some((expert.index, place(expert)?)));
        if let (Some(slots), Some(numbers)) = (slots.as_deref(), table(uses, kept, words)) {
            let table = write_words(device, &mut self.table, words);
            let (parts, items) = ((&mut *products, &*gated, &mut *inner), items(table, numbers));
            compute(device, parts, &slots.layout, &slots.buffer, items, uses.top_k(), x, out);
        }
        let passing: Vec<_> = experts.iter().filter(|expert| place(expert).is_none()).collect();
        // Experts of a layer that has no slots may be stored each in its own way.
        let alike = passing.chunk_by(|a, b| shapes(&a.weights) == shapes(&b.weights));
        for experts in alike.flat_map(|experts| experts.chunks(TRANSIT_SLOTS)) {
            let layout = match ExpertLayout::new(shapes(&experts[0].weights)) {
                Ok(layout) => layout,
                Err(error) => return device.fail(error),
            };
            let transit = transit.at_least(device, layout.bytes as usize * TRANSIT_SLOTS);
            for (expert, slot) in experts.iter().zip(0..) {
                layout.write(device, &expert.weights, transit, layout.bytes * slot);
            }
            let placed = experts.iter().zip(0..).map(|(expert, slot)| (expert.index, slot));
            let Some(numbers) = table(uses, placed, words) else { continue };
            let table = write_words(device, &mut self.table, words);
            let (parts, items) = ((&mut *products, &*gated, &mut *inner), items(table, numbers));
            compute(device, parts, &layout, transit, items, uses.top_k(), x, out);
        }
    }

    pub(crate) fn download_values(&mut self, buffer: &Activations, out: &mut Vec<f32>) {
        self.device.read(&buffer.buffer, 0, buffer.bytes(), &mut self.bytes);
        out.clear();
        out.extend(self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
}

fn slots_of(layers: &[Option<LayerSlots>], layer: usize) -> Option<&LayerSlots> {
    layers.get(layer)?.as_ref()
}

/// Applies the experts of `items` to the rows of `x` that use them.
#[expect(clippy::too_many_arguments, reason = "parts of the backend that are borrowed one by one")]
fn compute(
    device: &Device,
    (products, gated, inner): (&mut Products, &Kernel, &mut [Option<Activations>; 2]),
    layout: &ExpertLayout,
    slots: &Buffer,
    items: Items<'_>,
    top_k: usize,
    x: &Activations,
    out: &Activations,
) {
    let uses = x.rows() * top_k;
    let [inner, other] = inner;
    let inner = sized(inner, device, uses, layout.intermediate());
    inner.set_rows(uses);
    if layout.is_fused() {
        products.multiply_experts(device, &layout.gate_up(slots), items, top_k, x, inner);
    } else {
        let other = sized(other, device, uses, layout.intermediate());
        other.set_rows(uses);
        products.multiply_experts(device, &layout.gate(slots), items, top_k, x, inner);
        products.multiply_experts(device, &layout.up(slots), items, top_k, x, other);
        gate_with(device, gated, inner, other);
    }
    products.multiply_experts(device, &layout.down(slots), items, 1, inner, out);
}

fn gate_with(device: &Device, gated: &Kernel, x: &Activations, y: &Activations) {
    let len = (x.rows() * x.width()) as u32;
    let groups = len.div_ceil(256).min(4096);
    device.dispatch(gated, &[&y.buffer, &x.buffer], &[len], [groups, 1, 1]);
}

/// Activations of a width with room for so many rows, made anew when there is too little.
fn sized<'a>(
    held: &'a mut Option<Activations>,
    device: &Device,
    rows: usize,
    width: usize,
) -> &'a mut Activations {
    if held.as_ref().is_none_or(|held| held.width() != width || held.max_rows() < rows) {
        *held = Some(Activations::new(device, rows.next_power_of_two(), width));
    }
    held.as_mut().expect("it was just made")
}

/// Words on the device, in a buffer that grows as it is needed.
fn write_words<'a>(device: &Device, to: &'a mut Scratch, words: &[u32]) -> &'a Buffer {
    let bytes = bytes_of(words);
    let buffer = to.at_least(device, bytes.len().next_power_of_two());
    device.write(buffer, 0, &bytes);
    buffer
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
