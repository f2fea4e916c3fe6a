//! The most that cooperative matrices could give to the products of prompts, measured beside `gemm.wgsl`
//! (`cargo bench -p flash-moe-gpu --bench baseline`); no model is computed by it.
//!
//! A unit of 32 columns has scales of its own on both sides, so its whole numbers are added by matrices and leave them for
//! each unit. Here that is all there is: nothing is decoded, and no order of additions is kept.

use half::f16;

use crate::device::{Buffer, Device, GpuError};
use crate::formats::UNIT;
use crate::kernel::{KernelSource, unroll};
use crate::measure::median_seconds;

/// Measurements, of which the median counts.
const REPEATS: usize = 5;
/// Products of a measurement.
const DISPATCHES: usize = 4;

/// How a workgroup of subgroups of 32 lanes is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Sixteens of rows of activations of a subgroup.
    pub sixteens: u32,
    /// Subgroups with other rows of activations.
    pub down: u32,
    /// Subgroups with other rows of weights, 32 each.
    pub across: u32,
}

impl Cut {
    fn lanes(self) -> u32 {
        32 * self.down * self.across
    }

    /// Rows of activations and of weights of a workgroup.
    fn rows(self) -> [u32; 2] {
        [16 * self.sixteens * self.down, 32 * self.across]
    }
}

/// Median seconds of a product of `[x_rows, w_rows, columns]`, which the cut divides, and the largest difference from the
/// exact result among some elements: relative, or absolute below one.
///
/// # Errors
/// If the device does not have such matrices, or fails.
pub fn matrix_rate(
    device: &Device,
    [x_rows, w_rows, columns]: [usize; 3],
    cut: Cut,
) -> Result<(f64, f32), GpuError> {
    let units = columns / UNIT;
    let operands =
        [Operand::new(device, x_rows, units, 7), Operand::new(device, w_rows, units, 11)];
    let y = device.buffer(4 * (x_rows * w_rows) as u64);
    let kernel = with_source(cut, |source| device.kernel(source));
    let [x, w] = &operands;
    let buffers = [&x.numbers, &w.numbers, &x.scales, &w.scales, &y];
    let numbers = [x_rows, w_rows, units].map(|number| number as u32);
    let [x_share, w_share] = cut.rows();
    let groups = [numbers[1] / w_share, numbers[0] / x_share, 1];
    let seconds = median_seconds(device, REPEATS, || {
        for _ in 0..DISPATCHES {
            device.dispatch(&kernel, &buffers, &numbers, groups);
        }
    })?;
    let mut bytes = Vec::new();
    device.read(&y, 0, 4 * (x_rows * w_rows) as u64, &mut bytes);
    device.check()?;
    let mut worst: f32 = 0.0;
    for index in (0..x_rows * w_rows).step_by(9973) {
        let expected = dot([x, w], index / w_rows, index % w_rows);
        let at: [u8; 4] = bytes[4 * index..][..4].try_into().expect("four bytes");
        worst = worst.max((f32::from_le_bytes(at) - expected).abs() / expected.abs().max(1.0));
    }
    Ok((seconds / DISPATCHES as f64, worst))
}

/// Rows of whole numbers of -127 to 127, with a scale for each unit.
struct Operand {
    units: usize,
    values: Vec<i8>,
    numbers: Buffer,
    scales: Buffer,
}

/// A scale that is exact in any product here.
fn scale(row: usize, unit: usize) -> f32 {
    1.0 / (1 << ((row + 3 * unit) % 8)) as f32
}

impl Operand {
    fn new(device: &Device, rows: usize, units: usize, seed: u32) -> Self {
        let mut state = seed;
        let values: Vec<i8> = (0..rows * units * UNIT)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 24) as u8).cast_signed().max(-127)
            })
            .collect();
        let halves = values.iter().flat_map(|&value| f16::from_f32(value.into()).to_le_bytes());
        let scales = (0..units * rows).flat_map(|at| scale(at % rows, at / rows).to_le_bytes());
        let numbers = device.buffer_with(&halves.collect::<Vec<u8>>());
        let scales = device.buffer_with(&scales.collect::<Vec<u8>>());
        Self { units, values, numbers, scales }
    }

    fn unit(&self, row: usize, unit: usize) -> &[i8] {
        &self.values[(row * self.units + unit) * UNIT..][..UNIT]
    }
}

fn dot([x, w]: [&Operand; 2], x_row: usize, w_row: usize) -> f32 {
    (0..x.units).fold(0.0, |sum: f32, unit| {
        let pairs = x.unit(x_row, unit).iter().zip(w.unit(w_row, unit));
        let whole: i32 = pairs.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        (whole as f32 * scale(w_row, unit)).mul_add(scale(x_row, unit), sum)
    })
}

fn with_source<T>(cut: Cut, apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    let [x_rows, w_rows] = cut.rows();
    let pieces = 8 * (x_rows + w_rows) / cut.lanes();
    let counts = [("m", cut.sixteens), ("n", 2), ("k", 2), ("q", 4), ("e", 4), ("s", pieces)];
    let text = unroll(include_str!("../kernels/baseline_matrices.wgsl"), &counts);
    apply(&KernelSource {
        name: "product, cooperative matrices",
        parts: &[&text],
        constants: &[
            ("WORKGROUP", cut.lanes()),
            ("M", cut.sixteens),
            ("DOWN", cut.down),
            ("ACROSS", cut.across),
        ],
        flags: &[],
        writes: &[false, false, false, false, true],
        teams: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To the languages that have such matrices.
    #[test]
    fn the_kernel_translates() {
        let cut = Cut { sixteens: 2, down: 2, across: 2 };
        with_source(cut, crate::testing::translate_matrices);
    }
}
