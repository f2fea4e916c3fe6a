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
    /// Loads `{prefix}.in_proj_qkv.weight` and its siblings.
    pub(crate) fn load<S: WeightSource<Matrix = M, Vector = V>>(
        source: &mut S,
        prefix: &str,
        hidden_size: usize,
        config: &DeltaNetConfig,
        eps: f32,
    ) -> Result<Self, S::Error> {
        let DeltaNetConfig { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel } =
            *config;
        let spec =
            DeltaNetSpec { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel, eps };
        let (channels, values) = (spec.channels(), n_value_heads * value_dim);
        let mut matrix =
            |name, rows, cols| source.matrix(&format!("{prefix}.{name}.weight"), rows, cols);
        let in_proj_qkv = matrix("in_proj_qkv", channels, hidden_size)?;
        let in_proj_z = matrix("in_proj_z", values, hidden_size)?;
        let in_proj_b = matrix("in_proj_b", n_value_heads, hidden_size)?;
        let in_proj_a = matrix("in_proj_a", n_value_heads, hidden_size)?;
        let out_proj = matrix("out_proj", hidden_size, values)?;
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
