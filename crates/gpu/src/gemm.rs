//! Products of many rows of activations with stored weights: prompts.
//!
//! [`crate::product`] is for few rows, where reading the weights takes the time. Here it is arithmetic that does: a
//! tile of rows of both is held in registers, and each weight is decoded once for all activations of a tile.
//! Both give the same bits.

use std::collections::HashMap;

use checkpoint::Format;

use crate::buffers::Activations;
use crate::device::{Buffer, Device, Kernel};
use crate::formats::{Held, UNIT, decoder_of};
use crate::kernel::{KernelSource, unroll};
use crate::product::{
    ALL_ROWS, HELD, HOLD, MOST_WORKGROUPS, OPERAND, Operand, ROWS_OF_EXPERTS, WEIGHTS,
};
use crate::scratch::Scratch;

const GEMM: &str = include_str!("kernels/gemm.wgsl");
const NUMBERS: &str = include_str!("kernels/gemm_numbers.wgsl");
const BYTES: &str = include_str!("kernels/gemm_bytes.wgsl");
/// Lanes of a workgroup of the kernel that quantises.
const QUANTIZE_LANES: u32 = 256;

/// How large the tiles are; results are the same bits whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Lanes of a workgroup: 64, 128 or 256. Each eight of them have rows of weights of their own.
    pub workgroup: u32,
    /// Rows of weights of a team of eight lanes: even, because gate and up share them.
    pub rows: u32,
    /// Rows of activations: a multiple of 8, more than 8, and of `workgroup / 64`.
    pub columns: u32,
}

impl Tile {
    /// The default of a device; `None` if its workgroups have too little memory for any.
    pub fn of(device: &Device) -> Option<Self> {
        // A processor computes as fast with small tiles, and compiles them sooner.
        let (workgroup, rows) = if device.is_software() { (64, 2) } else { (128, 4) };
        let tile = Self { workgroup, rows, columns: 16 };
        tile.fits(device).then_some(tile)
    }

    /// Whether the workgroups of a device have the memory for it.
    pub fn fits(self, device: &Device) -> bool {
        let activations = self.columns * 8 * 9 * 16;
        activations + 4 * self.workgroup <= device.workgroup_bytes()
    }
}

/// A form of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) format: Format,
    /// As in the form of few rows.
    pub(crate) is_precise: bool,
    pub(crate) is_fused: bool,
    pub(crate) is_grouped: bool,
}

/// Compiled kernels, made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Gemm {
    /// Instead of the default of the device.
    tile: Option<Tile>,
    kernels: HashMap<Form, Kernel>,
    /// By the order of bytes.
    quantize: HashMap<u32, Kernel>,
    /// The rows of activations that were quantised last.
    quantized: Scratch,
}

/// Bytes of so many values in eight bits, with what belongs to each unit.
pub(crate) const fn quantized_bytes(values: usize) -> usize {
    values.div_ceil(UNIT) * 48
}

/// Calls `use_source` with the source of the kernel that quantises rows of activations.
pub(crate) fn with_quantize<T>(order: u32, use_source: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    use_source(&KernelSource {
        name: "in eight bits",
        parts: &[include_str!("kernels/eight_bits.wgsl"), include_str!("kernels/quantize.wgsl")],
        constants: &[("HELD_ORDER", order)],
        flags: &[],
        writes: &[false, true],
        teams: Some(QUANTIZE_LANES),
    })
}

