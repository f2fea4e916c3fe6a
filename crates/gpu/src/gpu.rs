//! The backend: what a model asks for, as kernels on buffers.

mod choice;
mod together;

use std::borrow::Cow;
use std::time::Instant;

use compute::{Cpu, ExpertUses, Handoffs, LoadedExpert, Matrix, RouterSpec, Routing, SharedExpert};

use crate::attention::AttentionKernels;
use crate::best::Best;
use crate::buffers::Activations;
use crate::delta_net::DeltaNetKernels;
use crate::device::{Buffer, Device, Kernel, Upload};
use crate::experts::{ExpertLayout, LayerSlots, TRANSIT_SLOTS, Transit, append, shapes};
use crate::groups::Groups;
use crate::host::Host;
use crate::in_place::InPlace;
use crate::kernel::KernelSource;
use crate::product::{Items, Operand, Products, Tuning, share};
use crate::rowwise::{Addend, Chosen, Norm, Rowwise};
use crate::scratch::Scratch;
use crate::weights::{Slabs, Weights, WeightsError};

/// Rows up to which the routing of a layer that is held stays on the device.
const MOST_DEVICE_ROUTED_ROWS: usize = 8;

/// Applies a function to the kernel that looks up where experts are held.
pub(crate) fn with_place<T>(apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "place",
        parts: &[include_str!("kernels/place.wgsl")],
        constants: &[],
        flags: &[],
        writes: &[false, false, true],
        teams: None,
    })
}

