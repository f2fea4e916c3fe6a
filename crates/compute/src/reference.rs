//! The plain scalar backend: the formulas as they are written, one thread, nothing clever.
//!
//! It is the oracle: every faster implementation of an operation is tested against it, and whole
//! models can be run on it to find out which of two implementations is wrong.

use crate::backend::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    KvValues, MoeOutputs, RouterSpec, Routing, ScratchNeeds, Span,
};
use crate::device::DeviceError;
use crate::host::{HostBuffer, delta_gates, rotary_angles, rotate, route_rows, sigmoid, silu};
use crate::matrix::{ExpertWeights, LoadedExpert, Matrix};
use crate::snapshots::{STATE_BLOCK, Snapshots, read_floats, write_floats};
use crate::uses::ExpertUses;

/// The plain scalar backend. Sums are added in `f64`.
#[derive(Debug, Default)]
pub struct Reference {
    row: Vec<f32>,
}

/// Keys and values of a layer of a sequence, position after position, (n_kv_heads, head_dim) each.
#[derive(Debug, Default)]
pub struct PlainKvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// State of a gated delta net after the last token.
#[derive(Debug)]
pub struct PlainDeltaState {
    values: DeltaStateValues,
    snapshots: Snapshots,
}

impl Reference {
    /// The backend.
    pub fn new() -> Self {
        Self::default()
    }

    /// `out = x W^T` for one row.
    fn product(&mut self, x: &[f32], matrix: &Matrix, out: &mut [f32]) {
        for (index, out) in out.iter_mut().enumerate() {
            decode_row(matrix, index, &mut self.row);
            *out = dot(x, &self.row);
        }
    }

    fn swiglu_row(&mut self, x: &[f32], weights: &ExpertWeights, out: &mut [f32]) {
        let mut gate = vec![0.0; weights.gate.rows];
        let mut up = vec![0.0; weights.up.rows];
        self.product(x, &weights.gate, &mut gate);
        self.product(x, &weights.up, &mut up);
        let inner: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| silu(*gate) * up).collect();
        self.product(&inner, &weights.down, out);
    }
}

fn decode_row(matrix: &Matrix, row: usize, out: &mut Vec<f32>) {
    out.resize(matrix.cols, 0.0);
    let (bytes, scale_bytes) =
        (matrix.format.row_bytes(matrix.cols), matrix.format.scale_row_bytes(matrix.cols));
    let scales = |all: &'_ [u8]| all[row * scale_bytes..][..scale_bytes].to_vec();
    let data = &matrix.data()[row * bytes..][..bytes];
    let (scales, biases) = (scales(matrix.scales()), scales(matrix.biases()));
    checkpoint::dequantize_row(matrix.format, data, &scales, &biases, out);
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
}

/// `x / sqrt(mean(x^2) + eps) * weight`.
fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
}

impl Backend for Reference {
    type Buffer = HostBuffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type KvCache = PlainKvCache;
    type DeltaState = PlainDeltaState;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn buffer(&self, max_rows: usize, width: usize) -> HostBuffer {
        HostBuffer::new(max_rows, width)
    }

    fn matrix(&self, stored: &Matrix) -> Result<Matrix, DeviceError> {
        Ok(stored.clone())
    }