/// Calls `use_source` with the source of a form.
pub(crate) fn with_source<T>(
    form: Form,
    tile: Tile,
    use_source: impl FnOnce(&KernelSource<'_>) -> T,
) -> T {
    let decoder = decoder_of(form.format);
    let Tile { workgroup, rows, columns } = tile;
    let [a, b, c, d] = decoder.constants;
    let held = decoder.held(form.is_precise);
    let [holds, order] = held.constants();
    let constants = [a, b, c, d, holds, order, decoder.quads(), ("N_X", columns), ("N_ROWS", rows)];
    let writes: &[bool] = if form.is_grouped {
        &[false, false, false, true, false]
    } else {
        &[false, false, false, true]
    };
    // Quads of a unit that are read: eight of floats, or two of bytes with one of what belongs to them.
    let (unit_quads, hold, x) = match held {
        Held::Bytes { .. } => (3, "", BYTES),
        Held::Numbers => (8, HOLD, NUMBERS),
    };
    let pieces = (8 * unit_quads * columns).div_ceil(workgroup);
    let counts = [("r", rows), ("g", columns / 8), ("j", 8), ("s", pieces), ("p", 2)];
    let text = unroll(GEMM, &counts);
    let rows = if form.is_grouped { ROWS_OF_EXPERTS } else { ALL_ROWS };
    let products = decoder.products(form.is_precise);
    let parts = [WEIGHTS, &products, OPERAND, HELD, hold, rows, x, &text];
    use_source(&KernelSource {
        name: &crate::names::gemm(&form),
        parts: &parts,
        constants: &constants,
        flags: &[("FUSED", form.is_fused)],
        writes,
        teams: Some(workgroup),
    })
}

impl Gemm {
    /// No kernels yet, for this tile.
    pub(crate) fn new(tile: Option<Tile>) -> Self {
        Self { tile, ..Self::default() }
    }

    /// The tile on a device, if there is one.
    pub(crate) fn tile(&self, device: &Device) -> Option<Tile> {
        self.tile.or_else(|| Tile::of(device))
    }

    /// Quantises all rows of `x`, with bytes in such an order: [`Gemm::start`] takes what was quantised last.
    pub(crate) fn quantize(&mut self, device: &Device, order: u32, x: &Activations) {
        let Self { quantize, quantized, .. } = self;
        let kernel = quantize
            .entry(order)
            .or_insert_with(|| with_quantize(order, |source| device.kernel(source)));
        let units = x.width().div_ceil(UNIT);
        let quantized = quantized.at_least(device, quantized_bytes(units * UNIT * x.rows()));
        let rows = x.rows() as u32;
        let layer = rows.min(MOST_WORKGROUPS);
        let words = [(x.width() / 4) as u32, units as u32, rows, layer];
        let groups = [(units as u32).div_ceil(QUANTIZE_LANES / 8), layer, rows.div_ceil(layer)];
        device.dispatch(kernel, &[&x.buffer, quantized], &words, groups);
    }

    /// Records a product: `numbers` are the rows of `x` or where the items of `table` begin, the uses of a row of
    /// `x`, and how many items there are, each of as many rows as the tile has columns.
    pub(crate) fn start(
        &mut self,
        device: &Device,
        (operand, is_precise): (&Operand<'_>, bool),
        table: Option<&Buffer>,
        numbers: [u32; 3],
        [x, y]: [&Activations; 2],
    ) {
        let tile = self.tile(device).expect("the caller asked");
        let Operand { buffer, format, rows, up, .. } = *operand;
        let (is_fused, is_grouped) = (up.is_some(), table.is_some());
        let form = Form { format, is_precise, is_fused, is_grouped };
        let x = match decoder_of(format).held(is_precise) {
            Held::Bytes { .. } => self.quantized.at_least(device, 0),
            Held::Numbers => &x.buffer,
        };
        let kernel = self
            .kernels
            .entry(form)
            .or_insert_with(|| with_source(form, tile, |source| device.kernel(source)));
        let [n_x_or_begin, x_div, items] = numbers;
        let team_rows = if up.is_some() { tile.rows / 2 } else { tile.rows };
        let groups = (rows as u32).div_ceil(tile.workgroup / 8 * team_rows);
        let words = operand.words(n_x_or_begin, x_div, groups);
        assert!(groups.max(items) <= MOST_WORKGROUPS, "the product fits one dispatch");
        let buffers = [buffer, buffer, x, &y.buffer];
        let all = table.map(|table| [buffer, buffer, x, &y.buffer, table]);
        let buffers = all.as_ref().map_or(&buffers[..], |all| &all[..]);
        device.dispatch(kernel, buffers, &words, [groups, items, 1]);
    }
}
