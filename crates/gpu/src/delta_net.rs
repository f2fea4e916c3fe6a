//! The gated delta net between its projections.
//!
//! Three kernels: convolution with normalised queries and keys and the gates, parallel over rows; the
//! delta rule, row after row with the state in registers, parallel over columns of the states; the gated
//! norm. The state is read and written once for all rows of a call. A single row is done by one kernel,
//! with the same bits.
//!
//! For that, sums in these kernels begin with a zero that is passed in. A sum that begins with a literal
//! one begins with a product alone, and where a driver takes `fma` apart and puts it together again (Mesa's
//! software Vulkan does), it is free to round one product or the other.

use std::collections::HashMap;

use compute::{DeltaNetSpec, Span};

use crate::buffers::{Activations, Constant};
use crate::delta_state::DeltaState;
use crate::device::{Device, Kernel};
use crate::kernel::{KernelSource, unroll};
use crate::scratch::Scratch;

/// Lanes of a workgroup; eight of them are a team.
const LANES: u32 = 64;
/// Teams of a workgroup.
const TEAMS: usize = LANES as usize / 8;
/// Lanes of a workgroup that computes a single row.
const STEP_LANES: u32 = 256;
/// Most rows that a workgroup of the delta rule holds.
const HELD_ROWS: usize = 8;
/// Most values of their queries and keys: 8 KiB of its memory.
const HELD_VALUES: usize = 2048;
// Each lane reads one value of the rows that are held; the three scalars of each are fewer.
const _: () = assert!(HELD_ROWS * TEAMS <= LANES as usize);
/// Most rows that are computed at once: they bound the working memory. Fewer where this crate tests itself,
/// so that short sequences are divided.
const MAX_ROWS: usize = if cfg!(test) { 60 } else { 512 };

/// What a gated delta net reads besides the state, as [`compute::DeltaNetInputs`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) qkv: &'a Activations,
    pub(crate) z: &'a Activations,
    pub(crate) b: &'a Activations,
    pub(crate) a: &'a Activations,
    pub(crate) conv: &'a Constant,
    pub(crate) a_log: &'a Constant,
    pub(crate) dt_bias: &'a Constant,
    pub(crate) norm: &'a Constant,
}

/// Kernels of gated delta nets with their working memory.
#[derive(Debug, Default)]
pub(crate) struct DeltaNetKernels {
    compiled: HashMap<Shape, Compiled>,
    mixed: Scratch,
}

/// What the texts of the kernels depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    n_key_heads: usize,
    n_value_heads: usize,
    tiled_values: bool,
    key_dim: usize,
    value_dim: usize,
    conv_kernel: usize,
}

#[derive(Debug)]
struct Compiled {
    mix: Kernel,
    rule: Kernel,
    norm: Kernel,
    /// On devices that can bind all it needs.
    step: Option<Kernel>,
}

/// Why a gated delta net of this shape cannot be computed, if it cannot.
pub(crate) fn unsupported(spec: &DeltaNetSpec) -> Option<String> {
    let DeltaNetSpec { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel, .. } = *spec;
    if key_dim == 0 || key_dim > 256 || !key_dim.is_multiple_of(4) {
        return Some(format!(
            "linear key heads of {key_dim} values, and the GPU takes multiples of 4 up to 256"
        ));
    }
    // The values of a head are kept in the memory of a workgroup.
    if value_dim == 0 || value_dim > 1024 {
        return Some(format!("linear value heads of {value_dim} values: the GPU takes up to 1024"));
    }
    if n_key_heads == 0 || !n_value_heads.is_multiple_of(n_key_heads) || conv_kernel == 0 {
        return Some(format!(
            "{n_value_heads} linear value heads that share {n_key_heads} key heads, with a \
             convolution of {conv_kernel}"
        ));
    }
    None
}

impl DeltaNetKernels {
    /// See [`compute::Backend::gated_delta_net`].
    pub(crate) fn gated_delta_net(
        &mut self,
        device: &Device,
        spec: &DeltaNetSpec,
        inputs: Inputs<'_>,
        spans: &[Span],
        states: &mut [&mut DeltaState],
        out: &mut Activations,
    ) {
        out.set_rows(inputs.qkv.rows());
        if let Some(reason) = unsupported(spec) {
            return device.fail(reason);
        }
        let shape = Shape::of(spec);
        self.compiled.entry(shape).or_insert_with(|| shape.compile(device));
        for (span, state) in spans.iter().zip(states) {
            assert_eq!(state.len, span.position, "the state has seen what came before");
            let mut row = span.row;
            let end = span.row + span.len;
            while row < end {
                let rows = (end - row).min(MAX_ROWS).min(state.until_mark());
                match &self.compiled[&shape].step {
                    Some(kernel) if rows == 1 => {
                        step(device, kernel, spec, inputs, row, state, out);
                    }
                    _ => self.apply(device, spec, inputs, [row, rows], state, out),
                }
                state.advance(device, rows);
                row += rows;
            }
        }
    }

