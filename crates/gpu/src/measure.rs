//! How fast the kernels are on a device, beside what it can read.

mod handoffs;
mod prompts;
mod uploads;

use std::time::Instant;

use checkpoint::Format;

use crate::buffers::Activations;
use crate::device::{Buffer, Device, GpuError};
use crate::formats::part_bytes;
use crate::product::{Items, Operand, Products, Tuning};
use crate::weights::place;

pub use handoffs::{DispatchCost, dispatch_cost, meeting_seconds};
pub use prompts::{GemmCase, attention_rate, gemm_rate};
pub use uploads::{UploadRates, upload_rates};

/// A product to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductCase {
    /// How the weights are stored.
    pub format: Format,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Matrices that are used in a dispatch, other ones each time.
    pub experts: usize,
    /// Matrices in memory: more than the device's caches hold.
    pub pool: usize,
    /// Whether gate and up are computed together: two matrices an expert.
    pub is_fused: bool,
    /// Rows of activations of each expert: 1, 4 or 8.
    pub n_x: usize,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductRate {
    /// Bytes of weights that a dispatch reads.
    pub bytes: u64,
    /// Median seconds of a dispatch among many that follow each other.
    pub seconds: f64,
}

/// Dispatches of a measurement.
pub(crate) const DISPATCHES: usize = 64;
/// Measurements, of which the median counts.
pub(crate) const REPEATS: usize = 7;

/// Measures a product: dispatches one after another, each of which waits for the one before.
pub fn product_rate(
    device: &Device,
    case: ProductCase,
    tuning: Tuning,
) -> Result<ProductRate, GpuError> {
    let (mut stream, mut products) = (Stream::new(device, case), Products::new(tuning));
    let seconds = median_seconds(device, REPEATS, || {
        (0..DISPATCHES).for_each(|index| stream.record(device, &mut products, index));
    })?;
    Ok(ProductRate { bytes: stream.dispatch_bytes(), seconds: seconds / DISPATCHES as f64 })
}

/// Products that are measured, or that something else is measured beside.
pub(crate) struct Stream {
    pub(crate) case: ProductCase,
    weights: Buffer,
    /// Words at which codes, scales and biases of the first two matrices begin.
    parts: [[u32; 3]; 2],
    /// Bytes from one expert to the next.
    stride: u64,
    table: Buffer,
    x: Activations,
    y: Activations,
}

impl Stream {
    pub(crate) fn new(device: &Device, case: ProductCase) -> Self {
        let ProductCase { format, rows, cols, experts, pool, is_fused, n_x } = case;
        let mut sizes = part_bytes(format, rows, cols).to_vec();
        sizes.extend_from_within(..);
        let (places, both) = place(&sizes);
        let stride = if is_fused { both } else { place(&sizes[..3]).1 };
        let weights = device.buffer(stride * pool as u64);
        fill(device, &weights, stride * pool as u64);
        let words = |index: usize| [0, 1, 2].map(|part| (places[3 * index + part] / 4) as u32);
        let mut table = Vec::new();
        for index in 0..(DISPATCHES * experts) as u32 {
            // A stride without a common factor visits all of the pool before it comes back.
            table.extend([(index * 7) % pool as u32, n_x as u32]);
            let expert = index % experts as u32;
            table.extend((0..n_x as u32).map(|use_| expert * n_x as u32 + use_));
        }
        let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
        let uses = experts * n_x;
        let mut x = Activations::new(device, uses, cols);
        x.set_rows(uses);
        fill(device, &x.buffer, x.bytes());
        let mut y = Activations::new(device, uses, rows);
        y.set_rows(uses);
        Self {
            case,
            weights,
            parts: [words(0), words(1)],
            stride,
            table: device.buffer_with(&bytes),
            x,
            y,
        }
    }

    /// Bytes of weights that a dispatch reads.
    fn dispatch_bytes(&self) -> u64 {
        let ProductCase { format, rows, cols, experts, is_fused, .. } = self.case;
        let n_matrices = if is_fused { 2 } else { 1 };
        (part_bytes(format, rows, cols).iter().sum::<usize>() * experts * n_matrices) as u64
    }

    /// Records one of [`DISPATCHES`] products, which waits for the one before.
    pub(crate) fn record(&mut self, device: &Device, products: &mut Products, index: usize) {
        let ProductCase { format, rows, cols, experts, pool, is_fused, n_x } = self.case;
        let stride = (self.stride / 4) as u32;
        let operand = Operand {
            buffer: &self.weights,
            format,
            rows,
            cols,
            parts: self.parts[0],
            up: is_fused.then_some(self.parts[1]),
            stride,
        };
        if experts == 1 {
            // As the trunk is multiplied.
            let slot = (index * 7 % pool) as u32 * stride;
            let shifted = |parts: [u32; 3]| parts.map(|part| part + slot);
            let (parts, up) = (shifted(operand.parts), operand.up.map(shifted));
            let operand = Operand { parts, up, ..operand };
            products.multiply(device, &self.x, &mut [(operand, &mut self.y)]);
            return;
        }
        let begin = (index * experts * (2 + n_x)) as u32;
        let items = Items { table: &self.table, begin, len: experts as u32, n_x };
        products.multiply_experts(device, [(operand, items, &self.y)], 1, &self.x);
    }
}

/// Median seconds of what is recorded so many times, after once.
pub(crate) fn median_seconds(
    device: &Device,
    repeats: usize,
    mut record: impl FnMut(),
) -> Result<f64, GpuError> {
    let mut run = || {
        let begin = Instant::now();
        record();
        device.wait();
        begin.elapsed().as_secs_f64()
    };
    run();
    let times = (0..repeats).map(|_| run()).collect();
    device.check()?;
    Ok(median(times))
}

/// The median, of an even number the upper one.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Rows of a matrix, and matrices in memory of which `experts` are used at a time, for a measurement on a device: a
/// processor in the guise of a GPU has an hour's work with the whole.
pub fn scaled(device: &Device, rows: usize, pool: usize, experts: usize) -> (usize, usize) {
    let scale = if device.is_software() { 64 } else { 1 };
    (rows / scale, (pool / scale).max(experts))
}

/// Fills a buffer with small numbers in every format: no code or scale is special.
pub(crate) fn fill(device: &Device, buffer: &Buffer, bytes: u64) {
    const PIECE: u64 = 16 << 20;
    let mut state = 0x9e37_79b9_u32;
    let piece: Vec<u8> = (0..PIECE.min(bytes).div_ceil(4))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // No exponent is that of infinity, in halves as in whole words.
            (state & 0x3bff_3bff).to_le_bytes()
        })
        .collect();
    let mut at = 0;
    while at < bytes {
        let len = PIECE.min(bytes - at) as usize;
        device.write(buffer, at, &piece[..len]);
        device.finish_writes();
        at += PIECE;
    }
}
