//! Attention with an online softmax over a cache of keys and values ([`crate::kv_cache`]).
//!
//! Three kernels: one norms and turns heads and fills the cache, one attends, one ends. Keys are taken in
//! segments of absolute positions, which are merged in order. Where rows are few, each segment is a
//! workgroup's, and the last kernel merges them; where they are many, a workgroup merges the segments of
//! its rows itself. Both give the same bits.

use std::collections::HashMap;

use compute::{AttentionSpec, Span, rotary_angles};

use crate::buffers::{Activations, Constant};
use crate::device::{Buffer, Device, Kernel};
use crate::kernel::{KernelSource, unroll};
use crate::kv_cache::{FIRST_CHUNK, KvCache};
use crate::scratch::Scratch;

/// Positions of a segment.
const SEGMENT: usize = 128;
/// How a workgroup cuts its work; results are the same bits whatever it is.
#[derive(Clone, Copy, Debug)]
struct Tile {
    queries: usize,
    /// Keys of a team of eight lanes at a time.
    keys: u32,
}

/// Where rows are few and the sequence is short, so that larger tiles would leave a device without work.
const FEWEST: Tile = Tile { queries: 2, keys: 1 };
/// Where rows are few: a row of the heads that share keys.
const FEW: Tile = Tile { queries: 8, keys: 1 };
/// Where they are many, each read of a key or a query serves more.
const MANY: Tile = Tile { queries: 16, keys: 2 };
/// Lanes of a workgroup that attends.
const LANES: u32 = 256;
/// Lanes of a workgroup of the first kernel.
const PREPARE_LANES: u32 = 64;
/// Lanes of a workgroup of the last kernel.
const COMBINE_LANES: usize = 64;
/// Most rows that are computed at once: they bound the working memory. This and some other bounds are lower
/// where this crate tests itself, so that short sequences reach them.
const MAX_ROWS: usize = if cfg!(test) { 192 } else { 2048 };
/// Positions of a table of angles: a chunk of the cache is a multiple.
const ANGLES: usize = FIRST_CHUNK;
/// Tiles of all segments, counted as for [`FEW`], below which they are the smallest: larger ones read keys and values less
/// often, and so many keep half of an H100's processors busy.
const FEW_TILES: usize = 64;
/// Workgroups from which on each of them merges the segments of its rows: enough to keep a large device
/// busy.
const MANY_WORKGROUPS: usize = if cfg!(test) { 40 } else { 512 };
/// Most bytes of partial results.
const MAX_PARTIAL_BYTES: usize = 64 << 20;
/// Largest width of a head: queries of a tile for few rows fill half of the smallest memory of a workgroup.
const MAX_HEAD_DIM: usize = 256;

/// What attention reads besides the cache, as [`compute::AttentionInputs`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a Activations,
    pub(crate) key: &'a Activations,
    pub(crate) value: &'a Activations,
    pub(crate) query_norm: &'a Constant,
    pub(crate) key_norm: &'a Constant,
}

/// Kernels of attention with their working memory.
#[derive(Debug, Default)]
pub(crate) struct AttentionKernels {
    compiled: HashMap<Shape, Compiled>,
    /// By the base of the frequencies (its bits) and the leading dimensions that are turned: tables of
    /// `ANGLES` positions each.
    angles: HashMap<(u64, usize), Vec<Buffer>>,
    prepared: Scratch,
    partial_sums: Scratch,
    partial_totals: Scratch,
}

/// What the texts of the kernels depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    gated: bool,
}

#[derive(Debug)]
struct Compiled {
    prepare: Kernel,
    attend: Kernel,
    /// The same in the smallest tiles.
    attend_fewest: Kernel,
    /// The same in tiles for many rows, where a workgroup has the memory for them and compiling it is worth
    /// the time.
    attend_many: Option<Kernel>,
    combine: Kernel,
}

/// Why attention of this shape cannot be computed, if it cannot.
pub(crate) fn unsupported(spec: &AttentionSpec) -> Option<String> {
    let AttentionSpec { n_heads, n_kv_heads, head_dim, rotary_dim, .. } = *spec;
    if head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(4) {
        return Some(format!(
            "heads of {head_dim} values, and the GPU takes multiples of 4 up to {MAX_HEAD_DIM}"
        ));
    }
    if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) || rotary_dim > head_dim {
        return Some(format!("{n_heads} heads that share {n_kv_heads} key heads"));
    }
    None
}

