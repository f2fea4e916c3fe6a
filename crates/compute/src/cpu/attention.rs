//! Attention with an online softmax over a paged key-value cache ([`crate::cpu::kv_cache`]).
//!
//! A task takes the query heads that share a key head, for one row or for some: each page of keys and
//! values is brought to `f32` once for all of them. Pages are visited in order of position within
//! segments of absolute positions, and segments are merged in order, so that a long context can be
//! divided among threads and the result of a row depends on its own position alone.

#![expect(unsafe_code, reason = "tasks write disjoint parts of the output")]

use std::cell::RefCell;
use std::ops::Range;

use crate::backend::{AttentionSpec, Span};
use crate::cpu::Machine;
use crate::cpu::kernels::Kernels;
use crate::cpu::kv_cache::{KvCache, PAGE};
use crate::cpu::pool::Parts;
use crate::cpu::scores::Scores;
use crate::host::{HostBuffer, rotary_angles, rotate};

/// Pages of a segment: 512 positions, some 50 microseconds of work for a key head.
const SEGMENT: usize = 8;
/// Queries of a task: few enough that their sums stay in the second-level cache.
const TILE_QUERIES: usize = 32;

thread_local! {
    static WORK: RefCell<Work> = RefCell::default();
}

/// Working memory of a task.
#[derive(Default)]
struct Work {
    /// (queries, head_dim): normed and turned.
    queries: Vec<f32>,
    /// Keys or values of a page in `f32`.
    page: Vec<f32>,
    /// (queries, positions of a page): scores, then weights.
    scores: Vec<f32>,
    segment: Partial,
    whole: Partial,
}

/// Softmax and weighted sum over some positions, for some queries.
#[derive(Debug, Default)]
struct Partial {
    /// The largest score; negative infinity where no position is visible.
    max: Vec<f32>,
    /// The sum of `e^(score - max)`.
    total: Vec<f32>,
    /// (queries, head_dim): the values weighted by `e^(score - max)`.
    sums: Vec<f32>,
}

impl Partial {
    fn reset(&mut self, n_queries: usize, head_dim: usize) {
        self.max.clear();
        self.max.resize(n_queries, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(n_queries, 0.0);
        self.sums.clear();
        self.sums.resize(n_queries * head_dim, 0.0);
    }

    /// Takes in what comes after it: of query `index`, a largest score, a sum and weighted values.
    fn merge(&mut self, index: usize, max: f32, total: f32, sums: &[f32]) {
        // Where nothing is visible. NaN is not zero, and goes on.
        if total == 0.0 {
            return;
        }
        let ours = &mut self.sums[index * sums.len()..(index + 1) * sums.len()];
        let new_max = self.max[index].max(max);
        let (keep, take) = ((self.max[index] - new_max).exp(), (max - new_max).exp());
        for (ours, theirs) in ours.iter_mut().zip(sums) {
            *ours = *ours * keep + theirs * take;
        }
        self.total[index] = self.total[index] * keep + total * take;
        self.max[index] = new_max;
    }
}

/// Working memory of [`attention`].
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Cosine and sine of the rotary angles of each row, (rows, rotary_dim / 2).
    angles: Vec<[f32; 2]>,
    /// What the angles are of: layers of a pass share them.
    angles_of: Option<(AttentionSpec, Vec<Span>)>,
    /// Partial results of segments that different tasks computed.
    partials: Vec<f32>,
}

/// Rows of a tile.
fn tile_rows(spec: &AttentionSpec) -> usize {
    (TILE_QUERIES * spec.n_kv_heads / spec.n_heads).max(1)
}

/// Bytes of partial results at a context.
pub(crate) fn scratch_bytes(spec: &AttentionSpec, context: usize) -> u64 {
    let n_segments = context.div_ceil(SEGMENT * PAGE) + 7;
    let n_queries = spec.n_heads * tile_rows(spec);
    (size_of::<f32>() * n_segments * n_queries * (spec.head_dim + 2)) as u64
}

/// What [`attention`] reads.
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a HostBuffer,
    pub(crate) key: &'a HostBuffer,
    pub(crate) value: &'a HostBuffer,
    pub(crate) query_norm: &'a [f32],
    pub(crate) key_norm: &'a [f32],
}

