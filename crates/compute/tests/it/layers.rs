//! Attention and gated delta net: whole sequences, cut in every way.

use compute::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    KvValues, Reference, STATE_BLOCK, Span,
};

use crate::support::{Random, assert_close, cpus, cpus_with_q8_0, download, fast_cpus, upload};

/// Ways to cut a sequence into calls.
const CUTS: [&[usize]; 5] = [&[LEN], &[1; LEN], &[100, 1, 1, 448], &[31, 2, 64, 453], &[7; 79]];
/// Longer than a segment of the cache, whose parts different threads may take.
const LEN: usize = 550;

/// Errors of outputs, keys and values with a cache of 16-bit floats, whose steps are 2^-11; keys here are
/// larger than one, and scores of many dimensions add up their errors.
const HALF_TOLERANCE: [f32; 3] = [2e-2, 1e-3, 5e-4];

/// The same in blocks of eight bits: half a step is 1/254 of a block's largest value, which is up to 7.4 for
/// keys (normed, weighted by 3, turned) and 1 for values; its 16-bit scale adds a little.
const EIGHT_BIT_TOLERANCE: [f32; 3] = [0.2, 3.2e-2, 4.5e-3];

/// The lengths of a way to cut, which may promise more tokens than there are.
fn calls(cut: &[usize]) -> Vec<(usize, usize)> {
    let mut calls = Vec::new();
    let mut begin = 0;
    for &len in cut {
        let len = len.min(LEN - begin);
        if len > 0 {
            calls.push((begin, len));
        }
        begin += len;
    }
    calls
}

/// Inputs of an attention layer for a whole sequence.
struct AttentionCase {
    spec: AttentionSpec,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
}

impl AttentionCase {
    fn new([n_heads, n_kv_heads, head_dim, rotary_dim]: [usize; 4], gated: bool) -> Self {
        let random = &mut Random::new(head_dim as u64);
        Self {
            spec: AttentionSpec {
                n_heads,
                n_kv_heads,
                head_dim,
                rotary_dim,
                rope_theta: 1e4,
                eps: 1e-6,
                gated,
            },
            query: random.numbers(LEN * n_heads * head_dim * if gated { 2 } else { 1 }),
            key: random.numbers(LEN * n_kv_heads * head_dim),
            value: random.numbers(LEN * n_kv_heads * head_dim),
            query_norm: random.numbers(head_dim).iter().map(|x| x + 2.0).collect(),
            key_norm: random.numbers(head_dim).iter().map(|x| x + 2.0).collect(),
        }
    }

    fn run<B: Backend>(&self, backend: &mut B, cut: &[usize]) -> (Vec<f32>, KvValues) {
        let mut cache = backend.kv_cache(&self.spec, LEN);
        let mut outputs = Vec::new();
        for (begin, len) in calls(cut) {
            outputs.extend(self.call(backend, &[(begin, len)], &mut [&mut cache]));
        }
        (outputs, backend.kv_values(&self.spec, &cache))
    }

    /// One call with tokens `begin..begin + len` of each sequence.
    fn call<B: Backend>(
        &self,
        backend: &mut B,
        ranges: &[(usize, usize)],
        caches: &mut [&mut B::KvCache],
    ) -> Vec<f32> {
        let spec = &self.spec;
        let rows = |all: &[f32], width: usize| -> Vec<f32> {
            let ranges = ranges.iter();
            ranges.flat_map(|&(b, len)| all[b * width..(b + len) * width].to_vec()).collect()
        };
        let (width, kv) = (spec.n_heads * spec.query_width(), spec.n_kv_heads * spec.head_dim);
        let query = upload(backend, &rows(&self.query, width), width);
        let key = upload(backend, &rows(&self.key, kv), kv);
        let value = upload(backend, &rows(&self.value, kv), kv);
        let (query_norm, key_norm) =
            (backend.vector(&self.query_norm), backend.vector(&self.key_norm));
        let mut out = backend.buffer(2 * LEN, spec.n_heads * spec.head_dim);
        let inputs = AttentionInputs {
            query: &query,
            key: &key,
            value: &value,
            query_norm: &query_norm,
            key_norm: &key_norm,
        };
        backend.attention(spec, inputs, &spans(ranges), caches, &mut out);
        download(backend, &out)
    }
}

/// Spans of consecutive rows for sequences at these positions.
fn spans(ranges: &[(usize, usize)]) -> Vec<Span> {
    let mut row = 0;
    let spans = ranges.iter().map(|&(position, len)| {
        row += len;
        Span { row: row - len, len, position }
    });
    spans.collect()
}