impl AttentionKernels {
    /// Most bytes of working memory, with the angles of all positions of a context.
    pub(crate) fn scratch_bytes(spec: &AttentionSpec, rows: usize, context: usize) -> u64 {
        let query_bytes = size_of::<f32>() * spec.n_heads * spec.head_dim;
        let prepared = rows.min(MAX_ROWS) * query_bytes;
        let n_segments = context.div_ceil(SEGMENT).next_multiple_of(32);
        let partials = prepared.max((rows * n_segments * query_bytes).min(MAX_PARTIAL_BYTES));
        let angles = size_of::<[f32; 2]>() * context.next_multiple_of(ANGLES) * spec.rotary_dim / 2;
        (prepared + partials + angles) as u64
    }

    /// See [`compute::Backend::attention`].
    pub(crate) fn attention(
        &mut self,
        device: &Device,
        spec: &AttentionSpec,
        inputs: Inputs<'_>,
        spans: &[Span],
        caches: &mut [&mut KvCache],
        out: &mut Activations,
    ) {
        out.set_rows(inputs.query.rows());
        if let Some(reason) = unsupported(spec) {
            return device.fail(reason);
        }
        let shape = Shape::of(spec);
        self.compiled.entry(shape).or_insert_with(|| shape.compile(device));
        for (span, cache) in spans.iter().zip(caches) {
            assert_eq!(cache.len(), span.position, "the cache holds what came before");
            let mut done = 0;
            while done < span.len {
                let position = span.position + done;
                let chunk_end = cache.next_chunk(device).positions.end;
                let end = chunk_end.min((position / ANGLES + 1) * ANGLES);
                let len = (span.len - done).min(end - position).min(MAX_ROWS);
                let piece = Span { row: span.row + done, len, position };
                self.attend(device, spec, inputs, piece, cache, out);
                done += len;
            }
        }
    }

    /// Computes rows that go to one chunk of the cache and whose angles are in one table.
    fn attend(
        &mut self,
        device: &Device,
        spec: &AttentionSpec,
        inputs: Inputs<'_>,
        piece: Span,
        cache: &mut KvCache,
        out: &Activations,
    ) {
        let Span { row, len, position } = piece;
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
        let n_tiles_of = |tile: Tile| (len * n_heads / n_kv_heads).div_ceil(tile.queries);
        let n_segments = (position + len).div_ceil(SEGMENT);
        let query_bytes = size_of::<f32>() * n_heads * head_dim * len;
        let merges_itself = n_tiles_of(FEW) * n_kv_heads >= MANY_WORKGROUPS
            || n_segments * query_bytes > MAX_PARTIAL_BYTES;
        let n_slots = if merges_itself { 1 } else { n_segments };

        let angles = self.angles.entry((spec.rope_theta.to_bits(), spec.rotary_dim)).or_default();
        while angles.len() * ANGLES <= position {
            let first = angles.len() * ANGLES;
            angles.push(angle_table(device, spec, first));
        }
        let angles = &angles[position / ANGLES];
        let prepared = self.prepared.at_least(device, query_bytes);
        // Room for some segments to come: decoding seldom allocates.
        let room = if merges_itself { 1 } else { n_slots.next_multiple_of(32) };
        let sums = self.partial_sums.at_least(device, room * query_bytes);
        let totals = self.partial_totals.at_least(device, room * 8 * n_heads * len);
        let kernels = &self.compiled[&Shape::of(spec)];
        let are_few = n_tiles_of(FEW) * n_kv_heads * n_segments < FEW_TILES;
        let (attend, tile) = match &kernels.attend_many {
            Some(many) if merges_itself => (many, MANY),
            _ if are_few && !merges_itself => (&kernels.attend_fewest, FEWEST),
            _ => (&kernels.attend, FEW),
        };

        let chunk = cache.next_chunk(device);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let n_teams = (n_heads + 2 * n_kv_heads).div_ceil(PREPARE_LANES as usize / 8);
        device.dispatch(
            &kernels.prepare,
            &[
                &inputs.query.buffer,
                &inputs.key.buffer,
                &inputs.value.buffer,
                &inputs.query_norm.buffer,
                &inputs.key_norm.buffer,
                angles,
                prepared,
                &chunk.buffer,
            ],
            &[
                row as u32,
                (position - chunk.positions.start) as u32,
                (position % ANGLES) as u32,
                spec.eps.to_bits(),
                scale.to_bits(),
            ],
            [n_teams as u32, len as u32, 1],
        );
        cache.advance(len);
        for chunk in cache.chunks() {
            let begin = chunk.positions.start;
            let end = chunk.positions.end.min(position + len);
            let (share, slot) = match merges_itself {
                true => (end.next_multiple_of(SEGMENT) - begin, 0),
                false => (SEGMENT, begin / SEGMENT),
            };
            device.dispatch(
                attend,
                &[prepared, &chunk.buffer, sums, totals],
                &[
                    len as u32,
                    position as u32,
                    begin as u32,
                    end as u32,
                    share as u32,
                    slot as u32,
                    u32::from(merges_itself && begin > 0),
                    0,
                ],
                [(end - begin).div_ceil(share) as u32, n_tiles_of(tile) as u32, n_kv_heads as u32],
            );
        }
        let share = if merges_itself { i32::MAX as usize } else { SEGMENT };
        device.dispatch(
            &kernels.combine,
            &[sums, totals, &inputs.query.buffer, &out.buffer],
            &[row as u32, len as u32, position as u32, share as u32, 0],
            [(n_heads * head_dim / 4).div_ceil(COMBINE_LANES) as u32, len as u32, 1],
        );
    }
}