    /// Computes so many rows from `row` on.
    fn apply(
        &mut self,
        device: &Device,
        spec: &DeltaNetSpec,
        inputs: Inputs<'_>,
        [row, rows]: [usize; 2],
        state: &DeltaState,
        out: &Activations,
    ) {
        let shape = Shape::of(spec);
        let kernels = &self.compiled[&shape];
        let mixed = self.mixed.at_least(device, size_of::<f32>() * rows * shape.mixed_width());
        let workgroups = |teams: usize| teams.div_ceil(TEAMS) as u32;
        let scale = 1.0 / (spec.key_dim as f32).sqrt();
        let history = (state.history_at() / 4) as u32;
        device.dispatch(
            &kernels.mix,
            &[
                &inputs.qkv.buffer,
                &state.history,
                &inputs.conv.buffer,
                &inputs.a.buffer,
                &inputs.b.buffer,
                &inputs.a_log.buffer,
                &inputs.dt_bias.buffer,
                mixed,
            ],
            &[row as u32, history, scale.to_bits(), 0],
            [workgroups(spec.n_key_heads + spec.n_value_heads), rows as u32, 1],
        );
        device.dispatch(
            &kernels.rule,
            &[mixed, &state.recurrent, &inputs.qkv.buffer, &state.history, &out.buffer, mixed],
            &[row as u32, rows as u32, history, 0],
            [workgroups(spec.value_dim), spec.n_value_heads as u32, 1],
        );
        device.dispatch(
            &kernels.norm,
            &[&out.buffer, &inputs.z.buffer, &inputs.norm.buffer],
            &[row as u32, spec.eps.to_bits(), 0],
            [workgroups(spec.n_value_heads), rows as u32, 1],
        );
    }
}

/// Computes a single row.
fn step(
    device: &Device,
    kernel: &Kernel,
    spec: &DeltaNetSpec,
    inputs: Inputs<'_>,
    row: usize,
    state: &mut DeltaState,
    out: &Activations,
) {
    let scale = 1.0 / (spec.key_dim as f32).sqrt();
    let history = state.history_at();
    state.second_history = !state.second_history;
    device.dispatch(
        kernel,
        &[
            &inputs.qkv.buffer,
            &state.history,
            &inputs.conv.buffer,
            &inputs.a.buffer,
            &inputs.b.buffer,
            &inputs.a_log.buffer,
            &inputs.dt_bias.buffer,
            &state.recurrent,
            &inputs.z.buffer,
            &inputs.norm.buffer,
            &out.buffer,
        ],
        &[
            row as u32,
            (history / 4) as u32,
            (state.history_at() / 4) as u32,
            scale.to_bits(),
            spec.eps.to_bits(),
            0,
        ],
        [spec.n_value_heads as u32, 1, 1],
    );
}

impl Shape {
    fn of(spec: &DeltaNetSpec) -> Self {
        let DeltaNetSpec { n_key_heads, n_value_heads, tiled_values, key_dim, .. } = *spec;
        let DeltaNetSpec { value_dim, conv_kernel, .. } = *spec;
        Self { n_key_heads, n_value_heads, tiled_values, key_dim, value_dim, conv_kernel }
    }

    /// Values of a row of the first kernel's results.
    fn mixed_width(self) -> usize {
        let channels = 2 * self.n_key_heads * self.key_dim + self.n_value_heads * self.value_dim;
        (channels + 2 * self.n_value_heads + self.n_key_heads).next_multiple_of(4)
    }

    fn compile(self, device: &Device) -> Compiled {
        let [mix, rule, norm, step] = self.with_sources(|source| {
            (source.writes.len() <= device.max_bindings()).then(|| device.kernel(source))
        });
        let [mix, rule, norm] =
            [mix, rule, norm].map(|kernel| kernel.expect("every device has eight bindings"));
        Compiled { mix, rule, norm, step }
    }

    /// Applies a function to the sources of the kernels: of the first part, the rule, the norm, a
    /// single row.
    fn with_sources<T>(self, mut apply: impl FnMut(&KernelSource<'_>) -> T) -> [T; 4] {
        let constants = [
            ("N_KEY_HEADS", self.n_key_heads as u32),
            ("N_VALUE_HEADS", self.n_value_heads as u32),
            ("TILED", u32::from(self.tiled_values)),
            ("KEY_DIM", self.key_dim as u32),
            ("VALUE_DIM", self.value_dim as u32),
            ("TAPS", self.conv_kernel as u32),
            ("MIXED", self.mixed_width() as u32),
            ("COLUMNS", self.value_dim.div_ceil(TEAMS) as u32),
        ];
        let gates = include_str!("kernels/delta_net_gates.wgsl");
        let source = KernelSource {
            flags: &[],
            name: "delta net: mix",
            parts: &[gates, include_str!("kernels/delta_net_mix.wgsl")],
            constants: &constants,
            writes: &[false, false, false, false, false, false, false, true],
            teams: Some(LANES),
        };
        let mix = apply(&source);
        let lane_chunks = (self.key_dim / 4).div_ceil(8) as u32;
        let rule = include_str!("kernels/delta_net_rule.wgsl");
        let held = (HELD_VALUES / (2 * self.key_dim)).min(HELD_ROWS) as u32;
        let parts = (held * 2 * self.key_dim as u32 / 4).div_ceil(LANES);
        let rule = unroll(rule, &[("i", lane_chunks), ("p", parts)]);
        let constants = [&constants[..], &[("HELD", held)]].concat();
        let rule = apply(&KernelSource {
            name: "delta net: rule",
            parts: &[gates, &rule],
            constants: &constants,
            writes: &[false, true, false, true, true, false],
            ..source
        });
        let norm = apply(&KernelSource {
            name: "delta net: norm",
            parts: &[include_str!("kernels/delta_net_norm.wgsl")],
            writes: &[true, false, false],
            ..source
        });
        let mut writes = [false; 11];
        [1, 7, 10].into_iter().for_each(|binding| writes[binding] = true);
        let step = apply(&KernelSource {
            name: "delta net: one row",
            parts: &[gates, include_str!("kernels/delta_net_step.wgsl")],
            writes: &writes,
            teams: Some(STEP_LANES),
            ..source
        });
        [mix, rule, norm, step]
    }
}

#[cfg(test)]
mod tests;
