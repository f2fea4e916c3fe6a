//! Whole sequences, cut in several ways, against the reference.

use compute::{AttentionInputs, Backend, KvValues, Reference, STATE_BLOCK};

use super::*;
use crate::testing::{Random, assert_close, devices, download, host, name, translate, upload};

/// Errors of outputs, keys and values with a cache of 16-bit floats, whose steps are 2^-11.
const TOLERANCE: [f32; 3] = [5e-3, 2e-3, 5e-4];
/// Longer than two segments.
const LEN: usize = 270;
/// Ways to cut a sequence into calls. Calls of many rows merge segments in one workgroup, calls of few
/// in the last kernel.
const CUTS: [&[usize]; 3] = [&[LEN], &[200, 1, 1, 3, 65], &[31, 2, 64, 150, 1, 1, 21]];

struct Case {
    spec: AttentionSpec,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
}

impl Case {
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

    fn reference(&self) -> (Vec<f32>, KvValues) {
        let Self { spec, .. } = self;
        let reference = &mut Reference::new();
        let kv = spec.n_kv_heads * spec.head_dim;
        let query = host(reference, &self.query, spec.n_heads * spec.query_width());
        let [key, value] = [&self.key, &self.value].map(|all| host(reference, all, kv));
        let mut cache = reference.kv_cache(spec, LEN);
        let mut out = reference.buffer(LEN, spec.n_heads * spec.head_dim);
        let inputs = AttentionInputs {
            query: &query,
            key: &key,
            value: &value,
            query_norm: &self.query_norm,
            key_norm: &self.key_norm,
        };
        let spans = [Span { row: 0, len: LEN, position: 0 }];
        reference.attention(spec, inputs, &spans, &mut [&mut cache], &mut out);
        let mut values = Vec::new();
        reference.download(&out, &mut values);
        (values, reference.kv_values(spec, &cache))
    }

    fn run(&self, device: &Device, cut: &[usize]) -> (Vec<f32>, KvValues) {
        let kernels = &mut AttentionKernels::default();
        let mut cache = KvCache::new(&self.spec, LEN);
        let mut outputs = Vec::new();
        for &len in cut {
            let range = (cache.len(), len);
            outputs.extend(self.call(device, kernels, &[range], &mut [&mut cache]));
        }
        (outputs, cache.values(device, &self.spec))
    }

    /// One call with tokens `begin..begin + len` of each sequence.
    fn call(
        &self,
        device: &Device,
        kernels: &mut AttentionKernels,
        ranges: &[(usize, usize)],
        caches: &mut [&mut KvCache],
    ) -> Vec<f32> {
        let spec = &self.spec;
        let rows = |all: &[f32], width: usize| {
            let ranges = ranges.iter();
            let rows: Vec<f32> =
                ranges.flat_map(|&(b, len)| all[b * width..(b + len) * width].to_vec()).collect();
            upload(device, &rows, width)
        };
        let kv = spec.n_kv_heads * spec.head_dim;
        let query = rows(&self.query, spec.n_heads * spec.query_width());
        let [key, value] = [&self.key, &self.value].map(|all| rows(all, kv));
        let [query_norm, key_norm] =
            [&self.query_norm, &self.key_norm].map(|norm| Constant::new(device, norm));
        let inputs = Inputs {
            query: &query,
            key: &key,
            value: &value,
            query_norm: &query_norm,
            key_norm: &key_norm,
        };
        let mut row = 0;
        let spans = ranges.iter().map(|&(position, len)| {
            row += len;
            Span { row: row - len, len, position }
        });
        let spans: Vec<Span> = spans.collect();
        let mut out = Activations::new(device, query.rows(), spec.n_heads * spec.head_dim);
        kernels.attention(device, spec, inputs, &spans, caches, &mut out);
        download(device, &out)
    }
}

#[test]
fn outputs_agree_and_do_not_depend_on_cuts() {
    for (shape, gated, cuts) in [
        ([4, 2, 32, 8], true, &CUTS[..]),
        ([3, 1, 20, 20], false, &CUTS[1..2]),
        ([16, 1, 64, 2], true, &CUTS[1..2]),
        ([2, 1, 256, 64], true, &CUTS[1..2]),
    ] {
        let case = Case::new(shape, gated);
        let (expected, expected_kv) = case.reference();
        for device in devices() {
            let name = format!("{shape:?}, {}", name(&device));
            let (whole, kv) = case.run(&device, &[LEN]);
            let [output, key, value] = TOLERANCE;
            assert_close(&kv.keys, &expected_kv.keys, key, &format!("keys, {name}"));
            assert_close(&kv.values, &expected_kv.values, value, &format!("values, {name}"));
            assert_close(&whole, &expected, output, &name);
            for cut in cuts {
                assert!(case.run(&device, cut) == (whole.clone(), kv.clone()), "{name}: {cut:?}");
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_touch() {
    let case = Case::new([4, 2, 32, 8], true);
    for device in devices() {
        let kernels = &mut AttentionKernels::default();
        let (alone, _) = case.run(&device, &[LEN]);
        let width = alone.len() / LEN;
        let mut caches = [(); 2].map(|()| KvCache::new(&case.spec, LEN));
        let [first, second] = &mut caches;
        let begin = case.call(&device, kernels, &[(0, 40)], &mut [first]);
        assert!(begin == alone[..40 * width]);
        let both = case.call(&device, kernels, &[(40, 1), (0, 70)], &mut [first, second]);
        assert!(both[..width] == alone[40 * width..41 * width], "the decoding sequence");
        assert!(both[width..] == alone[..70 * width], "the sequence with a prompt");
    }
}

#[test]
fn a_cache_goes_on_from_saved_blocks_with_the_same_bits() {
    let case = Case::new([4, 2, 32, 8], true);
    for device in devices() {
        let kernels = &mut AttentionKernels::default();
        let begin = 2 * STATE_BLOCK;
        let mut cache = KvCache::new(&case.spec, LEN);
        case.call(&device, kernels, &[(0, begin)], &mut [&mut cache]);
        let mut copy = KvCache::new(&case.spec, LEN);
        for block in 0..2 {
            let bytes = cache.save_block(&device, block);
            assert_eq!(bytes.len(), KvCache::block_bytes(&case.spec));
            copy.load_block(&device, &bytes);
        }
        let range = [(begin, LEN - begin)];
        let expected = case.call(&device, kernels, &range, &mut [&mut cache]);
        assert!(case.call(&device, kernels, &range, &mut [&mut copy]) == expected);
        let [cache, copy] = [cache, copy].map(|cache| cache.values(&device, &case.spec));
        assert!(cache == copy);
    }
}

#[test]
fn kernels_translate_to_every_language() {
    for (shape, gated) in [([4, 2, 32, 8], true), ([3, 1, 20, 20], false), ([32, 2, 256, 64], true)]
    {
        Shape::of(&Case::new(shape, gated).spec).with_sources(translate);
    }
}