/// See [`crate::Backend::attention`].
pub(crate) fn attention(
    machine: &mut Machine,
    scratch: &mut Scratch,
    spec: &AttentionSpec,
    inputs: &Inputs<'_>,
    spans: &[Span],
    caches: &mut [&mut KvCache],
    out: &mut HostBuffer,
) {
    let Machine { kernels, pool, .. } = machine;
    scratch.set_angles(spec, spans);
    out.set_rows(inputs.query.rows());
    let width = out.width();
    let out = Parts::new(out.values_mut());
    let angles = Angles { pairs: spec.rotary_dim / 2, all: &scratch.angles };
    for (span, cache) in spans.iter().zip(caches) {
        assert_eq!(cache.len(), span.position, "the cache holds what came before");
        append(kernels, spec, inputs, angles, span, cache);
        let group = spec.n_heads / spec.n_kv_heads;
        let tile_rows = tile_rows(spec).min(span.len);
        let n_tiles = span.len.div_ceil(tile_rows);
        let tile = |index: usize| {
            // The last rows see the most keys: they are taken first, so that no thread ends late.
            let begin = (n_tiles - 1 - index) * tile_rows;
            let rows = begin..(begin + tile_rows).min(span.len);
            Tile { kernels, spec, inputs, angles, cache, span: *span, rows }
        };
        let finish = |tile: &Tile<'_>, kv_head: usize, whole: &Partial| {
            for (index, sum) in whole.sums.chunks_exact(spec.head_dim).enumerate() {
                let (row, head) = tile.row_and_head(kv_head, index);
                // SAFETY: each task has its own rows and heads.
                let out = unsafe { out.part(row * width + head * spec.head_dim, spec.head_dim) };
                for (out, value) in out.iter_mut().zip(sum) {
                    *out = value / whole.total[index];
                }
                (kernels.math.times_sigmoid)(out, tile.query_and_gates(row, head).1);
            }
        };
        let n_segments = cache.n_pages().div_ceil(SEGMENT);
        let n_tasks = n_tiles * spec.n_kv_heads;
        if n_segments == 1 || n_tiles > 1 || n_tasks >= 4 * pool.n_threads() {
            pool.run("attend", n_tasks, |task| {
                let (tile, kv_head) = (tile(task / spec.n_kv_heads), task % spec.n_kv_heads);
                WORK.with_borrow_mut(|work| {
                    tile.prepare(kv_head, &mut work.queries);
                    work.whole.reset(tile.n_queries(), spec.head_dim);
                    for segment in 0..n_segments {
                        tile.attend(kv_head, segment, work);
                        let Partial { max, total, sums } = &work.segment;
                        for (index, sums) in sums.chunks_exact(spec.head_dim).enumerate() {
                            work.whole.merge(index, max[index], total[index], sums);
                        }
                    }
                    finish(&tile, kv_head, &work.whole);
                });
            });
            continue;
        }
        // Few rows of a long sequence: segments are tasks of their own, and merged afterwards.
        let per_query = spec.head_dim + 2;
        let per_task = tile_rows * group * per_query;
        let len = n_tasks * n_segments * per_task;
        if scratch.partials.len() < len {
            // Room for some segments to come: decoding seldom allocates.
            scratch.partials.reserve_exact(len + 7 * n_tasks * per_task - scratch.partials.len());
            scratch.partials.resize(len, 0.0);
        }
        let partials = Parts::new(&mut scratch.partials);
        pool.run("attend", n_tasks * n_segments, |task| {
            let (place, segment) = (task / n_segments, task % n_segments);
            let (tile, kv_head) = (tile(place / spec.n_kv_heads), place % spec.n_kv_heads);
            WORK.with_borrow_mut(|work| {
                tile.prepare(kv_head, &mut work.queries);
                tile.attend(kv_head, segment, work);
                // SAFETY: each task has its own place.
                let out = unsafe { partials.part(task * per_task, tile.n_queries() * per_query) };
                let Partial { max, total, sums } = &work.segment;
                for (index, out) in out.chunks_exact_mut(per_query).enumerate() {
                    let (head, rest) = out.split_at_mut(2);
                    head.copy_from_slice(&[max[index], total[index]]);
                    rest.copy_from_slice(&sums[index * spec.head_dim..][..spec.head_dim]);
                }
            });
        });
        let partials = &scratch.partials;
        pool.run("merge", n_tasks, |place| {
            let (tile, kv_head) = (tile(place / spec.n_kv_heads), place % spec.n_kv_heads);
            WORK.with_borrow_mut(|Work { whole, .. }| {
                whole.reset(tile.n_queries(), spec.head_dim);
                let place = &partials[place * n_segments * per_task..];
                for segment in place.chunks(per_task).take(n_segments) {
                    let queries = segment.chunks_exact(per_query).take(tile.n_queries());
                    for (index, partial) in queries.enumerate() {
                        whole.merge(index, partial[0], partial[1], &partial[2..]);
                    }
                }
                finish(&tile, kv_head, whole);
            });
        });
    }
}

impl Scratch {
    /// Computes the angles of all rows, unless they are those of the layer before.
    fn set_angles(&mut self, spec: &AttentionSpec, spans: &[Span]) {
        if self.angles_of.as_ref().is_some_and(|(of, all)| of == spec && all == spans) {
            return;
        }
        self.angles.clear();
        for span in spans {
            for position in span.position..span.position + span.len {
                rotary_angles(spec.rope_theta, spec.rotary_dim, position, &mut self.angles);
            }
        }
        let mut all = self.angles_of.take().map_or_else(Vec::new, |(_, all)| all);
        all.clear();
        all.extend_from_slice(spans);
        self.angles_of = Some((*spec, all));
    }
}

