//! Gated delta net: linear attention with a convolution and a gated delta rule.

use checkpoint::{DeltaNetConfig, VectorKind};
use compute::{Backend, DeltaNetInputs, DeltaNetSpec, Matrix, Span};

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
        projections: Projections,
        eps: f32,
    ) -> Result<Self, S::Error> {
        let DeltaNetConfig { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel } =
            *config;
        let spec =
            DeltaNetSpec { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel, eps };
        let (channels, values) = (spec.channels(), n_value_heads * value_dim);
        let [in_proj_qkv, in_proj_z, in_proj_b, in_proj_a] = match projections {
            Projections::Separate => load_separate(source, prefix, hidden_size, &spec)?,
            Projections::Interleaved => load_interleaved(source, prefix, hidden_size, &spec)?,
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

/// How a checkpoint stores the input projections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Projections {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`.
    Separate,
    /// `in_proj_qkvz` and `in_proj_ba`, whose rows are grouped by key head.
    Interleaved,
}

fn load_separate<S: WeightSource>(
    source: &mut S,
    prefix: &str,
    hidden_size: usize,
    spec: &DeltaNetSpec,
) -> Result<[S::Matrix; 4], S::Error> {
    let mut matrix =
        |name, rows| source.matrix(&format!("{prefix}.{name}.weight"), rows, hidden_size);
    let n_heads = spec.n_value_heads;
    Ok([
        matrix("in_proj_qkv", spec.channels())?,
        matrix("in_proj_z", n_heads * spec.value_dim)?,
        matrix("in_proj_b", n_heads)?,
        matrix("in_proj_a", n_heads)?,
    ])
}

/// The rows of a key head are its query, its key, the values of its value heads, and their gates; of
/// the small matrix the strengths of its value heads and then their decays.
fn load_interleaved<S: WeightSource>(
    source: &mut S,
    prefix: &str,
    hidden_size: usize,
    spec: &DeltaNetSpec,
) -> Result<[S::Matrix; 4], S::Error> {
    let heads = spec.n_value_heads / spec.n_key_heads;
    let (key, values) = (spec.key_dim, heads * spec.value_dim);
    // The same rows of every key head, which begins at a multiple of `stride`.
    let rows = |stride: usize, begin: usize, len: usize| {
        (0..spec.n_key_heads).map(move |head| head * stride + begin..head * stride + begin + len)
    };
    let stride = 2 * key + 2 * values;
    let queries = rows(stride, 0, key);
    let qkv = queries.chain(rows(stride, key, key)).chain(rows(stride, 2 * key, values)).collect();
    let z = rows(stride, 2 * key + values, values).collect();
    let (qkvz, ba) =
        (format!("{prefix}.in_proj_qkvz.weight"), format!("{prefix}.in_proj_ba.weight"));
    let large = (spec.n_key_heads * stride, hidden_size);
    let small = (2 * spec.n_value_heads, hidden_size);
    Ok([
        source.matrix_of_rows(&qkvz, large, qkv)?,
        source.matrix_of_rows(&qkvz, large, z)?,
        source.matrix_of_rows(&ba, small, rows(2 * heads, 0, heads).collect())?,
        source.matrix_of_rows(&ba, small, rows(2 * heads, heads, heads).collect())?,
    ])
}

impl<V> DeltaNet<Matrix, V> {
    /// `out = delta_net(x)`, all (rows, hidden).
    pub(crate) fn forward<B: Backend<Vector = V>>(
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