    fn vector(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn kv_cache(&self, _: &AttentionSpec, _: usize) -> PlainKvCache {
        PlainKvCache::default()
    }

    fn delta_state(&self, spec: &DeltaNetSpec) -> PlainDeltaState {
        let values = DeltaStateValues {
            conv: vec![0.0; (spec.conv_kernel - 1) * spec.channels()],
            recurrent: vec![0.0; spec.n_value_heads * spec.key_dim * spec.value_dim],
        };
        PlainDeltaState { values, snapshots: Snapshots::default() }
    }

    fn kv_cache_bytes(&self, spec: &AttentionSpec, max_positions: usize) -> u64 {
        (2 * size_of::<f32>() * max_positions * spec.n_kv_heads * spec.head_dim) as u64
    }

    fn delta_state_bytes(&self, spec: &DeltaNetSpec) -> u64 {
        let conv = (spec.conv_kernel - 1) * spec.channels();
        (size_of::<f32>() * (conv + spec.n_value_heads * spec.key_dim * spec.value_dim)) as u64
    }

    fn scratch_bytes(&self, _: &ScratchNeeds<'_>) -> u64 {
        0
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut HostBuffer) {
        out.set_rows(tokens.len());
        for (row, &token) in tokens.iter().enumerate() {
            decode_row(table, token as usize, &mut self.row);
            out.row_mut(row).copy_from_slice(&self.row);
        }
    }

    fn rms_norm(&mut self, x: &HostBuffer, weight: &Vec<f32>, eps: f32, out: &mut HostBuffer) {
        out.set_rows(x.rows());
        for row in 0..x.rows() {
            out.row_mut(row).copy_from_slice(&rms_norm(x.row(row), weight, eps));
        }
    }

    fn project(&mut self, x: &HostBuffer, weights: &[&Matrix], outs: &mut [&mut HostBuffer]) {
        for (matrix, out) in weights.iter().zip(outs) {
            out.set_rows(x.rows());
            for row in 0..x.rows() {
                self.product(x.row(row), matrix, out.row_mut(row));
            }
        }
    }

    fn add(&mut self, x: &mut HostBuffer, y: &HostBuffer) {
        x.add(y);
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        inputs: AttentionInputs<'_, Self>,
        spans: &[Span],
        caches: &mut [&mut PlainKvCache],
        out: &mut HostBuffer,
    ) {
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
        out.set_rows(inputs.query.rows());
        let mut angles = Vec::new();
        for (span, cache) in spans.iter().zip(caches) {
            for index in 0..span.len {
                let (row, position) = (span.row + index, span.position + index);
                angles.clear();
                rotary_angles(spec.rope_theta, spec.rotary_dim, position, &mut angles);
                for key in inputs.key.row(row).chunks_exact(head_dim) {
                    let mut key = rms_norm(key, inputs.key_norm, spec.eps);
                    rotate(&mut key, &angles);
                    cache.keys.extend(key);
                }
                cache.values.extend_from_slice(inputs.value.row(row));
                for head in 0..n_heads {
                    let kv_head = head / (n_heads / n_kv_heads);
                    let width = spec.query_width();
                    let stored = &inputs.query.row(row)[head * width..][..width];
                    let (query, gates) = stored.split_at(head_dim);
                    let mut query = rms_norm(query, inputs.query_norm, spec.eps);
                    rotate(&mut query, &angles);
                    let place = |position: usize| (position * n_kv_heads + kv_head) * head_dim;
                    let scores: Vec<f32> = (0..=position)
                        .map(|other| dot(&query, &cache.keys[place(other)..][..head_dim]))
                        .map(|score| score / (head_dim as f32).sqrt())
                        .collect();
                    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f32 = weights.iter().sum();
                    let out = &mut out.row_mut(row)[head * head_dim..][..head_dim];
                    for (d, out) in out.iter_mut().enumerate() {
                        let terms = weights.iter().enumerate();
                        let sum: f32 = terms.map(|(p, w)| w * cache.values[place(p) + d]).sum();
                        *out = sum / total * gates.get(d).map_or(1.0, |gate| sigmoid(*gate));
                    }
                }
            }
        }
    }

    fn gated_delta_net(
        &mut self,
        spec: &DeltaNetSpec,
        inputs: DeltaNetInputs<'_, Self>,
        spans: &[Span],
        states: &mut [&mut PlainDeltaState],
        out: &mut HostBuffer,
    ) {
        let DeltaNetSpec { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel, .. } =
            *spec;
        let channels = spec.channels();
        out.set_rows(inputs.qkv.rows());
        for (span, PlainDeltaState { values: state, snapshots }) in spans.iter().zip(states) {
            for row in span.row..span.row + span.len {
                // The window of the convolution: the last inputs, and this one.
                let mut window = state.conv.clone();
                window.extend_from_slice(inputs.qkv.row(row));
                let mixed: Vec<f32> = (0..channels)
                    .map(|channel| {
                        let taps = (0..conv_kernel).map(|tap| {
                            inputs.conv[channel * conv_kernel + tap]
                                * window[tap * channels + channel]
                        });
                        silu(taps.sum())
                    })
                    .collect();
                state.conv.copy_from_slice(&window[channels..]);

                let l2norm = |x: &[f32]| -> Vec<f32> {
                    let scale = 1.0 / (dot(x, x) + 1e-6).sqrt();
                    x.iter().map(|x| x * scale).collect()
                };
                for head in 0..n_value_heads {
                    let key_head = spec.key_head(head);
                    let part = |begin: usize, len: usize| &mixed[begin..begin + len];
                    let query = l2norm(part(key_head * key_dim, key_dim));
                    let key = l2norm(part((n_key_heads + key_head) * key_dim, key_dim));
                    let value = part(2 * n_key_heads * key_dim + head * value_dim, value_dim);
                    let (g, beta) = delta_gates(
                        inputs.a.row(row)[head],
                        inputs.b.row(row)[head],
                        inputs.a_log[head],
                        inputs.dt_bias[head],
                    );
                    let state = &mut state.recurrent[head * key_dim * value_dim..];
                    let state = &mut state[..key_dim * value_dim];
                    // S <- e^g S;  delta = beta (v - S^T k);  S <- S + k delta^T;  o = S^T q
                    state.iter_mut().for_each(|value| *value *= g.exp());
                    let read = |state: &[f32], x: &[f32], column: usize| -> f32 {
                        x.iter().enumerate().map(|(d, x)| x * state[d * value_dim + column]).sum()
                    };
                    let delta: Vec<f32> = (0..value_dim)
                        .map(|column| beta * (value[column] - read(state, &key, column)))
                        .collect();
                    for (d, key) in key.iter().enumerate() {
                        for (column, delta) in delta.iter().enumerate() {
                            state[d * value_dim + column] += key * delta;
                        }
                    }
                    let scale = 1.0 / (key_dim as f32).sqrt();
                    let read: Vec<f32> =
                        (0..value_dim).map(|column| read(state, &query, column) * scale).collect();
                    let normed = rms_norm(&read, inputs.norm, spec.eps);
                    let gate = &inputs.z.row(row)[head * value_dim..];
                    let out = &mut out.row_mut(row)[head * value_dim..][..value_dim];
                    for ((out, normed), gate) in out.iter_mut().zip(normed).zip(gate) {
                        *out = normed * silu(*gate);
                    }
                }
                let position = span.position + row + 1 - span.row;
                snapshots.reached(position, [&state.conv, &state.recurrent]);
            }
        }
    }

    fn route(&mut self, logits: &HostBuffer, spec: RouterSpec, routing: &mut Routing) {
        route_rows(logits, spec, routing);
    }

    fn experts(
        &mut self,
        _: usize,
        x: &HostBuffer,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &mut HostBuffer,
    ) {
        for expert in experts {
            for use_ in uses.of(expert.index) {
                let out = out.row_mut(use_.row as usize * uses.top_k() + use_.rank as usize);
                self.swiglu_row(x.row(use_.row as usize), &expert.weights, out);
            }
        }
    }

    fn swiglu(&mut self, x: &HostBuffer, weights: &ExpertWeights, out: &mut HostBuffer) {
        out.set_rows(x.rows());
        for row in 0..x.rows() {
            self.swiglu_row(x.row(row), weights, out.row_mut(row));
        }
    }

    fn combine(&mut self, x: &mut HostBuffer, outputs: MoeOutputs<'_, Self>) {
        let MoeOutputs { routing, routed, shared } = outputs;
        for row in 0..x.rows() {
            for (column, x) in x.row_mut(row).iter_mut().enumerate() {
                for rank in 0..routing.n_used(row) {
                    let index = row * routing.top_k + rank;
                    *x += routing.weights[index] * routed.row(index)[column];
                }
                if let Some([shared, gate]) = shared {
                    *x += sigmoid(gate.row(row)[0]) * shared.row(row)[column];
                }
            }
        }
    }

    fn gather(&mut self, x: &HostBuffer, rows: &[u32], out: &mut HostBuffer) {
        out.gather(x, rows);
    }

    fn set_rows(&self, buffer: &mut HostBuffer, rows: usize) {
        buffer.set_rows(rows);
    }

    fn download(&mut self, buffer: &HostBuffer, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(buffer.values());
    }

    fn numerics(&self) -> String {
        self.name()
    }

    fn kv_block_bytes(&self, spec: &AttentionSpec) -> usize {
        self.kv_cache_bytes(spec, STATE_BLOCK) as usize
    }

    fn save_kv_block(&self, spec: &AttentionSpec, cache: &PlainKvCache, block: usize) -> Vec<u8> {
        let len = STATE_BLOCK * spec.n_kv_heads * spec.head_dim;
        let mut bytes = Vec::new();
        write_floats(&cache.keys[block * len..][..len], &mut bytes);
        write_floats(&cache.values[block * len..][..len], &mut bytes);
        bytes
    }

    fn load_kv_block(&self, spec: &AttentionSpec, cache: &mut PlainKvCache, bytes: &[u8]) {
        let len = cache.keys.len() + STATE_BLOCK * spec.n_kv_heads * spec.head_dim;
        let mut rest = bytes;
        for values in [&mut cache.keys, &mut cache.values] {
            let begin = values.len();
            values.resize(len, 0.0);
            rest = read_floats(rest, &mut values[begin..]);
        }
        assert!(rest.is_empty(), "the bytes are those of a block");
    }

    fn snapshot_bytes(&self, spec: &DeltaNetSpec) -> usize {
        self.delta_state_bytes(spec) as usize
    }

    fn mark_snapshot(&self, state: &mut PlainDeltaState, position: usize) {
        state.snapshots.mark(position);
    }

    fn take_snapshot(&self, state: &mut PlainDeltaState, position: usize) -> Option<Vec<u8>> {
        state.snapshots.take(position)
    }

    fn load_snapshot(&self, _: &DeltaNetSpec, state: &mut PlainDeltaState, _: usize, bytes: &[u8]) {
        let rest = read_floats(bytes, &mut state.values.conv);
        let rest = read_floats(rest, &mut state.values.recurrent);
        assert!(rest.is_empty(), "the bytes are those of a snapshot");
    }

    fn kv_values(&self, spec: &AttentionSpec, cache: &PlainKvCache) -> KvValues {
        let AttentionSpec { n_kv_heads, head_dim, .. } = *spec;
        let by_head = |all: &[f32]| {
            let heads = (0..n_kv_heads).flat_map(|head| {
                let positions = all.chunks_exact(n_kv_heads * head_dim);
                positions.flat_map(move |row| row[head * head_dim..][..head_dim].to_vec())
            });
            heads.collect()
        };
        KvValues { keys: by_head(&cache.keys), values: by_head(&cache.values) }
    }

    fn delta_values(&self, _: &DeltaNetSpec, state: &PlainDeltaState) -> DeltaStateValues {
        state.values.clone()
    }
}
