//! Inner loops in plain Rust, for any machine.

use checkpoint::{FloatType, Format, decode_floats};

use crate::cpu::integer;
use crate::cpu::kernels::{Isa, Kernels, Lanes, TILE_ROWS, Tile, TileSums, sum_lanes};
use crate::cpu::math::PLAIN;
use crate::cpu::scores::by_tiles;

pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    math: &PLAIN,
    dot_tile,
    dot_floats: |float, rows, x, out| {
        decode_eights(float, rows, x, out, |weights, x, lanes| {
            for lane in 0..8 {
                lanes[lane] += weights[lane] * x[lane];
            }
        });
    },
    dequantize,
    dot,
    dots,
    scores: |scores, out| by_tiles(scores, dot_tile, out),
    quantize: |x, out| integer::quantize_portable(x, out),
    multiply: integer::portable::multiply,
    weighted_sums,
};

fn dot_tile(tile: Tile<'_>, sums: &mut TileSums) {
    for token in 0..tile.n_tokens {
        let x = &tile.tokens[token * tile.token_stride..][..tile.cols];
        for row in 0..tile.n_rows {
            let weights = &tile.weights[row * tile.weight_stride..][..tile.cols];
            add_products(weights, x, &mut sums[token * TILE_ROWS + row]);
        }
    }
}

/// Decodes eight values at a time and adds their products to the lanes by `add`.
pub(crate) fn decode_eights(
    float: FloatType,
    rows: &[u8],
    x: &[f32],
    out: &mut [f32],
    add: impl Fn(&[f32; 8], &[f32; 8], &mut Lanes),
) {
    let size = float.size();
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(x.len() * size)) {
        let mut lanes = Lanes::default();
        for (bytes, x) in row.chunks(8 * size).zip(x.chunks(8)) {
            let [mut weights, mut values] = [[0.0; 8]; 2];
            decode_floats(float, bytes, &mut weights[..x.len()]);
            values[..x.len()].copy_from_slice(x);
            add(&weights, &values, &mut lanes);
        }
        *out = sum_lanes(&lanes);
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = Lanes::default();
    add_products(x, y, &mut lanes);
    sum_lanes(&lanes)
}

fn add_products(x: &[f32], y: &[f32], lanes: &mut Lanes) {
    let (x, x_tail) = x.as_chunks::<8>();
    let (y, y_tail) = y.as_chunks::<8>();
    for (x, y) in x.iter().zip(y) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_tail.iter().zip(y_tail)) {
        *lane += x * y;
    }
}

fn dots(rows: &[f32], x: &[f32], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(x.len())) {
        *out = dot(row, x);
    }
}

fn weighted_sums(n: usize, weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let n_rows = weights.len() / n;
    if n_rows == 0 {
        return;
    }
    let width = out.len() / n;
    for (weights, out) in weights.chunks_exact(n_rows).zip(out.chunks_exact_mut(width)) {
        weighted_sum(weights, rows, out);
    }
}

fn weighted_sum(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    for (weight, row) in weights.iter().zip(rows.chunks_exact(out.len())) {
        for (out, value) in out.iter_mut().zip(row) {
            *out += weight * value;
        }
    }
}

pub(crate) fn dequantize(
    format: Format,
    data: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [f32],
) {
    checkpoint::dequantize_row(format, data, scales, biases, out);
}
