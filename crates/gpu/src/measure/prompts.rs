//! How fast what prompts take the most time for is.

use std::time::Instant;

use checkpoint::Format;
use compute::{AttentionSpec, Span};

use crate::attention::{AttentionKernels, Inputs};
use crate::buffers::{Activations, Constant};
use crate::device::{Device, GpuError};
use crate::formats::part_bytes;
use crate::gemm::Tile;
use crate::kv_cache::KvCache;
use crate::measure::{fill, median, median_seconds};
use crate::product::{Items, Operand, Products, Tuning};
use crate::weights::place;

/// Measurements, of which the median counts.
const REPEATS: usize = 5;

/// A product of many rows to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmCase {
    /// How the weights are stored.
    pub format: Format,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Matrices, or pairs of them; each is used by as many rows of activations as the others.
    pub experts: usize,
    /// Whether gate and up are computed together: two matrices an expert.
    pub is_fused: bool,
    /// Rows of activations that a matrix is multiplied with, of all experts together.
    pub uses: usize,
}

/// Median seconds of a product, in tiles or by the kernel for few rows, and its operations, two for each weight
/// and row.
pub fn gemm_rate(
    device: &Device,
    case: GemmCase,
    tile: Option<Tile>,
) -> Result<(f64, f64), GpuError> {
    let GemmCase { format, rows, cols, experts, is_fused, uses } = case;
    let mut sizes = part_bytes(format, rows, cols).to_vec();
    sizes.extend_from_within(..);
    let (places, stride) = place(&sizes);
    let weights = device.buffer(stride * experts as u64);
    fill(device, &weights, stride * experts as u64);
    let words = |index: usize| [0, 1, 2].map(|part| (places[3 * index + part] / 4) as u32);
    let n_x = tile.map_or(8, |tile| tile.columns as usize);
    let mut table = Vec::new();
    let of_each = uses / experts;
    for expert in 0..experts {
        let all: Vec<u32> = (0..of_each).map(|index| (index * experts + expert) as u32).collect();
        for part in all.chunks(n_x) {
            table.extend([expert as u32, part.len() as u32]);
            table.extend(part);
            table.extend(std::iter::repeat_n(0, n_x - part.len()));
        }
    }
    let len = (table.len() / (2 + n_x)) as u32;
    let bytes: Vec<u8> = table.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    let table = device.buffer_with(&bytes);
    let [mut x, mut y] = [cols, rows].map(|width| Activations::new(device, uses, width));
    x.set_rows(uses);
    y.set_rows(uses);
    fill(device, &x.buffer, x.bytes());
    let operand = Operand {
        buffer: &weights,
        format,
        rows,
        cols,
        parts: words(0),
        up: is_fused.then(|| words(1)),
        stride: (stride / 4) as u32,
    };
    let mut products = Products::new(Tuning::of(device));
    if let Some(tile) = tile {
        products = products.with_tile(tile);
    }
    let seconds = median_seconds(device, REPEATS, || {
        let items = Items { table: &table, begin: 0, len, n_x };
        products.multiply_experts(device, [(operand, items, &y)], 1, &x);
    })?;
    let n_matrices = if is_fused { 2 } else { 1 };
    Ok((seconds, 2.0 * (of_each * experts * rows * cols * n_matrices) as f64))
}

/// Median seconds of attention of `rows` new rows after `position` others, and its operations.
pub fn attention_rate(
    device: &Device,
    spec: &AttentionSpec,
    rows: usize,
    position: usize,
) -> Result<(f64, f64), GpuError> {
    let mut kernels = AttentionKernels::default();
    let heads = spec.n_heads * spec.head_dim;
    let widths = [spec.n_heads * spec.query_width(), spec.n_kv_heads * spec.head_dim];
    let activations = |width| {
        let mut activations = Activations::new(device, rows, width);
        activations.set_rows(rows);
        fill(device, &activations.buffer, activations.bytes());
        activations
    };
    let [query, key, value] = [widths[0], widths[1], widths[1]].map(activations);
    let mut out = activations(heads);
    let [query_norm, key_norm] = [0; 2].map(|_| Constant::new(device, &vec![1.0; spec.head_dim]));
    let inputs = Inputs {
        query: &query,
        key: &key,
        value: &value,
        query_norm: &query_norm,
        key_norm: &key_norm,
    };
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        let mut cache = KvCache::new(spec, position + rows);
        let mut seconds = 0.0;
        for begin in (0..=position).step_by(rows) {
            let begin_time = Instant::now();
            let spans = [Span { row: 0, len: rows, position: begin }];
            kernels.attention(device, spec, inputs, &spans, &mut [&mut cache], &mut out);
            device.wait();
            seconds = begin_time.elapsed().as_secs_f64();
        }
        times.push(seconds);
    }
    device.check()?;
    let keys: usize = (position + 1..=position + rows).sum();
    Ok((median(times), 4.0 * (keys * heads) as f64))
}
