//! Gated delta net in blocks aligned to absolute positions.
//!
//! The gated delta rule (arXiv 2412.06464) updates a state S with every token. Written out over a block
//! of tokens, each token's output needs only the state at the block's beginning and the tokens of the
//! block before it (G is the sum of log-decays in the block so far, k, q, v rows of the head):
//!
//! ```text
//! v'_i = beta_i (v_i - e^(G_i) S^T k_i - sum_{j<i} e^(G_i - G_j) (k_i . k_j) v'_j)
//! o_i  =               e^(G_i) S^T q_i + sum_{j<=i} e^(G_i - G_j) (q_i . k_j) v'_j
//! S   <- e^(G_C) S + sum_j e^(G_C - G_j) k_j v'_j^T           at the end of the block
//! ```
//!
//! So the state of a sequence is S at the last block boundary with the rows k, v', G since then. A
//! decoded token only reads S, half the traffic of updating it; S of a head stays in cache for all
//! tokens of a block; and since row i never depends on how tokens came in, neither does the output.

#![expect(unsafe_code, reason = "tasks write disjoint parts of states and outputs")]

use std::cell::RefCell;

use crate::backend::{DeltaNetSpec, DeltaStateValues, Span};
use crate::cpu::Machine;
use crate::cpu::kernels::Kernels;
use crate::cpu::pool::{Parts, Pool};
use crate::host::{HostBuffer, delta_gates};
use crate::snapshots::{STATE_BLOCK, Snapshots, read_floats};

/// Tokens of a block. The work inside a block grows with it, the share of the update at its end falls;
/// 32 balances them for heads of 128.
pub(crate) const BLOCK: usize = 32;
const _: () = assert!(STATE_BLOCK.is_multiple_of(BLOCK), "a saved state has no pending rows");
/// Added to the sum of squares when queries and keys are normalised.
const L2_EPS: f32 = 1e-6;
/// Channels of a task of the convolution.
const TASK_CHANNELS: usize = 512;

thread_local! {
    /// (key_dim, BLOCK): what each row of a block adds to each row of the state.
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Keys and queries of the tokens of a block, (2 * tokens, key_dim), and what they read from the
    /// state, (2 * tokens, value_dim).
    static READS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// State of a layer of a sequence.
#[derive(Debug)]
pub struct DeltaState {
    /// Tokens seen.
    len: usize,
    /// (conv_kernel - 1, channels): the last inputs of the convolution, newest last.
    conv: Vec<f32>,
    /// (n_value_heads, key_dim, value_dim): S at the beginning of the block.
    recurrent: Vec<f32>,
    /// (n_key_heads, BLOCK, key_dim): keys of the block.
    keys: Vec<f32>,
    /// (n_value_heads, BLOCK, value_dim): corrected values of the block.
    values: Vec<f32>,
    /// (n_value_heads, BLOCK): sums of log-decays.
    decays: Vec<f32>,
    snapshots: Snapshots,
}

impl DeltaState {
    pub(crate) fn new(spec: &DeltaNetSpec) -> Self {
        let [conv, recurrent, keys, values, decays] = Self::sizes(spec).map(|len| vec![0.0; len]);
        Self { len: 0, conv, recurrent, keys, values, decays, snapshots: Snapshots::default() }
    }

    pub(crate) fn bytes(spec: &DeltaNetSpec) -> u64 {
        (size_of::<f32>() * Self::sizes(spec).iter().sum::<usize>()) as u64
    }

    fn sizes(spec: &DeltaNetSpec) -> [usize; 5] {
        let DeltaNetSpec { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel, .. } =
            *spec;
        [
            (conv_kernel - 1) * spec.channels(),
            n_value_heads * key_dim * value_dim,
            n_key_heads * BLOCK * key_dim,
            n_value_heads * BLOCK * value_dim,
            n_value_heads * BLOCK,
        ]
    }

    /// Bytes of a snapshot: at the end of a block no rows are pending.
    pub(crate) fn snapshot_bytes(spec: &DeltaNetSpec) -> usize {
        let [conv, recurrent, ..] = Self::sizes(spec);
        size_of::<f32>() * (conv + recurrent)
    }

    /// See [`crate::Backend::mark_snapshot`] and [`crate::Backend::take_snapshot`].
    pub(crate) fn snapshots(&mut self) -> &mut Snapshots {
        &mut self.snapshots
    }

    /// See [`crate::Backend::load_snapshot`].
    pub(crate) fn load_snapshot(&mut self, position: usize, bytes: &[u8]) {
        assert!(position.is_multiple_of(BLOCK), "no rows are pending");
        let rest = read_floats(bytes, &mut self.conv);
        let rest = read_floats(rest, &mut self.recurrent);
        assert!(rest.is_empty(), "the bytes are those of a snapshot");
        self.len = position;
    }

    /// The state after the last token, as the plain recurrence has it.
    pub(crate) fn contents(&self, kernels: &Kernels, spec: &DeltaNetSpec) -> DeltaStateValues {
        let mut recurrent = self.recurrent.clone();
        let pending = self.len % BLOCK;
        let head_len = spec.key_dim * spec.value_dim;
        if pending > 0 {
            for (head, state) in recurrent.chunks_exact_mut(head_len).enumerate() {
                self.head(spec, head).fold_into(kernels, state, pending, spec.value_dim);
            }
        }
        DeltaStateValues { conv: self.conv.clone(), recurrent }
    }

    /// The rows of the block of a value head.
    fn head(&self, spec: &DeltaNetSpec, head: usize) -> BlockRows<'_> {
        let DeltaNetSpec { key_dim, value_dim, .. } = *spec;
        let key_head = spec.key_head(head);
        BlockRows {
            keys: &self.keys[key_head * BLOCK * key_dim..][..BLOCK * key_dim],
            values: &self.values[head * BLOCK * value_dim..][..BLOCK * value_dim],
            decays: &self.decays[head * BLOCK..][..BLOCK],
        }
    }
}

