//! Attention with a paged key-value cache and an online softmax.
//!
//! Keys are visited in blocks aligned to absolute positions, so the result of a row depends on its own
//! position alone.

#![expect(unsafe_code, reason = "tasks write disjoint parts of the output")]

use std::cell::RefCell;

use crate::backend::{AttentionSpec, KvValues, Span};
use crate::cpu::Machine;
use crate::cpu::kernels::Kernels;
use crate::cpu::pool::Parts;
use crate::host::{HostBuffer, rotary_angles, rotate, sigmoid};

/// Positions of a page of the cache, and of a block of the softmax.
pub(crate) const PAGE: usize = 64;

thread_local! {
    /// A query head, and the weighted sum of its values.
    static HEADS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Keys and values of a layer of a sequence: pages, so that growing copies nothing.
#[derive(Debug)]
pub struct KvCache {
    pages: Vec<Page>,
    len: usize,
    max_positions: usize,
}

/// `PAGE` positions: keys and values of (n_kv_heads, PAGE, head_dim).
#[derive(Debug)]
struct Page {
    keys: Box<[f32]>,
    values: Box<[f32]>,
}

impl KvCache {
    pub(crate) fn new(max_positions: usize) -> Self {
        Self { pages: Vec::new(), len: 0, max_positions }
    }

    /// Bytes of a cache that is full.
    pub(crate) fn bytes(spec: &AttentionSpec, max_positions: usize) -> u64 {
        let positions = max_positions.next_multiple_of(PAGE);
        (2 * size_of::<f32>() * positions * spec.n_kv_heads * spec.head_dim) as u64
    }

    pub(crate) fn contents(&self, spec: &AttentionSpec) -> KvValues {
        let mut contents = KvValues { keys: Vec::new(), values: Vec::new() };
        for head in 0..spec.n_kv_heads {
            for position in 0..self.len {
                let begin = (head * PAGE + position % PAGE) * spec.head_dim;
                let page = &self.pages[position / PAGE];
                contents.keys.extend_from_slice(&page.keys[begin..begin + spec.head_dim]);
                contents.values.extend_from_slice(&page.values[begin..begin + spec.head_dim]);
            }
        }
        contents
    }

    /// Normed, turned keys and values of the next positions.
    fn append(
        &mut self,
        kernels: &Kernels,
        spec: &AttentionSpec,
        rows: std::ops::Range<usize>,
        inputs: &Inputs<'_>,
    ) {
        let AttentionSpec { n_kv_heads, head_dim, .. } = *spec;
        assert!(self.len + rows.len() <= self.max_positions, "the positions fit the cache");
        for row in rows {
            if self.len.is_multiple_of(PAGE) {
                let empty = || vec![0.0; n_kv_heads * PAGE * head_dim].into_boxed_slice();
                self.pages.push(Page { keys: empty(), values: empty() });
            }
            let slot = self.len % PAGE;
            let page = self.pages.last_mut().expect("there is a page for the position");
            for head in 0..n_kv_heads {
                let begin = (head * PAGE + slot) * head_dim;
                let out = &mut page.keys[begin..begin + head_dim];
                out.copy_from_slice(&inputs.key.row(row)[head * head_dim..][..head_dim]);
                norm_head(kernels, out, inputs.key_norm, spec.eps);
                rotate(out, inputs.angles(spec, row));
                page.values[begin..begin + head_dim]
                    .copy_from_slice(&inputs.value.row(row)[head * head_dim..][..head_dim]);
            }
            self.len += 1;
        }
    }
}

/// What [`attention`] reads.
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a HostBuffer,
    pub(crate) key: &'a HostBuffer,
    pub(crate) value: &'a HostBuffer,
    pub(crate) query_norm: &'a [f32],
    pub(crate) key_norm: &'a [f32],
    /// Cosine and sine of the rotary angles of each row, (rows, rotary_dim / 2).
    pub(crate) angles: &'a [[f32; 2]],
}

impl Inputs<'_> {
    fn angles(&self, spec: &AttentionSpec, row: usize) -> &[[f32; 2]] {
        let pairs = spec.rotary_dim / 2;
        &self.angles[row * pairs..][..pairs]
    }
}