/// Rotary angles by row.
#[derive(Clone, Copy)]
struct Angles<'a> {
    pairs: usize,
    all: &'a [[f32; 2]],
}

impl<'a> Angles<'a> {
    fn of(&self, row: usize) -> &'a [[f32; 2]] {
        &self.all[row * self.pairs..][..self.pairs]
    }
}

/// Appends normed, turned keys and values to the cache.
fn append(
    kernels: &Kernels,
    spec: &AttentionSpec,
    inputs: &Inputs<'_>,
    angles: Angles<'_>,
    span: &Span,
    cache: &mut KvCache,
) {
    WORK.with_borrow_mut(|Work { queries: key, .. }| {
        for row in span.row..span.row + span.len {
            key.clear();
            key.extend_from_slice(inputs.key.row(row));
            for head in key.chunks_exact_mut(spec.head_dim) {
                norm_head(kernels, head, inputs.key_norm, spec.eps);
                rotate(head, angles.of(row));
            }
            cache.push(kernels, spec, key, inputs.value.row(row));
        }
    });
}

/// Some rows of a span, for the query heads that share a key head.
struct Tile<'a> {
    kernels: &'a Kernels,
    spec: &'a AttentionSpec,
    inputs: &'a Inputs<'a>,
    angles: Angles<'a>,
    cache: &'a KvCache,
    span: Span,
    /// Rows within the span.
    rows: Range<usize>,
}

impl<'a> Tile<'a> {
    fn group(&self) -> usize {
        self.spec.n_heads / self.spec.n_kv_heads
    }

    fn n_queries(&self) -> usize {
        self.rows.len() * self.group()
    }

    /// Row of the batch and head of a query.
    fn row_and_head(&self, kv_head: usize, index: usize) -> (usize, usize) {
        let group = self.group();
        (self.span.row + self.rows.start + index / group, kv_head * group + index % group)
    }

    /// Position of a query.
    fn position(&self, index: usize) -> usize {
        self.span.position + self.rows.start + index / self.group()
    }

    /// The projected query of a head, and its gates if there are some.
    fn query_and_gates(&self, row: usize, head: usize) -> (&'a [f32], &'a [f32]) {
        let width = self.spec.query_width();
        self.inputs.query.row(row)[head * width..][..width].split_at(self.spec.head_dim)
    }

    /// Norms and turns the queries.
    fn prepare(&self, kv_head: usize, queries: &mut Vec<f32>) {
        queries.clear();
        for index in 0..self.n_queries() {
            let (row, head) = self.row_and_head(kv_head, index);
            let begin = queries.len();
            queries.extend_from_slice(self.query_and_gates(row, head).0);
            let query = &mut queries[begin..];
            norm_head(self.kernels, query, self.inputs.query_norm, self.spec.eps);
            rotate(query, self.angles.of(row));
        }
    }

    /// Attends to the positions of a segment.
    fn attend(&self, kv_head: usize, segment: usize, work: &mut Work) {
        let Work { queries, page, scores, segment: partial, .. } = work;
        let (kernels, head_dim) = (self.kernels, self.spec.head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let n_queries = self.n_queries();
        partial.reset(n_queries, head_dim);
        let last = self.position(n_queries - 1);
        for index in segment * SEGMENT..((segment + 1) * SEGMENT).min(last / PAGE + 1) {
            let first = index * PAGE;
            let n = PAGE.min(last + 1 - first);
            scores.resize(n_queries * n, 0.0);
            let keys = self.cache.keys(kernels, self.spec, index, kv_head, n, page);
            (kernels.scores)(Scores { keys, queries, width: head_dim }, scores);
            for (query, scores) in scores.chunks_exact_mut(n).enumerate() {
                // Positions after the query's own weigh nothing.
                let visible = (self.position(query) + 1).saturating_sub(first).min(n);
                let (scores, hidden) = scores.split_at_mut(visible);
                hidden.fill(0.0);
                if scores.is_empty() {
                    continue;
                }
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
                let new_max = partial.max[query].max(largest);
                let shrink = (partial.max[query] - new_max).exp();
                if shrink != 1.0 {
                    partial.total[query] *= shrink;
                    let sums = &mut partial.sums[query * head_dim..][..head_dim];
                    sums.iter_mut().for_each(|value| *value *= shrink);
                }
                partial.max[query] = new_max;
                partial.total[query] += (kernels.math.exp_below)(scores, scale, new_max);
            }
            let values = self.cache.values(kernels, self.spec, index, kv_head, n, page);
            (kernels.weighted_sums)(n_queries, scores, values, &mut partial.sums);
        }
    }
}

/// RMS norm of a head in place.
fn norm_head(kernels: &Kernels, head: &mut [f32], weight: &[f32], eps: f32) {
    let mean = (kernels.dot)(head, head) / head.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for (value, weight) in head.iter_mut().zip(weight) {
        *value = *value * scale * weight;
    }
}
