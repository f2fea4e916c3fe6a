//! Gated delta net: linear attention with a convolution and a gated delta rule.

use std::ops::Range;

use checkpoint::{DeltaNetConfig, Projections, VectorKind};
use compute::{Backend, DeltaNetInputs, DeltaNetSpec, Span};

use crate::source::WeightSource;

/// The weights of a gated-delta-net layer.
#[derive(Debug)]
pub(crate) struct DeltaNet<M, V> {
    pub(crate) spec: DeltaNetSpec,
    in_proj_qkv: M,
    in_proj_z: M,
    in_proj_b: M,
    in_proj_a: M,
    out_proj: M,
    conv: V,
    a_log: V,
    dt_bias: V,
    norm: V,
}

impl<M, V> DeltaNet<M, V> {
    /// Loads the projections, `{prefix}.out_proj.weight` and the small weights.
    pub(crate) fn load<S: WeightSource<Matrix = M, Vector = V>>(
        source: &mut S,
        prefix: &str,
        hidden_size: usize,
        config: &DeltaNetConfig,
        eps: f32,
    ) -> Result<Self, S::Error> {
        let DeltaNetConfig { n_key_heads, n_value_heads, key_dim, value_dim, .. } = *config;
        let DeltaNetConfig { conv_kernel, tiled_values, .. } = *config;
        let spec = DeltaNetSpec {
            n_key_heads,
            n_value_heads,
            tiled_values,
            key_dim,
            value_dim,
            conv_kernel,
            eps,
        };
        let (channels, values) = (spec.channels(), n_value_heads * value_dim);
        let [in_proj_qkv, in_proj_z] = match config.projections {
            Projections::Interleaved => load_interleaved(source, prefix, hidden_size, &spec)?,
            Projections::Separate | Projections::InterleavedGates => {
                let sizes = [("in_proj_qkv", channels), ("in_proj_z", values)];
                load_separate(source, prefix, hidden_size, sizes)?
            }
        };
        let [in_proj_b, in_proj_a] = match config.projections {
            Projections::Separate => {
                let sizes = [("in_proj_b", n_value_heads), ("in_proj_a", n_value_heads)];
                load_separate(source, prefix, hidden_size, sizes)?
            }
            Projections::Interleaved | Projections::InterleavedGates => {
                load_interleaved_gates(source, prefix, hidden_size, &spec)?
            }
        };
        let out_proj = source.matrix(&format!("{prefix}.out_proj.weight"), hidden_size, values)?;
        let mut vector =
            |name, len| source.vector(&format!("{prefix}.{name}"), len, VectorKind::Plain);
        let conv = vector("conv1d.weight", channels * conv_kernel)?;
        let a_log = vector("A_log", n_value_heads)?;
        let dt_bias = vector("dt_bias", n_value_heads)?;
        let norm = vector("norm.weight", value_dim)?;
        Ok(Self {
            spec,
            in_proj_qkv,
            in_proj_z,
            in_proj_b,
            in_proj_a,
            out_proj,
            conv,
            a_log,
            dt_bias,
            norm,
        })
    }
}

fn load_separate<S: WeightSource>(
    source: &mut S,
    prefix: &str,
    hidden_size: usize,
    [first, second]: [(&str, usize); 2],
) -> Result<[S::Matrix; 2], S::Error> {
    let mut matrix = |(name, rows): (&str, usize)| {
        source.matrix(&format!("{prefix}.{name}.weight"), rows, hidden_size)
    };
    Ok([matrix(first)?, matrix(second)?])
}

/// The rows of a key head are its query, its key, the values of its value heads, and their gates.
fn load_interleaved<S: WeightSource>(
    source: &mut S,
    prefix: &str,
    hidden_size: usize,
    spec: &DeltaNetSpec,
) -> Result<[S::Matrix; 2], S::Error> {
    let (n_heads, key) = (spec.n_key_heads, spec.key_dim);
    let values = spec.n_value_heads / n_heads * spec.value_dim;
    let stride = 2 * key + 2 * values;
    let rows = |begin, len| rows_of_key_heads(n_heads, stride, begin, len);
    let qkv = [rows(0, key), rows(key, key), rows(2 * key, values)].concat();
    let z = rows(2 * key + values, values);
    let name = format!("{prefix}.in_proj_qkvz.weight");
    let shape = (n_heads * stride, hidden_size);
    Ok([source.matrix_of_rows(&name, shape, qkv)?, source.matrix_of_rows(&name, shape, z)?])
}

/// The rows of a key head are the strengths of its value heads and then their decays.
fn load_interleaved_gates<S: WeightSource>(
    source: &mut S,
    prefix: &str,
    hidden_size: usize,
    spec: &DeltaNetSpec,
) -> Result<[S::Matrix; 2], S::Error> {
    let heads = spec.n_value_heads / spec.n_key_heads;
    let rows = |begin| rows_of_key_heads(spec.n_key_heads, 2 * heads, begin, heads);
    let name = format!("{prefix}.in_proj_ba.weight");
    let shape = (2 * spec.n_value_heads, hidden_size);
    let b = source.matrix_of_rows(&name, shape, rows(0))?;
    Ok([b, source.matrix_of_rows(&name, shape, rows(heads))?])
}

/// The same rows of every key head, which begins at a multiple of `stride`.
fn rows_of_key_heads(n_heads: usize, stride: usize, begin: usize, len: usize) -> Vec<Range<usize>> {
    (0..n_heads).map(|head| head * stride + begin..head * stride + begin + len).collect()
}

impl<M, V> DeltaNet<M, V> {
    /// `out = delta_net(x)`, all (rows, hidden).
    pub(crate) fn forward<B: Backend<Matrix = M, Vector = V>>(
        &self,
        backend: &mut B,
        scratch: &mut DeltaNetScratch<B>,
        spans: &[Span],
        states: &mut [&mut B::DeltaState],
        x: &B::Buffer,
        out: &mut B::Buffer,
    ) {
        let DeltaNetScratch { qkv, z, b, a, mixed } = scratch;
        backend.project(
            x,
            &[&self.in_proj_qkv, &self.in_proj_z, &self.in_proj_b, &self.in_proj_a],
            &mut [qkv, z, b, a],
        );
        let inputs = DeltaNetInputs {
            qkv: &*qkv,
            z: &*z,
            b: &*b,
            a: &*a,
            conv: &self.conv,
            a_log: &self.a_log,
            dt_bias: &self.dt_bias,
            norm: &self.norm,
        };
        backend.gated_delta_net(&self.spec, inputs, spans, states, mixed);
        backend.project(mixed, &[&self.out_proj], &mut [out]);
    }
}

/// Buffers of a gated-delta-net layer; layers share them.
pub(crate) struct DeltaNetScratch<B: Backend> {
    qkv: B::Buffer,
    z: B::Buffer,
    b: B::Buffer,
    a: B::Buffer,
    mixed: B::Buffer,
}

impl<B: Backend> DeltaNetScratch<B> {
    pub(crate) fn new(backend: &B, config: &DeltaNetConfig, max_rows: usize) -> Self {
        let [qkv, z, b, a, mixed] =
            Self::widths(config).map(|width| backend.buffer(max_rows, width));
        Self { qkv, z, b, a, mixed }
    }

    /// Widths of the buffers.
    pub(crate) fn widths(config: &DeltaNetConfig) -> [usize; 5] {
        let values = config.n_value_heads * config.value_dim;
        let channels = 2 * config.n_key_heads * config.key_dim + values;
        [channels, values, config.n_value_heads, config.n_value_heads, values]
    }
}