/// The angles of all rows, for [`Inputs`].
pub(crate) fn angles(spec: &AttentionSpec, spans: &[Span]) -> Vec<[f32; 2]> {
    let mut angles = Vec::new();
    for span in spans {
        for position in span.position..span.position + span.len {
            rotary_angles(spec.rope_theta, spec.rotary_dim, position, &mut angles);
        }
    }
    angles
}

/// See [`crate::Backend::attention`].
pub(crate) fn attention(
    machine: &mut Machine,
    spec: &AttentionSpec,
    inputs: &Inputs<'_>,
    spans: &[Span],
    caches: &mut [&mut KvCache],
    out: &mut HostBuffer,
) {
    let Machine { kernels, pool, .. } = machine;
    out.set_rows(inputs.query.rows());
    for (span, cache) in spans.iter().zip(caches.iter_mut()) {
        assert_eq!(cache.len, span.position, "the cache holds what came before");
        let rows = span.row..span.row + span.len;
        cache.append(kernels, spec, rows, inputs);
    }
    let caches: Vec<&KvCache> = caches.iter().map(|cache| &**cache).collect();
    let (n_heads, width) = (spec.n_heads, out.width());
    let out = Parts::new(out.values_mut());
    for (span, cache) in spans.iter().zip(caches) {
        // The last rows see the most keys: they are taken first, so that no thread ends late.
        pool.run(span.len * n_heads, |task| {
            let (index, head) = (span.len - 1 - task / n_heads, task % n_heads);
            let row = span.row + index;
            // SAFETY: each task has its own row and head.
            let out = unsafe { out.part(row * width + head * spec.head_dim, spec.head_dim) };
            attend(kernels, spec, inputs, cache, row, span.position + index, head, out);
        });
    }
}

/// One query head of one row.
#[expect(clippy::too_many_arguments, reason = "the row and head of a loop body")]
fn attend(
    kernels: &Kernels,
    spec: &AttentionSpec,
    inputs: &Inputs<'_>,
    cache: &KvCache,
    row: usize,
    position: usize,
    head: usize,
    out: &mut [f32],
) {
    let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
    let kv_head = head / (n_heads / n_kv_heads);
    let width = spec.query_width();
    let (query, gates) = inputs.query.row(row)[head * width..][..width].split_at(head_dim);
    HEADS.with_borrow_mut(|[turned, sum]| {
        turned.clear();
        turned.extend_from_slice(query);
        norm_head(kernels, turned, inputs.query_norm, spec.eps);
        rotate(turned, inputs.angles(spec, row));
        sum.clear();
        sum.resize(head_dim, 0.0);

        let scale = 1.0 / (head_dim as f32).sqrt();
        let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
        let mut scores = [0.0; PAGE];
        for (index, page) in cache.pages[..=position / PAGE].iter().enumerate() {
            let visible = PAGE.min(position + 1 - index * PAGE);
            let begin = kv_head * PAGE * head_dim;
            let scores = &mut scores[..visible];
            (kernels.dots)(&page.keys[begin..][..visible * head_dim], turned, scores);
            scores.iter_mut().for_each(|score| *score *= scale);
            let new_max = scores.iter().copied().fold(max, f32::max);
            let shrink = (max - new_max).exp();
            if shrink != 1.0 {
                total *= shrink;
                sum.iter_mut().for_each(|value| *value *= shrink);
            }
            max = new_max;
            for score in scores.iter_mut() {
                *score = (*score - max).exp();
                total += *score;
            }
            kernels.weighted_sum(scores, &page.values[begin..], sum);
        }
        for (out, value) in out.iter_mut().zip(sum.iter()) {
            *out = value / total;
        }
        for (out, gate) in out.iter_mut().zip(gates) {
            *out *= sigmoid(*gate);
        }
    });
}

/// RMS norm of a head in place.
fn norm_head(kernels: &Kernels, head: &mut [f32], weight: &[f32], eps: f32) {
    let mean = (kernels.dot)(head, head) / head.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for (value, weight) in head.iter_mut().zip(weight) {
        *value = *value * scale * weight;
    }
}
