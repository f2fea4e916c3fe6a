//! Attention and gated delta net on any backend: whole sequences, cut in every way. The tests of the GPU
//! include this file, too.

use compute::{
    AttentionInputs, AttentionSpec, DeltaNetInputs, DeltaNetSpec, DeltaStateValues, KvValues,
    Reference, STATE_BLOCK, Span,
};

use super::support::{Random, Upload, assert_close, download};

/// Ways to cut a sequence into calls.
pub type Cuts<'a> = &'a [&'a [usize]];

/// Where the calls of a cut begin, and how long they are.
fn calls(cut: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    cut.iter().scan(0, |end, &len| {
        *end += len;
        Some((*end - len, len))
    })
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

/// The rows of tokens `begin..begin + len` of each sequence.
fn rows<B: Upload>(
    backend: &mut B,
    all: &[f32],
    width: usize,
    ranges: &[(usize, usize)],
) -> B::Buffer {
    let ranges = ranges.iter();
    let rows: Vec<f32> =
        ranges.flat_map(|&(b, len)| all[b * width..(b + len) * width].to_vec()).collect();
    backend.upload(&rows, width)
}

/// Inputs of an attention layer for a whole sequence.
pub struct AttentionCase {
    pub spec: AttentionSpec,
    len: usize,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
}

impl AttentionCase {
    /// `shape`: heads, key heads, width of a head, how much of it is turned.
    pub fn new(len: usize, shape: [usize; 4], gated: bool) -> Self {
        let [n_heads, n_kv_heads, head_dim, rotary_dim] = shape;
        let (rope_theta, eps) = (1e4, 1e-6);
        let spec =
            AttentionSpec { n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta, eps, gated };
        let random = &mut Random::new(head_dim as u64);
        Self {
            spec,
            len,
            query: random.numbers(len * n_heads * spec.query_width()),
            key: random.numbers(len * n_kv_heads * head_dim),
            value: random.numbers(len * n_kv_heads * head_dim),
            query_norm: random.numbers(head_dim).iter().map(|x| x + 2.0).collect(),
            key_norm: random.numbers(head_dim).iter().map(|x| x + 2.0).collect(),
        }
    }

    /// What the formulas say.
    pub fn expected(&self) -> (Vec<f32>, KvValues) {
        self.run(&mut Reference::new(), &[self.len])
    }

    fn run<B: Upload>(&self, backend: &mut B, cut: &[usize]) -> (Vec<f32>, KvValues) {
        let mut cache = backend.kv_cache(&self.spec, self.len);
        let mut outputs = Vec::new();
        for range in calls(cut) {
            outputs.extend(self.call(backend, &[range], &mut [&mut cache]));
        }
        (outputs, backend.kv_values(&self.spec, &cache))
    }

    /// One call with tokens `begin..begin + len` of each sequence.
    fn call<B: Upload>(
        &self,
        backend: &mut B,
        ranges: &[(usize, usize)],
        caches: &mut [&mut B::KvCache],
    ) -> Vec<f32> {
        let spec = &self.spec;
        let query = rows(backend, &self.query, spec.n_heads * spec.query_width(), ranges);
        let [key, value] = [&self.key, &self.value]
            .map(|all| rows(backend, all, spec.n_kv_heads * spec.head_dim, ranges));
        let [query_norm, key_norm] =
            [&self.query_norm, &self.key_norm].map(|norm| backend.vector(norm));
        let mut out = backend.buffer(2 * self.len, spec.n_heads * spec.head_dim);
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

    /// Outputs, keys and values are the expected ones, with these tolerances in this order, and the same
    /// bits however the sequence is cut.
    pub fn agrees<B: Upload>(
        &self,
        backend: &mut B,
        expected: &(Vec<f32>, KvValues),
        [output, key, value]: [f32; 3],
        cuts: Cuts<'_>,
    ) {
        let name = format!("{:?}, {}", self.spec, backend.name());
        let (whole, kv) = self.run(backend, &[self.len]);
        assert_close(&kv.keys, &expected.1.keys, key, &format!("keys, {name}"));
        assert_close(&kv.values, &expected.1.values, value, &format!("values, {name}"));
        assert_close(&whole, &expected.0, output, &name);
        for cut in cuts {
            assert_eq!(cut.iter().sum::<usize>(), self.len, "{cut:?} is the whole sequence");
            assert!(self.run(backend, cut) == (whole.clone(), kv.clone()), "{name}: {cut:?}");
        }
    }

    /// A sequence in a batch with another gives the bits that it gives alone.
    pub fn does_not_touch_others<B: Upload>(&self, backend: &mut B) {
        let (alone, _) = self.run(backend, &[self.len]);
        let width = alone.len() / self.len;
        let mut caches = [(); 2].map(|()| backend.kv_cache(&self.spec, self.len));
        let [first, second] = &mut caches;
        let begin = self.call(backend, &[(0, 40)], &mut [first]);
        assert!(begin == alone[..40 * width], "{}", backend.name());
        let both = self.call(backend, &[(40, 1), (0, 70)], &mut [first, second]);
        assert!(both[..width] == alone[40 * width..41 * width], "the decoding sequence");
        assert!(both[width..] == alone[..70 * width], "the sequence with a prompt");
    }

    /// Two blocks are read into a second cache, which goes on as the first does.
    pub fn goes_on_from_saved_blocks<B: Upload>(&self, backend: &mut B) {
        let begin = 2 * STATE_BLOCK;
        let mut cache = backend.kv_cache(&self.spec, self.len);
        self.call(backend, &[(0, begin)], &mut [&mut cache]);
        let mut copy = backend.kv_cache(&self.spec, self.len);
        for block in 0..2 {
            let bytes = backend.save_kv_block(&self.spec, &cache, block);
            assert_eq!(bytes.len(), backend.kv_block_bytes(&self.spec));
            backend.load_kv_block(&self.spec, &mut copy, &bytes);
        }
        let ranges = [(begin, self.len - begin)];
        let expected = self.call(backend, &ranges, &mut [&mut cache]);
        assert!(self.call(backend, &ranges, &mut [&mut copy]) == expected, "{}", backend.name());
        let [cache, copy] = [cache, copy].map(|cache| backend.kv_values(&self.spec, &cache));
        assert!(cache == copy, "{}", backend.name());
    }
}

/// Inputs of a gated delta net for a whole sequence.
pub struct DeltaCase {
    pub spec: DeltaNetSpec,
    len: usize,
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
    /// `shape`: key heads, value heads, width of a key, width of a value, taps of the convolution.
    pub fn new(len: usize, shape: [usize; 5], tiled_values: bool) -> Self {
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
            len,
            qkv: random.numbers(len * spec.channels()),
            z: random.numbers(len * n_value_heads * value_dim),
            b: random.numbers(len * n_value_heads).iter().map(|x| 3.0 * x).collect(),
            a: random.numbers(len * n_value_heads).iter().map(|x| 3.0 * x).collect(),
            conv: random.numbers(spec.channels() * conv_kernel),
            a_log: random.numbers(n_value_heads).iter().map(|x| x + 1.0).collect(),
            dt_bias: random.numbers(n_value_heads).iter().map(|x| x - 4.0).collect(),
            norm: random.numbers(value_dim).iter().map(|x| x + 2.0).collect(),
        }
    }

    /// What the formulas say.
    pub fn expected(&self) -> (Vec<f32>, DeltaStateValues) {
        self.run(&mut Reference::new(), &[self.len])
    }

    fn run<B: Upload>(&self, backend: &mut B, cut: &[usize]) -> (Vec<f32>, DeltaStateValues) {
        let (outputs, state) = self.pass(backend, cut, &[]);
        (outputs, backend.delta_values(&self.spec, &state))
    }

    /// All outputs, and a state that has seen everything and kept snapshots.
    fn pass<B: Upload>(
        &self,
        backend: &mut B,
        cut: &[usize],
        marks: &[usize],
    ) -> (Vec<f32>, B::DeltaState) {
        let mut state = backend.delta_state(&self.spec);
        marks.iter().for_each(|&mark| backend.mark_snapshot(&mut state, mark));
        let mut outputs = Vec::new();
        for range in calls(cut) {
            outputs.extend(self.call(backend, &[range], &mut [&mut state]));
        }
        (outputs, state)
    }

    /// One call with tokens `begin..begin + len` of each sequence.
    fn call<B: Upload>(
        &self,
        backend: &mut B,
        ranges: &[(usize, usize)],
        states: &mut [&mut B::DeltaState],
    ) -> Vec<f32> {
        let spec = &self.spec;
        let vectors =
            [&self.conv, &self.a_log, &self.dt_bias, &self.norm].map(|v| backend.vector(v));
        let [qkv, z, b, a] = [&self.qkv, &self.z, &self.b, &self.a]
            .map(|all| rows(backend, all, all.len() / self.len, ranges));
        let mut out = backend.buffer(2 * self.len, spec.n_value_heads * spec.value_dim);
        let [conv, a_log, dt_bias, norm] = &vectors;
        let inputs = DeltaNetInputs { qkv: &qkv, z: &z, b: &b, a: &a, conv, a_log, dt_bias, norm };
        backend.gated_delta_net(spec, inputs, &spans(ranges), states, &mut out);
        download(backend, &out)
    }

    /// Outputs and states are the expected ones, and the same bits however the sequence is cut.
    pub fn agrees<B: Upload>(
        &self,
        backend: &mut B,
        expected: &(Vec<f32>, DeltaStateValues),
        cuts: Cuts<'_>,
    ) {
        let name = format!("{:?}, {}", self.spec, backend.name());
        let (whole, state) = self.run(backend, &[self.len]);
        assert_close(&state.conv, &expected.1.conv, 0.0, &format!("history, {name}"));
        assert_close(&state.recurrent, &expected.1.recurrent, 1e-4, &format!("state, {name}"));
        assert_close(&whole, &expected.0, 2e-3, &name);
        for cut in cuts {
            assert_eq!(cut.iter().sum::<usize>(), self.len, "{cut:?} is the whole sequence");
            assert!(self.run(backend, cut) == (whole.clone(), state.clone()), "{name}: {cut:?}");
        }
    }

    /// A sequence in a batch with another gives the bits that it gives alone.
    pub fn does_not_touch_others<B: Upload>(&self, backend: &mut B) {
        let (alone, _) = self.run(backend, &[self.len]);
        let width = alone.len() / self.len;
        let mut states = [(); 2].map(|()| backend.delta_state(&self.spec));
        let [first, second] = &mut states;
        let begin = self.call(backend, &[(0, 40)], &mut [first]);
        assert!(begin == alone[..40 * width], "{}", backend.name());
        let both = self.call(backend, &[(40, 1), (0, 70)], &mut [first, second]);
        assert!(both[..width] == alone[40 * width..41 * width], "the decoding sequence");
        assert!(both[width..] == alone[..70 * width], "the sequence with a prompt");
    }

    /// Snapshots made in the midst of calls make a second state, which goes on as the first does.
    pub fn goes_on_from_snapshots<B: Upload>(
        &self,
        backend: &mut B,
        marks: &[usize],
        cuts: Cuts<'_>,
    ) {
        let spec = &self.spec;
        for cut in cuts {
            let (outputs, mut state) = self.pass(backend, cut, marks);
            for &mark in marks {
                let bytes = backend.take_snapshot(&mut state, mark).expect("it was passed");
                assert_eq!(bytes.len(), backend.snapshot_bytes(spec));
                assert!(backend.take_snapshot(&mut state, mark).is_none(), "it is taken once");
                let mut copy = backend.delta_state(spec);
                backend.load_snapshot(spec, &mut copy, mark, &bytes);
                let rest = self.call(backend, &[(mark, self.len - mark)], &mut [&mut copy]);
                let width = outputs.len() / self.len;
                assert!(rest == outputs[mark * width..], "{}", backend.name());
                let [copy, state] = [&copy, &state].map(|state| backend.delta_values(spec, state));
                assert!(copy == state, "{}", backend.name());
            }
        }
    }
}