impl Shape {
    fn of(spec: &AttentionSpec) -> Self {
        let AttentionSpec { n_heads, n_kv_heads, head_dim, rotary_dim, gated, .. } = *spec;
        Self { n_heads, n_kv_heads, head_dim, rotary_dim, gated }
    }

    fn compile(self, device: &Device) -> Compiled {
        let [prepare, attend, combine] = self.with_sources(|source| device.kernel(source));
        let attend_fewest = self.with_attend(FEWEST, |source| device.kernel(source));
        let is_worth_it = !device.is_software() || cfg!(test);
        let fits = self.workgroup_bytes(MANY) <= device.workgroup_bytes() as usize;
        let attend_many =
            (is_worth_it && fits).then(|| self.with_attend(MANY, |source| device.kernel(source)));
        Compiled { prepare, attend, attend_fewest, attend_many, combine }
    }

    /// Bytes of memory of a workgroup that attends: queries, scores, and what lanes add.
    fn workgroup_bytes(self, tile: Tile) -> usize {
        let values = tile.queries * (self.head_dim + SEGMENT + 2 * 8) + LANES as usize;
        size_of::<f32>() * values
    }

    /// Applies a function to the source of the kernel that attends.
    fn with_attend<T>(self, tile: Tile, apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
        let key_groups = (4 * LANES as usize / self.head_dim).min(8);
        let constants = [
            ("N_HEADS", self.n_heads as u32),
            ("N_KV_HEADS", self.n_kv_heads as u32),
            ("HEAD_DIM", self.head_dim as u32),
            ("QUERIES", tile.queries as u32),
            ("KEYS", tile.keys),
            ("SEGMENT", SEGMENT as u32),
            ("KEY_GROUPS", key_groups as u32),
        ];
        let attend = unroll(include_str!("kernels/attention.wgsl"), &[("k", tile.keys)]);
        apply(&KernelSource {
            flags: &[],
            name: "attention",
            parts: &[include_str!("kernels/attention_partial.wgsl"), &attend],
            constants: &constants,
            writes: &[false, false, true, true],
            teams: Some(LANES),
        })
    }

    /// Applies a function to the sources of the kernels: to prepare, to attend to few rows, to combine.
    fn with_sources<T>(self, mut apply: impl FnMut(&KernelSource<'_>) -> T) -> [T; 3] {
        let Self { n_heads, n_kv_heads, head_dim, rotary_dim, gated } = self;
        let query_width = if gated { 2 * head_dim } else { head_dim };
        let constants = [
            ("N_HEADS", n_heads as u32),
            ("N_KV_HEADS", n_kv_heads as u32),
            ("HEAD_DIM", head_dim as u32),
            ("QUERY_WIDTH", query_width as u32),
            ("TURNED", (rotary_dim / 2 * 2) as u32),
            ("HALF_TURNED", (rotary_dim / 2).max(1) as u32),
        ];
        let partial = include_str!("kernels/attention_partial.wgsl");
        let prepare = KernelSource {
            flags: &[],
            name: "attention: prepare",
            parts: &[include_str!("kernels/attention_prepare.wgsl")],
            constants: &constants,
            writes: &[false, false, false, false, false, false, true, true],
            teams: Some(PREPARE_LANES),
        };
        let combine = KernelSource {
            flags: &[],
            name: "attention: combine",
            parts: &[partial, include_str!("kernels/attention_combine.wgsl")],
            constants: &constants,
            writes: &[false, false, false, true],
            teams: None,
        };
        [apply(&prepare), self.with_attend(FEW, &mut apply), apply(&combine)]
    }
}

/// Cosine and sine of each frequency at `ANGLES` positions. They are computed here: sines on a device are
/// good to 2^-11, and worse for large angles.
fn angle_table(device: &Device, spec: &AttentionSpec, first: usize) -> Buffer {
    let mut angles = Vec::new();
    for position in first..first + ANGLES {
        rotary_angles(spec.rope_theta, spec.rotary_dim, position, &mut angles);
    }
    let bytes: Vec<u8> = angles.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    device.buffer_with(&bytes)
}

#[cfg(test)]
mod tests;
