//! Products in other forms, kept to be measured beside ours (`cargo bench -p flash-moe-gpu --bench baseline`); no model is
//! computed by them. Here the 4-bit one that this program's ancestor had.
//!
//! Each weight costs two multiplications, a fused one and an addition, `acc += fma(q, s * x, b * x)`; by
//! group sums (`kernels/product.wgsl`) it costs one fused one, because the sums of x are shared by all rows.

mod matrices;

use checkpoint::{Affine, FloatType, Format};

use crate::buffers::Activations;
use crate::device::{Buffer, Device, GpuError, Kernel};
use crate::formats::part_bytes;
use crate::kernel::KernelSource;
use crate::measure::{fill, median_seconds};
use crate::weights::place;

pub use matrices::{Cut, matrix_rate};

/// The one format that the form is written for.
const FORMAT: Format = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
const WORKGROUP: u32 = 128;
/// Rows of weights of a team of eight lanes.
const ROWS: u32 = 2;
/// Dispatches of a measurement.
const DISPATCHES: usize = 64;
/// Measurements, of which the median counts.
const REPEATS: usize = 7;

/// A product to measure: rows of x, each by a matrix of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns, a multiple of 64.
    pub cols: usize,
    /// Matrices that are used in a dispatch, other ones each time.
    pub experts: usize,
    /// Matrices in memory: more than the device's caches hold.
    pub pool: usize,
}

/// Bytes of weights that a dispatch reads, and the median seconds of a dispatch among many that follow
/// each other.
pub fn fma_rate(device: &Device, case: Case) -> Result<(u64, f64), GpuError> {
    let Case { rows, cols, experts, pool } = case;
    let matrices = Matrices::new(device, rows, cols, pool);
    fill(device, &matrices.buffer, matrices.buffer.bytes());
    let slots: Vec<u32> =
        (0..DISPATCHES * experts).map(|index| (index * 7 % pool) as u32).collect();
    let slots = words(device, &slots);
    let mut x = Activations::new(device, experts, cols);
    x.set_rows(experts);
    fill(device, &x.buffer, x.bytes());
    let y = Activations::new(device, experts, rows);
    let kernel = with_source(|source| device.kernel(source));
    let seconds = median_seconds(device, REPEATS, || {
        for index in 0..DISPATCHES {
            matrices.multiply(device, &kernel, (&slots, index * experts, experts), &x, &y);
        }
    })?;
    let bytes = part_bytes(FORMAT, rows, cols).iter().sum::<usize>() * experts;
    Ok((bytes as u64, seconds / DISPATCHES as f64))
}

/// Matrices of one shape in a buffer.
struct Matrices {
    buffer: Buffer,
    rows: usize,
    cols: usize,
    /// Where codes, scales and biases begin, and bytes from a matrix to the next.
    places: Vec<u64>,
    stride: u64,
}

impl Matrices {
    fn new(device: &Device, rows: usize, cols: usize, n: usize) -> Self {
        let (places, stride) = place(&part_bytes(FORMAT, rows, cols));
        Self { buffer: device.buffer(stride * n as u64), rows, cols, places, stride }
    }

    /// Multiplies each row of `x` by the matrix that its slot names.
    fn multiply(
        &self,
        device: &Device,
        kernel: &Kernel,
        (slots, begin, len): (&Buffer, usize, usize),
        x: &Activations,
        y: &Activations,
    ) {
        let word = |bytes: u64| (bytes / 4) as u32;
        let numbers = [
            word(self.places[0]),
            word(self.places[1]),
            word(self.places[2]),
            word(self.stride),
            self.rows as u32,
            self.cols as u32,
            begin as u32,
        ];
        let groups = (self.rows as u32).div_ceil(WORKGROUP / 8 * ROWS);
        let buffers = [&self.buffer, &self.buffer, &x.buffer, &y.buffer, slots];
        device.dispatch(kernel, &buffers, &numbers, [groups, len as u32, 1]);
    }
}

fn with_source<T>(apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "product, FMA form",
        parts: &[include_str!("kernels/baseline_fma.wgsl")],
        constants: &[("N_ROWS", ROWS)],
        flags: &[],
        writes: &[false, false, false, true, false],
        teams: Some(WORKGROUP),
    })
}

fn words(device: &Device, words: &[u32]) -> Buffer {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    device.buffer_with(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Random, assert_close, devices, download, matrix, name, translate, upload,
    };

    #[test]
    fn the_baseline_computes_the_same_product() {
        let (rows, cols, n) = (37, 192, 3);
        for device in devices() {
            let mut random = Random::new(11);
            let x = random.numbers(2 * cols);
            let matrices = Matrices::new(&device, rows, cols, n);
            let mut expected = vec![0.0; 2 * rows];
            for slot in 0..n {
                let stored = matrix(&mut random, FORMAT, rows, cols);
                let parts = [stored.data(), stored.scales(), stored.biases()];
                for (part, place) in parts.iter().zip(&matrices.places) {
                    device.write(&matrices.buffer, slot as u64 * matrices.stride + place, part);
                }
                // Slots 2 and 0 are used, in this order.
                let Some(item) = [Some(1), None, Some(0)][slot] else { continue };
                let values = crate::tests::expected(&x[item * cols..][..cols], &stored);
                expected[item * rows..][..rows].copy_from_slice(&values);
            }
            let slots = words(&device, &[9, 2, 0]);
            let x = upload(&device, &x, cols);
            let mut y = Activations::new(&device, 2, rows);
            let kernel = with_source(|source| device.kernel(source));
            y.set_rows(2);
            matrices.multiply(&device, &kernel, (&slots, 1, 2), &x, &y);
            assert_close(&download(&device, &y), &expected, 2e-5, &name(&device));
        }
    }

    #[test]
    fn the_kernel_translates_to_every_language() {
        with_source(translate);
    }
}
