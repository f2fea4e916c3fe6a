//! What applies routed experts to the rows that use them: the table that tells which those are, and its kernels.

use compute::ExpertUses;

use crate::buffers::Activations;
use crate::device::{Buffer, Device, Kernel};
use crate::experts::{ExpertLayout, LayerSlots};
use crate::kernel::KernelSource;
use crate::product::{Items, Products, share};
use crate::rowwise::Chosen;
use crate::scratch::{Scratch, write_words};

/// The kernels beside those of products, and their working memory.
pub(crate) struct ExpertKernels {
    gated: Kernel,
    /// Inner activations.
    pub(crate) inner: [Option<Activations>; 2],
    /// Which rows use which experts.
    table: Scratch,
    words: Vec<u32>,
    /// Looks up where chosen experts are held.
    place: Kernel,
    placed: Scratch,
}

/// Applies a function to the kernel that multiplies with the SiLU of another product.
pub(crate) fn with_gated<T>(apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "gated",
        parts: &[include_str!("kernels/gated.wgsl")],
        constants: &[],
        flags: &[],
        writes: &[false, true],
        teams: None,
    })
}

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

impl ExpertKernels {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            gated: with_gated(|source| device.kernel(source)),
            inner: [None, None],
            table: Scratch::default(),
            words: Vec::new(),
            place: with_place(|source| device.kernel(source)),
            placed: Scratch::default(),
        }
    }

    /// Applies experts in some buffers to the rows of `x` that use them. `held` has of each buffer the experts in it
    /// with their slots.
    pub(crate) fn apply<'a, Held: Iterator<Item = (u32, u32)> + Clone>(
        &mut self,
        (device, products): (&Device, &mut Products),
        layout: &ExpertLayout,
        held: impl IntoIterator<Item = (&'a Buffer, Held)>,
        uses: &ExpertUses,
        x: &Activations,
        out: &Activations,
    ) {
        let Self { gated, inner, table, words, .. } = self;
        let most_shared = products.most_shared(device);
        words.clear();
        let mut ranges = Vec::new();
        for (buffer, experts) in held {
            let of_buffer = append(uses, experts, most_shared, words);
            ranges.extend(of_buffer.into_iter().map(|range| (buffer, range)));
        }
        if ranges.is_empty() {
            return;
        }
        let table = write_words(device, table, words);
        let parts: Vec<_> =
            ranges.into_iter().map(|(buffer, range)| (buffer, range.of(table))).collect();
        compute(device, (products, gated, inner), layout, &parts, uses.top_k(), x, out);
    }

    /// The same for those of the experts that `chosen` has that are held; the host need not know them.
    pub(crate) fn apply_chosen(
        &mut self,
        (device, products): (&Device, &mut Products),
        slots: &mut LayerSlots,
        (chosen, top_k): (&Chosen, usize),
        x: &Activations,
        out: &Activations,
    ) {
        let Self { gated, inner, place, placed, .. } = self;
        let n_uses = x.rows() * top_k;
        let len = n_uses as u32;
        // The router's own table is right.
        let table = if slots.is_plain() {
            &chosen.items
        } else {
            let n_buffers = slots.buffers().len();
            let placed = placed.at_least(device, 12 * n_uses * n_buffers);
            let buffers = [&chosen.items, slots.table(device), placed];
            device.dispatch(place, &buffers, &[len, n_buffers as u32], [1, 1, 1]);
            placed
        };
        let items = (0..).map(|buffer| Items { table, begin: 3 * len * buffer, len, n_x: 1 });
        let parts: Vec<_> = slots.buffers().iter().zip(items).collect();
        compute(device, (products, gated, inner), &slots.layout, &parts, top_k, x, out);
    }

    /// The same for the experts of a buffer that `items` tells.
    pub(crate) fn apply_items(
        &mut self,
        (device, products): (&Device, &mut Products),
        layout: &ExpertLayout,
        part: (&Buffer, Items<'_>),
        top_k: usize,
        x: &Activations,
        out: &Activations,
    ) {
        let kernels = (products, &self.gated, &mut self.inner);
        compute(device, kernels, layout, &[part], top_k, x, out);
    }

    /// `x = silu(x) * y`.
    pub(crate) fn gate(&self, device: &Device, x: &Activations, y: &Activations) {
        gate(device, &self.gated, x, y);
    }
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
        let all = parts.iter().map(|&(slots, items)| (layout.gate_up(slots), items, &*inner));
        products.multiply_experts(device, all, top_k, x);
    } else {
        let other = sized(other, device, uses, layout.intermediate());
        other.set_rows(uses);
        let gates = parts.iter().map(|&(slots, items)| (layout.gate(slots), items, &*inner));
        let ups = parts.iter().map(|&(slots, items)| (layout.up(slots), items, &*other));
        products.multiply_experts(device, gates.chain(ups), top_k, x);
        gate(device, gated, inner, other);
    }
    let downs = parts.iter().map(|&(slots, items)| (layout.down(slots), items, out));
    products.multiply_experts(device, downs, 1, inner);
}

fn gate(device: &Device, gated: &Kernel, x: &Activations, y: &Activations) {
    let len = (x.rows() * x.width()) as u32;
    let groups = len.div_ceil(256).min(4096);
    device.dispatch(gated, &[&y.buffer, &x.buffer], &[len], [groups, 1, 1]);
}

/// Activations of a width with room for so many rows, made anew when there is too little.
pub(crate) fn sized<'a>(
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

/// Where the items of a table are: in which words, how many, and how many uses each has.
#[derive(Clone, Copy, Debug)]
struct Range {
    begin: u32,
    len: u32,
    n_x: usize,
}

/// Appends the items of experts in slots to the words of a table, up to `most_shared` uses an item: first of
/// experts with few uses, then of those with many.
fn append(
    uses: &ExpertUses,
    experts: impl Iterator<Item = (u32, u32)> + Clone,
    most_shared: usize,
    words: &mut Vec<u32>,
) -> Vec<Range> {
    let n_x_of = |expert| share(uses.of(expert).len(), most_shared);
    let is_many = |expert| n_x_of(expert) == most_shared;
    let parts = [false, true]
        .map(|many| experts.clone().filter(move |&(expert, _)| is_many(expert) == many));
    parts.into_iter().filter_map(|part| append_alike(uses, part, most_shared, words)).collect()
}

/// The same for experts whose items have room for as many uses as the one with the most needs.
fn append_alike(
    uses: &ExpertUses,
    experts: impl Iterator<Item = (u32, u32)> + Clone,
    most_shared: usize,
    words: &mut Vec<u32>,
) -> Option<Range> {
    let most = experts.clone().map(|(expert, _)| uses.of(expert).len()).max()?;
    let (begin, n_x) = (words.len() as u32, share(most, most_shared));
    let mut len = 0;
    for (expert, slot) in experts {
        for uses_here in uses.of(expert).chunks(n_x) {
            words.extend([slot, uses_here.len() as u32]);
            let numbers = uses_here.iter().map(|use_| use_.row * uses.top_k() as u32 + use_.rank);
            words.extend(numbers);
            words.extend(std::iter::repeat_n(0, n_x - uses_here.len()));
            len += 1;
        }
    }
    Some(Range { begin, len, n_x })
}

impl Range {
    /// The items of a table that was written to the device.
    fn of(self, table: &Buffer) -> Items<'_> {
        let Self { begin, len, n_x } = self;
        Items { table, begin, len, n_x }
    }
}