/// Keys, corrected values and sums of log-decays of a block of a value head.
#[derive(Clone, Copy)]
struct BlockRows<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    decays: &'a [f32],
}

impl BlockRows<'_> {
    /// `S <- e^(G_n) S + sum_j e^(G_n - G_j) k_j v'_j^T` over the first `n` rows.
    fn fold_into(&self, kernels: &Kernels, state: &mut [f32], n: usize, value_dim: usize) {
        let key_dim = state.len() / value_dim;
        let last = self.decays[n - 1];
        let decay = last.exp();
        let mut remaining = [0.0; BLOCK];
        for (remaining, decay) in remaining.iter_mut().zip(&self.decays[..n]) {
            *remaining = (last - decay).exp();
        }
        state.iter_mut().for_each(|value| *value *= decay);
        WEIGHTS.with_borrow_mut(|weights| {
            weights.clear();
            weights.resize(key_dim * n, 0.0);
            for (j, key) in self.keys.chunks_exact(key_dim).enumerate().take(n) {
                for (d, key) in key.iter().enumerate() {
                    weights[d * n + j] = remaining[j] * key;
                }
            }
            (kernels.weighted_sums)(key_dim, weights, self.values, state);
        });
    }
}

/// What [`gated_delta_net`] reads.
pub(crate) struct Inputs<'a> {
    pub(crate) qkv: &'a HostBuffer,
    pub(crate) z: &'a HostBuffer,
    pub(crate) b: &'a HostBuffer,
    pub(crate) a: &'a HostBuffer,
    pub(crate) conv: &'a [f32],
    pub(crate) a_log: &'a [f32],
    pub(crate) dt_bias: &'a [f32],
    pub(crate) norm: &'a [f32],
}

/// Working memory of [`gated_delta_net`], for one block of tokens.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// (BLOCK, channels): queries, keys, values after the convolution.
    mixed: Vec<f32>,
}

/// See [`crate::Backend::gated_delta_net`].
pub(crate) fn gated_delta_net(
    machine: &mut Machine,
    scratch: &mut Scratch,
    spec: &DeltaNetSpec,
    inputs: &Inputs<'_>,
    spans: &[Span],
    states: &mut [&mut DeltaState],
    out: &mut HostBuffer,
) {
    let Machine { kernels, pool, .. } = machine;
    out.set_rows(inputs.qkv.rows());
    scratch.mixed.resize(BLOCK * spec.channels(), 0.0);
    for (span, state) in spans.iter().zip(states) {
        assert_eq!(state.len, span.position, "the state has seen what came before");
        let (mut row, end) = (span.row, span.row + span.len);
        while row < end {
            // Up to the end of the block that the next token belongs to.
            let first = state.len % BLOCK;
            let n = (end - row).min(BLOCK - first);
            let mut part = BlockPart { kernels, pool, spec, inputs, state, row, first, n };
            part.convolve(&mut scratch.mixed);
            part.normalise(&mut scratch.mixed);
            part.apply_rule(&scratch.mixed, out);
            state.len += n;
            row += n;
            if state.len.is_multiple_of(BLOCK) {
                let DeltaState { len, conv, recurrent, snapshots, .. } = &mut **state;
                snapshots.reached(*len, [conv, recurrent]);
            }
        }
    }
}