#[test]
fn attention_agrees_and_does_not_depend_on_cuts() {
    for (shape, gated) in [([4, 2, 32, 8], true), ([3, 1, 20, 20], false), ([2, 2, 64, 2], true)] {
        let case = AttentionCase::new(shape, gated);
        let (expected, expected_kv) = case.run(&mut Reference::new(), &[LEN]);
        for (cpus, tolerance) in [
            (cpus(), [1e-4, 1e-4, 0.0]),
            (fast_cpus(), HALF_TOLERANCE),
            (cpus_with_q8_0(), EIGHT_BIT_TOLERANCE),
        ] {
            let [output, key, value] = tolerance;
            for mut cpu in cpus {
                let cpu = &mut cpu;
                let (whole, kv) = case.run(cpu, &[LEN]);
                assert_close(&whole, &expected, output, &cpu.name());
                assert_close(&kv.keys, &expected_kv.keys, key, "keys");
                assert_close(&kv.values, &expected_kv.values, value, "values");
                for cut in CUTS {
                    assert!(case.run(cpu, cut) == (whole.clone(), kv.clone()), "{}", cpu.name());
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_touch() {
    let case = AttentionCase::new([4, 2, 32, 8], true);
    for cpu in &mut cpus() {
        let (alone, _) = case.run(cpu, &[LEN]);
        let width = alone.len() / LEN;
        let mut caches = [cpu.kv_cache(&case.spec, LEN), cpu.kv_cache(&case.spec, LEN)];
        let [first, second] = &mut caches;
        let begin = case.call(cpu, &[(0, 40)], &mut [first]);
        assert!(begin == alone[..40 * width]);
        let both = case.call(cpu, &[(40, 1), (0, 70)], &mut [first, second]);
        assert!(both[..width] == alone[40 * width..41 * width], "the decoding sequence");
        assert!(both[width..] == alone[..70 * width], "the sequence with a prompt");
    }
}

/// Two blocks are read into a second cache, which goes on as the first does.
fn resume_attention<B: Backend>(case: &AttentionCase, backend: &mut B) {
    let begin = 2 * STATE_BLOCK;
    let mut cache = backend.kv_cache(&case.spec, LEN);
    case.call(backend, &[(0, begin)], &mut [&mut cache]);
    let mut copy = backend.kv_cache(&case.spec, LEN);
    for block in 0..2 {
        let bytes = backend.save_kv_block(&case.spec, &cache, block);
        assert_eq!(bytes.len(), backend.kv_block_bytes(&case.spec));
        assert_eq!(bytes.len() as u64, backend.kv_cache_bytes(&case.spec, STATE_BLOCK));
        backend.load_kv_block(&case.spec, &mut copy, &bytes);
    }
    let ranges = [(begin, LEN - begin)];
    let expected = case.call(backend, &ranges, &mut [&mut cache]);
    assert!(case.call(backend, &ranges, &mut [&mut copy]) == expected, "{}", backend.name());
    let [cache, copy] = [cache, copy].map(|cache| backend.kv_values(&case.spec, &cache));
    assert!(cache == copy, "{}", backend.name());
}

#[test]
fn attention_goes_on_from_saved_blocks_with_the_same_bits() {
    let case = AttentionCase::new([4, 2, 32, 8], true);
    resume_attention(&case, &mut Reference::new());
    // The dimensions of a head need not fill blocks of eight bits.
    let odd = AttentionCase::new([3, 1, 20, 20], false);
    for mut cpu in cpus().into_iter().chain(fast_cpus()).chain(cpus_with_q8_0()) {
        resume_attention(&case, &mut cpu);
        resume_attention(&odd, &mut cpu);
    }
}

/// Inputs of a gated delta net for a whole sequence.
struct DeltaCase {
    spec: DeltaNetSpec,
    qkv: Vec<f32>,
    z: Vec<f32>,
    b: Vec<f32>,
    a: Vec<f32>,
    conv: Vec<f32>,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Vec<f32>,
}

impl DeltaCase {
    fn new(shape: [usize; 5], tiled_values: bool) -> Self {
        let [n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel] = shape;
        let spec = DeltaNetSpec {
            n_key_heads,
            n_value_heads,
            tiled_values,
            key_dim,
            value_dim,
            conv_kernel,
            eps: 1e-6,
        };
        let random = &mut Random::new(key_dim as u64);
        Self {
            spec,
            qkv: random.numbers(LEN * spec.channels()),
            z: random.numbers(LEN * n_value_heads * value_dim),
            b: random.numbers(LEN * n_value_heads).iter().map(|x| 3.0 * x).collect(),
            a: random.numbers(LEN * n_value_heads).iter().map(|x| 3.0 * x).collect(),
            conv: random.numbers(spec.channels() * conv_kernel),
            a_log: random.numbers(n_value_heads).iter().map(|x| x + 1.0).collect(),
            dt_bias: random.numbers(n_value_heads).iter().map(|x| x - 4.0).collect(),
            norm: random.numbers(value_dim).iter().map(|x| x + 2.0).collect(),
        }
    }

    fn run<B: Backend>(&self, backend: &mut B, cut: &[usize]) -> (Vec<f32>, DeltaStateValues) {
        let mut state = backend.delta_state(&self.spec);
        let mut outputs = Vec::new();
        for (begin, len) in calls(cut) {
            outputs.extend(self.call(backend, (begin, len), &mut state));
        }
        (outputs, backend.delta_values(&self.spec, &state))
    }

    /// One call with tokens `begin..begin + len`.
    fn call<B: Backend>(
        &self,
        backend: &mut B,
        (begin, len): (usize, usize),
        state: &mut B::DeltaState,
    ) -> Vec<f32> {
        let spec = &self.spec;
        let vectors =
            [&self.conv, &self.a_log, &self.dt_bias, &self.norm].map(|v| backend.vector(v));
        let rows = |all: &[f32]| {
            let width = all.len() / LEN;
            (all[begin * width..(begin + len) * width].to_vec(), width)
        };
        let [qkv, z, b, a] = [&self.qkv, &self.z, &self.b, &self.a].map(|all| {
            let (rows, width) = rows(all);
            upload(backend, &rows, width)
        });
        let mut out = backend.buffer(LEN, spec.n_value_heads * spec.value_dim);
        let [conv, a_log, dt_bias, norm] = &vectors;
        let inputs = DeltaNetInputs { qkv: &qkv, z: &z, b: &b, a: &a, conv, a_log, dt_bias, norm };
        let spans = [Span { row: 0, len, position: begin }];
        backend.gated_delta_net(spec, inputs, &spans, &mut [state], &mut out);
        download(backend, &out)
    }
}

#[test]
fn the_blocked_delta_rule_is_the_recurrence_and_does_not_depend_on_cuts() {
    for (shape, tiled) in [
        ([2, 4, 32, 32, 4], false),
        ([2, 4, 32, 32, 4], true),
        ([1, 3, 8, 20, 2], false),
        ([2, 2, 16, 12, 3], true),
    ] {
        let case = DeltaCase::new(shape, tiled);
        let (expected, expected_state) = case.run(&mut Reference::new(), &[LEN]);
        for cpu in &mut cpus() {
            let (whole, state) = case.run(cpu, &[LEN]);
            assert_close(&whole, &expected, 2e-3, &cpu.name());
            assert_close(&state.recurrent, &expected_state.recurrent, 1e-4, "state");
            assert_close(&state.conv, &expected_state.conv, 0.0, "convolution");
            for cut in CUTS {
                assert!(case.run(cpu, cut) == (whole.clone(), state.clone()), "{}", cpu.name());
            }
        }
    }
}

/// A snapshot made in the midst of calls makes a second state, which goes on as the first does.
fn resume_delta_net<B: Backend>(case: &DeltaCase, backend: &mut B, cut: &[usize]) {
    let spec = &case.spec;
    let marks = [3 * STATE_BLOCK, 7 * STATE_BLOCK];
    let mut state = backend.delta_state(spec);
    marks.iter().for_each(|&mark| backend.mark_snapshot(&mut state, mark));
    let mut outputs = Vec::new();
    for range in calls(cut) {
        outputs.extend(case.call(backend, range, &mut state));
    }
    for mark in marks {
        let bytes = backend.take_snapshot(&mut state, mark).expect("it was marked and passed");
        assert_eq!(bytes.len(), backend.snapshot_bytes(spec));
        assert!(backend.take_snapshot(&mut state, mark).is_none(), "it is taken once");
        let mut copy = backend.delta_state(spec);
        backend.load_snapshot(spec, &mut copy, mark, &bytes);
        let rest = case.call(backend, (mark, LEN - mark), &mut copy);
        let width = outputs.len() / LEN;
        assert!(rest == outputs[mark * width..], "{}", backend.name());
        let [copy, state] = [&copy, &state].map(|state| backend.delta_values(spec, state));
        assert!(copy == state, "{}", backend.name());
    }
}

#[test]
fn a_delta_net_goes_on_from_a_snapshot_with_the_same_bits() {
    for shape in [[2, 4, 32, 32, 4], [1, 3, 8, 20, 2]] {
        let case = DeltaCase::new(shape, false);
        for cut in CUTS {
            resume_delta_net(&case, &mut Reference::new(), cut);
            cpus().iter_mut().for_each(|cpu| resume_delta_net(&case, cpu, cut));
        }
    }
}
