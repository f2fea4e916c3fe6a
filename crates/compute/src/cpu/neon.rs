//! Inner loops for 64-bit Arm.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::aarch64::*;

use crate::cpu::integer;
use crate::cpu::kernels::{Isa, Kernels, Lanes, TILE_ROWS, Tile, TileSums, sum_lanes};
use crate::cpu::math::PLAIN;
use crate::cpu::scalar;
use crate::cpu::scores::by_tiles;

/// Only given out by `Kernels::of` where the features were detected.
pub(crate) static I8MM_KERNELS: Kernels = Kernels {
    isa: Isa::NeonI8mm,
    multiply: |rows, tokens, out| {
        // SAFETY: this table is only used where NEON, its dot products and matrix products are available.
        unsafe { integer::neon::multiply_i8mm(rows, tokens, out) }
    },
    ..KERNELS
};

/// Only given out by `Kernels::of` where the features were detected.
pub(crate) static DOTPROD_KERNELS: Kernels = Kernels {
    isa: Isa::NeonDotprod,
    multiply: |rows, tokens, out| {
        // SAFETY: this table is only used where NEON and its dot products are available.
        unsafe { integer::neon::multiply_dotprod(rows, tokens, out) }
    },
    ..KERNELS
};

/// Only given out by `Kernels::of` where the features were detected.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Neon,
    // NEON belongs to every 64-bit Arm machine: plain loops are compiled for it.
    math: &PLAIN,
    quantize: |x, out| {
        // SAFETY: this table is only used where NEON is available.
        unsafe { integer::neon::quantize(x, out) }
    },
    multiply: |rows, tokens, out| {
        // SAFETY: this table is only used where NEON is available.
        unsafe { integer::neon::multiply(rows, tokens, out) }
    },
    dot_tile: |tile, sums| {
        // SAFETY: this table is only used where NEON is available.
        unsafe { dot_tile(tile, sums) }
    },
    // The compiler turns the plain loops over codes into vector code by itself.
    dequantize: scalar::dequantize,
    dot_floats: |float, rows, x, out| {
        scalar::decode_eights(float, rows, x, out, |weights, x, lanes| {
            // SAFETY: this table is only used where NEON is available.
            unsafe { store(lanes, multiply_add(load(lanes), load(weights), load(x))) }
        });
    },
    dot: |x, y| {
        // SAFETY: this table is only used where NEON is available.
        unsafe { dot(x, y) }
    },
    dots: |rows, x, out| {
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(x.len())) {
            // SAFETY: this table is only used where NEON is available.
            *out = unsafe { dot(row, x) };
        }
    },
    scores: |scores, out| {
        // SAFETY: this table is only used where NEON is available.
        by_tiles(scores, |tile, sums| unsafe { dot_tile(tile, sums) }, out);
    },
    weighted_sums: |n, weights, rows, out| {
        let (n_rows, width) = (weights.len() / n, out.len() / n);
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            // SAFETY: this table is only used where NEON is available.
            unsafe { weighted_sum(&weights[index * n_rows..(index + 1) * n_rows], rows, out) }
        }
    },
};

/// Eight running sums.
type Pair = [float32x4_t; 2];

#[target_feature(enable = "neon")]
fn load(values: &[f32; 8]) -> Pair {
    // SAFETY: eight values are readable; the loads need no alignment.
    unsafe { [vld1q_f32(values.as_ptr()), vld1q_f32(values.as_ptr().add(4))] }
}

#[target_feature(enable = "neon")]
fn store(out: &mut [f32; 8], values: Pair) {
    // SAFETY: eight values are writable; the stores need no alignment.
    unsafe {
        vst1q_f32(out.as_mut_ptr(), values[0]);
        vst1q_f32(out.as_mut_ptr().add(4), values[1]);
    }
}

#[target_feature(enable = "neon")]
fn multiply_add(acc: Pair, x: Pair, y: Pair) -> Pair {
    [vfmaq_f32(acc[0], x[0], y[0]), vfmaq_f32(acc[1], x[1], y[1])]
}

/// Fewer than eight values, and zeros behind them.
fn padded(values: &[f32]) -> [f32; 8] {
    let mut padded = [0.0; 8];
    padded[..values.len()].copy_from_slice(values);
    padded
}

#[target_feature(enable = "neon")]
fn dot_tile(tile: Tile<'_>, sums: &mut TileSums) {
    for token in 0..tile.n_tokens {
        let (x, x_tail) = tile.tokens[token * tile.token_stride..][..tile.cols].as_chunks::<8>();
        let mut acc = [[vdupq_n_f32(0.0); 2]; TILE_ROWS];
        let mut rows: [&[f32]; TILE_ROWS] = [&[]; TILE_ROWS];
        for row in 0..tile.n_rows {
            acc[row] = load(&sums[token * TILE_ROWS + row]);
            rows[row] = &tile.weights[row * tile.weight_stride..][..tile.cols];
        }
        for (index, x) in x.iter().enumerate() {
            let x = load(x);
            for row in 0..tile.n_rows {
                let weights = &rows[row].as_chunks::<8>().0[index];
                acc[row] = multiply_add(acc[row], load(weights), x);
            }
        }
        for row in 0..tile.n_rows {
            if !x_tail.is_empty() {
                let weights = rows[row].as_chunks::<8>().1;
                acc[row] = multiply_add(acc[row], load(&padded(weights)), load(&padded(x_tail)));
            }
            store(&mut sums[token * TILE_ROWS + row], acc[row]);
        }
    }
}

#[target_feature(enable = "neon")]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_tail) = x.as_chunks::<8>();
    let (y, y_tail) = y.as_chunks::<8>();
    let mut acc = [vdupq_n_f32(0.0); 2];
    for (x, y) in x.iter().zip(y) {
        acc = multiply_add(acc, load(x), load(y));
    }
    if !x_tail.is_empty() {
        acc = multiply_add(acc, load(&padded(x_tail)), load(&padded(y_tail)));
    }
    let mut lanes = Lanes::default();
    store(&mut lanes, acc);
    sum_lanes(&lanes)
}

#[target_feature(enable = "neon")]
fn weighted_sum(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let width = out.len();
    let rows = &rows[..weights.len() * width];
    // Columns whose sums stay in registers while all rows pass by.
    let (eights, tail) = out.as_chunks_mut::<8>();
    for (index, out) in eights.iter_mut().enumerate() {
        let mut acc = load(out);
        for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            let row = row[8 * index..].as_chunks::<8>().0;
            acc = multiply_add(acc, [vdupq_n_f32(*weight); 2], load(&row[0]));
        }
        store(out, acc);
    }
    let begin = width - tail.len();
    for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
        for (out, value) in tail.iter_mut().zip(&row[begin..]) {
            *out = weight.mul_add(*value, *out);
        }
    }
}