/// Consecutive tokens of a sequence inside one block.
struct BlockPart<'a, 'b> {
    kernels: &'a Kernels,
    pool: &'a mut Pool,
    spec: &'a DeltaNetSpec,
    inputs: &'a Inputs<'b>,
    state: &'a mut DeltaState,
    /// First row of the batch.
    row: usize,
    /// Place in the block of the first token.
    first: usize,
    /// Number of tokens.
    n: usize,
}

impl BlockPart<'_, '_> {
    /// Causal convolution with SiLU; keeps the last inputs for the next tokens.
    fn convolve(&mut self, mixed: &mut [f32]) {
        let (channels, taps) = (self.spec.channels(), self.spec.conv_kernel);
        let (row, n, inputs, kernels) = (self.row, self.n, self.inputs, self.kernels);
        let history = &self.state.conv;
        let out = Parts::new(mixed);
        // Input `i` of the history and then of the batch, for a range of channels.
        let input = |i: usize, begin: usize, len: usize| match i.checked_sub(taps - 1) {
            None => &history[i * channels + begin..][..len],
            Some(i) => &inputs.qkv.row(row + i)[begin..][..len],
        };
        self.pool.run("convolve", channels.div_ceil(TASK_CHANNELS), |task| {
            let begin = task * TASK_CHANNELS;
            let len = TASK_CHANNELS.min(channels - begin);
            for i in 0..n {
                // SAFETY: each task has its own channels.
                let out = unsafe { out.part(i * channels + begin, len) };
                let weights = &inputs.conv[begin * taps..(begin + len) * taps];
                if taps == 4 {
                    let x = [0, 1, 2, 3].map(|tap| input(i + tap, begin, len));
                    (kernels.math.convolve4)(weights, x, out);
                } else {
                    out.fill(0.0);
                    for tap in 0..taps {
                        let weights = weights[tap..].iter().step_by(taps);
                        let x = input(i + tap, begin, len);
                        for ((out, x), weight) in out.iter_mut().zip(x).zip(weights) {
                            *out += x * weight;
                        }
                    }
                }
                (kernels.math.silu)(out);
            }
        });
        // The last inputs are the history of what comes next.
        let keep = taps - 1;
        if n < keep {
            self.state.conv.copy_within(n * channels.., 0);
        }
        for i in keep.saturating_sub(n)..keep {
            let from = inputs.qkv.row(row + n + i - keep);
            self.state.conv[i * channels..][..channels].copy_from_slice(from);
        }
    }

    /// Normalises queries and keys, scales queries, and appends keys to the block.
    fn normalise(&mut self, mixed: &mut [f32]) {
        let DeltaNetSpec { n_key_heads, key_dim, .. } = *self.spec;
        let (channels, first, kernels) = (self.spec.channels(), self.first, self.kernels);
        let scale = 1.0 / (key_dim as f32).sqrt();
        let (mixed, keys) = (Parts::new(mixed), Parts::new(&mut self.state.keys));
        self.pool.run("normalise", self.n, |i| {
            for head in 0..n_key_heads {
                // SAFETY: each task has its own token.
                let query = unsafe { mixed.part(i * channels + head * key_dim, key_dim) };
                normalise(kernels, query, scale);
                let begin = i * channels + (n_key_heads + head) * key_dim;
                // SAFETY: as above; keys follow all queries of the token.
                let key = unsafe { mixed.part(begin, key_dim) };
                normalise(kernels, key, 1.0);
                // SAFETY: each token has its own place in the block.
                let out = unsafe { keys.part((head * BLOCK + first + i) * key_dim, key_dim) };
                out.copy_from_slice(key);
            }
        });
    }