/// A GPU that can run a model.
pub struct Gpu {
    pub(crate) device: Device,
    slabs: Slabs,
    pub(crate) products: Products,
    pub(crate) rowwise: Rowwise,
    pub(crate) best: Best,
    gated: Kernel,
    /// Indices of tokens or rows.
    indices: Scratch,
    /// Inner activations of experts.
    inner: [Option<Activations>; 2],
    /// The same of the shared expert, whose width may be another.
    shared_inner: [Option<Activations>; 2],
    chosen: Option<(Chosen, usize)>,
    /// The same for a layer to come.
    predicted: Option<(Chosen, usize)>,
    /// What is on the device in `chosen`.
    routed: Routing,
    table: Scratch,
    words: Vec<u32>,
    bytes: Vec<u8>,
    transit: Transit,
    /// Experts that are read in the host's memory, where that is the device's, too.
    pub(crate) in_place: Option<InPlace>,
    pub(crate) layers: Vec<Option<LayerSlots>>,
    /// Most bytes of a buffer of slots.
    pub(crate) slot_buffer_bytes: u64,
    /// Looks up where chosen experts are held.
    place: Kernel,
    placed: Scratch,
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
            best: Best::new(&device),
            slabs: Slabs::default(),
            products: Products::new(Tuning::of(&device)),
            gated,
            indices: Scratch::default(),
            inner: [None, None],
            shared_inner: [None, None],
            chosen: None,
            predicted: None,
            routed: Routing::default(),
            table: Scratch::default(),
            words: Vec::new(),
            bytes: Vec::new(),
            transit: Transit::default(),
            in_place: InPlace::of(&device),
            layers: Vec::new(),
            slot_buffer_bytes: device.max_binding_bytes(),
            place: with_place(|source| device.kernel(source)),
            placed: Scratch::default(),
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
            self.words.clear();
            self.words.extend_from_slice(&routing.experts);
            self.words.extend(routing.weights.iter().map(|weight| weight.to_bits()));
            let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
            self.device.write(&chosen.choices, 0, &bytes_of(&self.words));
            self.routed.clone_from(routing);
        }
        let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
        let addend = Addend::Experts { choices: &chosen.choices, top_k, routed, shared };
        self.rowwise.sum(&self.device, x, addend, norm);
    }

    /// Chooses and computes the experts of a layer that is held as a whole, and the shared expert. What does not
    /// wait for each other is side by side. The choices stay on the device; where rows are many, it groups them by
    /// expert, or the host if the experts are in several buffers.
    pub(crate) fn held_layer(
        &mut self,
        layer: usize,
        (router, logits, spec): (&Weights, &mut Activations, RouterSpec),
        shared: Option<&mut SharedExpert<'_, Self>>,
        x: &Activations,
        out: &Activations,
    ) {
        let mut down = None;
        let mut products = vec![(Operand::of(router), &mut *logits)];
        match shared {
            Some(SharedExpert { weights, gate, outs: [out, gate_out] }) => {
                products.push((Operand::of(gate), gate_out));
                self.gated_inner(x, weights, products);
                down = Some((weights, out));
            }
            None => self.products.multiply(&self.device, x, &mut products),
        }
        if x.rows() <= MOST_DEVICE_ROUTED_ROWS {
            let is_begun = self.choose_and_begin(layer, (logits, spec), x);
            if !is_begun {
                self.choose(logits, spec, None);
            }
            if let Some((weights, out)) = down {
                self.gated_down(weights, out);
            }
            match is_begun {
                true => self.end_chosen(layer, x.rows() * spec.top_k, out),
                false => self.chosen_experts(layer, x, spec.top_k, out),
            }
            return;
        }
        if let Some((weights, out)) = down {
            self.gated_down(weights, out);
        }
        if slots_of(&self.layers, layer).is_some_and(|slots| slots.buffers().len() == 1) {
            self.choose(logits, spec, None);
            self.grouped_experts(layer, x, spec.top_k, out);
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

    /// Computes those of the experts that were chosen last that are held; the host need not know them.
    pub(crate) fn chosen_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        top_k: usize,
        out: &Activations,
    ) {
        let slots = self.layers[layer].as_mut().expect("the caller asked");
        let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
        let n_uses = x.rows() * top_k;
        let len = n_uses as u32;
        // The router's own table is right.
        let table = if slots.is_plain() {
            &chosen.items
        } else {
            let n_buffers = slots.buffers().len();
            let placed = self.placed.at_least(&self.device, 12 * n_uses * n_buffers);
            let buffers = [&chosen.items, slots.table(&self.device), placed];
            let words = [len, n_buffers as u32];
            self.device.dispatch(&self.place, &buffers, &words, [1, 1, 1]);
            placed
        };
        let items = (0..).map(|buffer| Items { table, begin: 3 * len * buffer, len, n_x: 1 });
        let parts: Vec<_> = slots.buffers().iter().zip(items).collect();
        let kernels = (&mut self.products, &self.gated, &mut self.inner);
        compute(&self.device, kernels, &slots.layout, &parts, top_k, x, out);
    }

    /// Computes the experts that were chosen last, all of which are held in one buffer, grouped on the device.
    fn grouped_experts(&mut self, layer: usize, x: &Activations, top_k: usize, out: &Activations) {
        let Self { device, products, groups, gated, inner, .. } = self;
        let slots = self.layers[layer].as_ref().expect("the caller asked");
        let (chosen, _) = self.chosen.as_ref().expect("experts were chosen before");
        let (n_uses, n_experts) = (x.rows() * top_k, slots.n_experts());
        // Twice as many as the average expert has: most have no more.
        let n_x = share((2 * n_uses).div_ceil(n_experts), products.most_shared(device));
        let items = groups.group(device, &chosen.choices, [n_uses, n_experts], n_x);
        let parts = [(&slots.buffers()[0], items)];
        compute(device, (products, gated, inner), &slots.layout, &parts, top_k, x, out);
    }

    /// The same where only some experts of the layer may be held; [`Gpu::take_held_experts`] will know that it
    /// was done.
    pub(crate) fn chosen_held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        top_k: usize,
        out: &Activations,
    ) {
        if slots_of(&self.layers, layer).is_some_and(|slots| slots.n_held() > 0) {
            self.chosen_experts(layer, x, top_k, out);
            self.computed = Some(layer);
        }
    }

    /// Counts the uses of a layer, computes those of experts that are held unless that was done, and takes
    /// them out; gives their number.
    pub(crate) fn take_held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &mut ExpertUses,
        out: &Activations,
    ) -> usize {
        let is_computed = self.computed.take() == Some(layer);
        let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) else { return 0 };
        slots.count(uses);
        if !is_computed {
            self.held_experts(layer, x, uses, out);
            // They are computed while the host fetches the others.
            self.device.submit();
        }
        let until = self.device.moment();
        let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) else { return 0 };
        slots.read(uses.distinct().iter().copied(), until);
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
        let all = uses.distinct().iter().copied();
        self.experts_in_slots(layer, x, uses, all, out);
    }

    /// Computes the uses of those experts among `wanted` that are held.
    fn experts_in_slots(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &ExpertUses,
        wanted: impl Iterator<Item = u32> + Clone,
        out: &Activations,
    ) {
        let Self { device, layers, products, gated, inner, words, table, .. } = self;
        let Some(slots) = slots_of(layers, layer) else { return };
        let most_shared = products.most_shared(device);
        words.clear();
        let mut ranges = Vec::with_capacity(slots.buffers().len());
        for (index, buffer) in slots.buffers().iter().enumerate() {
            let here = wanted.clone().filter_map(|expert| {
                let (buffer, slot) = slots.place(expert)?;
                (buffer == index).then_some((expert, slot))
            });
            let of_buffer = append(uses, here, most_shared, words);
            ranges.extend(of_buffer.into_iter().map(|range| (buffer, range)));
        }
        if ranges.is_empty() {
            return;
        }
        let table = write_words(device, table, words);
        let parts: Vec<_> =
            ranges.into_iter().map(|(buffer, range)| (buffer, range.of(table))).collect();
        compute(device, (products, gated, inner), &slots.layout, &parts, uses.top_k(), x, out);
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
        let (experts, of_host) = self.split(layer, experts);
        let indices = || experts.iter().map(|expert| expert.index);
        if let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) {
            let begin = Instant::now();
            let mut last = Upload::default();
            for expert in experts.iter() {
                let is_new = slots.place(expert.index).is_none();
                if let Some(upload) = slots.hold(&self.device, expert.index, &expert.weights) {
                    last = last.max(upload);
                    self.moved.expert_bytes += if is_new { slots.layout.bytes } else { 0 };
                }
            }
            self.moved.expert_time += begin.elapsed();
            self.device.after_upload(last);
        }
        // Only now is it known who stays: a later one may have taken an earlier one's slot.
        self.experts_in_slots(layer, x, uses, indices(), out);
        let Self { device, layers, products, gated, inner, words, transit, .. } = self;
        let mut slots = layers.get_mut(layer).and_then(Option::as_mut);
        if let Some(slots) = &mut slots {
            slots.read(indices(), device.moment());
        }
        let is_passing = |expert: &&LoadedExpert| {
            slots.as_ref().is_none_or(|slots| slots.place(expert.index).is_none())
        };
        let mut passing: Vec<_> = experts.iter().filter(is_passing).collect();
        let most_shared = products.most_shared(device);
        if let Some(in_place) = &mut self.in_place {
            let begin = Instant::now();
            let groups = in_place.find(device, &mut passing, self.slot_buffer_bytes);
            self.moved.expert_time += begin.elapsed();
            for group in groups {
                words.clear();
                let mut ranges = Vec::with_capacity(group.parts.len());
                for (window, experts) in &group.parts {
                    let of_window = append(uses, experts.iter().copied(), most_shared, words);
                    ranges.extend(
                        of_window.into_iter().map(|range| (in_place.window(*window), range)),
                    );
                }
                let table = write_words(device, &mut self.table, words);
                let parts: Vec<_> =
                    ranges.into_iter().map(|(window, range)| (window, range.of(table))).collect();
                let kernels = (&mut *products, &*gated, &mut *inner);
                compute(device, kernels, &group.layout, &parts, uses.top_k(), x, out);
                self.moved.in_place_bytes += group.bytes;
            }
            in_place.read(device.moment());
        }
        // Experts of a layer that has no slots may be stored each in its own way.
        let alike = passing.chunk_by(|a, b| shapes(&a.weights) == shapes(&b.weights));
        for experts in alike.flat_map(|experts| experts.chunks(TRANSIT_SLOTS / 2)) {
            let layout = match ExpertLayout::new(shapes(&experts[0].weights)) {
                Ok(layout) => layout,
                Err(error) => return device.fail(error),
            };
            let begin = Instant::now();
            let (buffer, slots, last) = transit.take(device, &layout, experts);
            self.moved.expert_bytes += layout.bytes * experts.len() as u64;
            self.moved.expert_time += begin.elapsed();
            device.after_upload(last);
            let indices = experts.iter().map(|expert| expert.index);
            words.clear();
            let ranges = append(uses, indices.zip(slots.iter().copied()), most_shared, words);
            if ranges.is_empty() {
                continue;
            }
            let table = write_words(device, &mut self.table, words);
            let parts: Vec<_> = ranges.into_iter().map(|range| (buffer, range.of(table))).collect();
            let kernels = (&mut *products, &*gated, &mut *inner);
            compute(device, kernels, &layout, &parts, uses.top_k(), x, out);
            transit.read(&slots, device.moment());
        }
        // The device begins while the host computes, or waits for the next ones.
        device.submit();
        if let (Some(host), false) = (&mut self.host, of_host.is_empty()) {
            self.moved.host_uses += host.compute(&self.device, &of_host, uses, out);
        }
        self.let_go();
    }

    /// Lets go of experts in the host's memory that were copied or read, and waits until few are kept.
    pub(crate) fn let_go(&mut self) {
        self.device.let_go(self.most_kept);
        if let Some(in_place) = &mut self.in_place {
            in_place.let_go(&self.device, self.most_read);
        }
    }

    /// Splits experts in the host's memory into those that are moved to the device and those that the CPU
    /// computes, of which the device would keep none.
    fn split<'a>(
        &self,
        layer: usize,
        experts: &'a [LoadedExpert],
    ) -> (Cow<'a, [LoadedExpert]>, Vec<LoadedExpert>) {
        let Some(host) = &self.host else { return (Cow::Borrowed(experts), Vec::new()) };
        let slots = slots_of(&self.layers, layer);
        let passes = |expert: &&LoadedExpert| slots.is_none_or(|slots| !slots.wants(expert.index));
        let (passing, mut moved): (Vec<_>, Vec<_>) = experts.iter().partition(passes);
        let n_moved = passing.len() - host.share(layer, passing.len());
        moved.extend(&passing[..n_moved]);
        let owned = |experts: &[&LoadedExpert]| experts.iter().copied().cloned().collect();
        (Cow::Owned(owned(&moved)), owned(&passing[n_moved..]))
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

/// Applies the experts in some buffers of slots, as their items say, to the rows of `x` that use them.
fn compute(
    device: &Device,
    (products, gated, inner): (&mut Products, &Kernel, &mut [Option<Activations>; 2]),
    layout: &ExpertLayout,
    parts: &[(&Buffer, Items<'_>)],
    top_k: usize,
    x: &Activations,
    out: &Activations,
) {
    let uses = x.rows() * top_k;
    let [inner, other] = inner;
    let inner = sized(inner, device, uses, layout.intermediate());
    inner.set_rows(uses);
    if layout.is_fused() {
        for &(slots, items) in parts {
            products.multiply_experts(device, &layout.gate_up(slots), items, top_k, x, inner);
        }
    } else {
        let other = sized(other, device, uses, layout.intermediate());
        other.set_rows(uses);
        for &(slots, items) in parts {
            products.multiply_experts(device, &layout.gate(slots), items, top_k, x, inner);
            products.multiply_experts(device, &layout.up(slots), items, top_k, x, other);
        }
        gate_with(device, gated, inner, other);
    }
    for &(slots, items) in parts {
        products.multiply_experts(device, &layout.down(slots), items, 1, inner, out);
    }
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
