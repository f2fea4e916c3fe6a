//! Whole sequences, cut in several ways, against the reference.

use compute::{Backend, DeltaNetInputs, DeltaStateValues, Reference, STATE_BLOCK};

use super::*;
use crate::testing::{Random, assert_close, devices, download, host, name, translate, upload};

const LEN: usize = 140;
const CUTS: [&[usize]; 3] = [&[LEN], &[100, 1, 1, 38], &[31, 2, 64, 1, 42]];

struct Case {
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

impl Case {
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

    fn reference(&self) -> (Vec<f32>, DeltaStateValues) {
        let Self { spec, conv, a_log, dt_bias, norm, .. } = self;
        let reference = &mut Reference::new();
        let [qkv, z, b, a] =
            [&self.qkv, &self.z, &self.b, &self.a].map(|all| host(reference, all, all.len() / LEN));
        let mut state = reference.delta_state(spec);
        let mut out = reference.buffer(LEN, spec.n_value_heads * spec.value_dim);
        let inputs = DeltaNetInputs { qkv: &qkv, z: &z, b: &b, a: &a, conv, a_log, dt_bias, norm };
        let spans = [Span { row: 0, len: LEN, position: 0 }];
        reference.gated_delta_net(spec, inputs, &spans, &mut [&mut state], &mut out);
        let mut values = Vec::new();
        reference.download(&out, &mut values);
        (values, reference.delta_values(spec, &state))
    }

    /// A state that has seen everything, and all outputs.
    fn run(&self, device: &Device, cut: &[usize], marks: &[usize]) -> (Vec<f32>, DeltaState) {
        let kernels = &mut DeltaNetKernels::default();
        let mut state = DeltaState::new(device, &self.spec);
        marks.iter().for_each(|&mark| state.mark_snapshot(mark));
        let mut outputs = Vec::new();
        for &len in cut {
            let range = (state.len, len);
            outputs.extend(self.call(device, kernels, &[range], &mut [&mut state]));
        }
        (outputs, state)
    }

    /// One call with tokens `begin..begin + len` of each sequence.
    fn call(
        &self,
        device: &Device,
        kernels: &mut DeltaNetKernels,
        ranges: &[(usize, usize)],
        states: &mut [&mut DeltaState],
    ) -> Vec<f32> {
        let [conv, a_log, dt_bias, norm] =
            [&self.conv, &self.a_log, &self.dt_bias, &self.norm].map(|v| Constant::new(device, v));
        let [qkv, z, b, a] = [&self.qkv, &self.z, &self.b, &self.a].map(|all| {
            let width = all.len() / LEN;
            let rows: Vec<f32> = ranges
                .iter()
                .flat_map(|&(begin, len)| all[begin * width..(begin + len) * width].to_vec())
                .collect();
            upload(device, &rows, width)
        });
        let mut row = 0;
        let spans = ranges.iter().map(|&(position, len)| {
            row += len;
            Span { row: row - len, len, position }
        });
        let spans: Vec<Span> = spans.collect();
        let width = self.spec.n_value_heads * self.spec.value_dim;
        let mut out = Activations::new(device, qkv.rows(), width);
        let inputs = Inputs {
            qkv: &qkv,
            z: &z,
            b: &b,
            a: &a,
            conv: &conv,
            a_log: &a_log,
            dt_bias: &dt_bias,
            norm: &norm,
        };
        kernels.gated_delta_net(device, &self.spec, inputs, &spans, states, &mut out);
        download(device, &out)
    }
}

#[test]
fn outputs_and_states_agree_and_do_not_depend_on_cuts() {
    for (shape, tiled) in [
        ([2, 4, 32, 32, 4], false),
        ([2, 4, 32, 32, 4], true),
        ([1, 3, 8, 20, 2], false),
        ([1, 2, 128, 44, 4], true),
    ] {
        let case = Case::new(shape, tiled);
        let (expected, expected_state) = case.reference();
        for device in devices() {
            let name = format!("{shape:?}, {}", name(&device));
            let (whole, state) = case.run(&device, &[LEN], &[]);
            let state = state.values(&device, &case.spec);
            assert_close(&state.conv, &expected_state.conv, 0.0, &format!("history, {name}"));
            let what = format!("state, {name}");
            assert_close(&state.recurrent, &expected_state.recurrent, 1e-4, &what);
            assert_close(&whole, &expected, 2e-3, &name);
            for cut in CUTS {
                let (outputs, cut_state) = case.run(&device, cut, &[]);
                assert!(outputs == whole, "{name}: {cut:?}");
                assert!(cut_state.values(&device, &case.spec) == state, "{name}: {cut:?}");
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_touch() {
    let case = Case::new([2, 4, 32, 32, 4], false);
    for device in devices() {
        let kernels = &mut DeltaNetKernels::default();
        let (alone, _) = case.run(&device, &[LEN], &[]);
        let width = alone.len() / LEN;
        let mut states = [(); 2].map(|()| DeltaState::new(&device, &case.spec));
        let [first, second] = &mut states;
        let begin = case.call(&device, kernels, &[(0, 40)], &mut [first]);
        assert!(begin == alone[..40 * width]);
        let both = case.call(&device, kernels, &[(40, 1), (0, 70)], &mut [first, second]);
        assert!(both[..width] == alone[40 * width..41 * width], "the decoding sequence");
        assert!(both[width..] == alone[..70 * width], "the sequence with a prompt");
    }
}

#[test]
fn a_state_goes_on_from_a_snapshot_with_the_same_bits() {
    let case = Case::new([1, 3, 8, 20, 2], false);
    for device in devices() {
        for cut in CUTS {
            let marks = [STATE_BLOCK, 2 * STATE_BLOCK];
            let (outputs, mut state) = case.run(&device, cut, &marks);
            for mark in marks {
                let bytes = state.take_snapshot(&device, mark).expect("it was marked and passed");
                assert_eq!(bytes.len(), DeltaState::snapshot_bytes(&case.spec));
                assert!(state.take_snapshot(&device, mark).is_none(), "it is taken once");
                let mut copy = DeltaState::new(&device, &case.spec);
                copy.load_snapshot(&device, mark, &bytes);
                let kernels = &mut DeltaNetKernels::default();
                let rest = case.call(&device, kernels, &[(mark, LEN - mark)], &mut [&mut copy]);
                let width = outputs.len() / LEN;
                assert!(rest == outputs[mark * width..]);
                let [copy, state] = [&copy, &state].map(|state| state.values(&device, &case.spec));
                assert!(copy == state);
            }
        }
    }
}

#[test]
fn kernels_translate_to_every_language() {
    for shape in [[2, 4, 32, 32, 4], [1, 3, 8, 20, 2], [16, 32, 128, 128, 4]] {
        Shape::of(&Case::new(shape, true).spec).with_sources(translate);
    }
}