    /// The delta rule and the gated norm, head by head; folds the block into the state when full.
    fn apply_rule(&mut self, mixed: &[f32], out: &mut HostBuffer) {
        let (spec, inputs, kernels) = (self.spec, self.inputs, self.kernels);
        let (row, first, n) = (self.row, self.first, self.n);
        let DeltaNetSpec { key_dim, value_dim, n_value_heads, .. } = *spec;
        let head_len = key_dim * value_dim;
        let width = out.width();
        let DeltaState { recurrent, keys, values, decays, .. } = &mut *self.state;
        let keys = &*keys;
        let [recurrent, values, decays] = [recurrent, values, decays].map(|v| Parts::new(v));
        let out = Parts::new(out.values_mut());
        self.pool.run("delta rule", n_value_heads, |head| {
            // SAFETY: each task has its own head, here and below.
            let state = unsafe { recurrent.part(head * head_len, head_len) };
            // SAFETY: as above.
            let values = unsafe { values.part(head * BLOCK * value_dim, BLOCK * value_dim) };
            // SAFETY: as above.
            let decays = unsafe { decays.part(head * BLOCK, BLOCK) };
            let key_head = spec.key_head(head);
            let keys = &keys[key_head * BLOCK * key_dim..][..BLOCK * key_dim];
            let key = |j: usize| &keys[j * key_dim..][..key_dim];
            let channels = spec.channels();
            let query = |i: usize| &mixed[i * channels + key_head * key_dim..][..key_dim];
            let value_begin = 2 * spec.n_key_heads * key_dim + head * value_dim;
            let value = |i: usize| &mixed[i * channels + value_begin..][..value_dim];
            // What all tokens read from the state, whose rows pass by once.
            READS.with_borrow_mut(|[vectors, reads]| {
                vectors.clear();
                (0..n).for_each(|i| vectors.extend_from_slice(key(first + i)));
                (0..n).for_each(|i| vectors.extend_from_slice(query(i)));
                reads.clear();
                reads.resize(2 * n * value_dim, 0.0);
                (kernels.weighted_sums)(2 * n, vectors, state, reads);
                let (by_key, by_query) = reads.split_at(n * value_dim);
                for i in 0..n {
                    let place = first + i;
                    let (g, beta) = delta_gates(
                        inputs.a.row(row + i)[head],
                        inputs.b.row(row + i)[head],
                        inputs.a_log[head],
                        inputs.dt_bias[head],
                    );
                    let before = if place == 0 { 0.0 } else { decays[place - 1] };
                    decays[place] = before + g;
                    let sum = decays[place];
                    let decay = sum.exp();
                    let mut remaining = [1.0; BLOCK];
                    for (remaining, decay) in remaining.iter_mut().zip(&decays[..place]) {
                        *remaining = (sum - decay).exp();
                    }
                    let mut weights = [0.0; BLOCK];

                    // The corrected value: what the state and the block do not yet give for this key.
                    let (done, rest) = values.split_at_mut(place * value_dim);
                    let corrected = &mut rest[..value_dim];
                    let read = &by_key[i * value_dim..][..value_dim];
                    for (out, (value, read)) in corrected.iter_mut().zip(value(i).iter().zip(read))
                    {
                        *out = value - decay * read;
                    }
                    (kernels.dots)(&keys[..place * key_dim], key(place), &mut weights[..place]);
                    for (weight, remaining) in weights[..place].iter_mut().zip(remaining) {
                        *weight *= -remaining;
                    }
                    kernels.weighted_sum(&weights[..place], done, corrected);
                    corrected.iter_mut().for_each(|value| *value *= beta);

                    // The output: what the state and the block give for the query.
                    let begin = (row + i) * width + head * value_dim;
                    // SAFETY: each task has its own head of every row.
                    let out = unsafe { out.part(begin, value_dim) };
                    let read = &by_query[i * value_dim..][..value_dim];
                    for (out, read) in out.iter_mut().zip(read) {
                        *out = decay * read;
                    }
                    (kernels.dots)(
                        &keys[..(place + 1) * key_dim],
                        query(i),
                        &mut weights[..=place],
                    );
                    for (weight, remaining) in weights[..=place].iter_mut().zip(remaining) {
                        *weight *= remaining;
                    }
                    kernels.weighted_sum(&weights[..=place], values, out);
                    gated_norm(kernels, spec, inputs, row + i, head, out);
                }
            });
            if first + n == BLOCK {
                let rows = BlockRows { keys, values, decays };
                rows.fold_into(kernels, state, BLOCK, value_dim);
            }
        });
    }
}

/// `x / sqrt(sum x^2 + eps) * scale` in place.
fn normalise(kernels: &Kernels, x: &mut [f32], scale: f32) {
    let factor = scale / ((kernels.dot)(x, x) + L2_EPS).sqrt();
    x.iter_mut().for_each(|value| *value *= factor);
}

/// RMS norm of a head, then the gate.
fn gated_norm(
    kernels: &Kernels,
    spec: &DeltaNetSpec,
    inputs: &Inputs<'_>,
    row: usize,
    head: usize,
    out: &mut [f32],
) {
    let mean = (kernels.dot)(out, out) / out.len() as f32;
    let scale = 1.0 / (mean + spec.eps).sqrt();
    let gate = &inputs.z.row(row)[head * spec.value_dim..][..spec.value_dim];
    for (out, weight) in out.iter_mut().zip(inputs.norm) {
        *out = *out * scale * weight;
    }
    (kernels.math.times_silu)(out, gate);
}
