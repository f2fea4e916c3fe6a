//! Full attention with normed heads and partial rotary embedding, gated or not.

use checkpoint::AttentionConfig;
use compute::{AttentionInputs, AttentionSpec, Backend, Span};

use crate::decoder::Norm;
use crate::source::WeightSource;

/// The weights of an attention layer.
#[derive(Debug)]
pub(crate) struct Attention<M, V> {
    pub(crate) spec: AttentionSpec,
    q_proj: M,
    k_proj: M,
    v_proj: M,
    o_proj: M,
    q_norm: V,
    k_norm: V,
}

impl<M, V> Attention<M, V> {
    /// Loads `{prefix}.q_proj.weight` and its siblings. The query projection holds, per head, the
    /// query's rows and then the gate's if there are gates.
    pub(crate) fn load<S: WeightSource<Matrix = M, Vector = V>>(
        source: &mut S,
        prefix: &str,
        hidden_size: usize,
        config: &AttentionConfig,
        norm: Norm,
    ) -> Result<Self, S::Error> {
        let AttentionConfig { n_heads, n_kv_heads, head_dim, .. } = *config;
        let spec = spec(config, norm.eps);
        let mut matrix =
            |name, rows, cols| source.matrix(&format!("{prefix}.{name}.weight"), rows, cols);
        let q_proj = matrix("q_proj", n_heads * spec.query_width(), hidden_size)?;
        let k_proj = matrix("k_proj", n_kv_heads * head_dim, hidden_size)?;
        let v_proj = matrix("v_proj", n_kv_heads * head_dim, hidden_size)?;
        let o_proj = matrix("o_proj", hidden_size, n_heads * head_dim)?;
        let mut vector =
            |name| source.vector(&format!("{prefix}.{name}.weight"), head_dim, norm.kind);
        let (q_norm, k_norm) = (vector("q_norm")?, vector("k_norm")?);
        Ok(Self { spec, q_proj, k_proj, v_proj, o_proj, q_norm, k_norm })
    }
}

impl<M, V> Attention<M, V> {
    /// `out = attention(x)`, all (rows, hidden).
    pub(crate) fn forward<B: Backend<Matrix = M, Vector = V>>(
        &self,
        backend: &mut B,
        scratch: &mut AttentionScratch<B>,
        spans: &[Span],
        caches: &mut [&mut B::KvCache],
        x: &B::Buffer,
        out: &mut B::Buffer,
    ) {
        let AttentionScratch { query, key, value, attended } = scratch;
        backend.project(x, &[&self.q_proj, &self.k_proj, &self.v_proj], &mut [query, key, value]);
        let inputs = AttentionInputs {
            query: &*query,
            key: &*key,
            value: &*value,
            query_norm: &self.q_norm,
            key_norm: &self.k_norm,
        };
        backend.attention(&self.spec, inputs, spans, caches, attended);
        backend.project(attended, &[&self.o_proj], &mut [out]);
    }
}

/// Buffers of an attention layer; layers share them.
pub(crate) struct AttentionScratch<B: Backend> {
    query: B::Buffer,
    key: B::Buffer,
    value: B::Buffer,
    attended: B::Buffer,
}

impl<B: Backend> AttentionScratch<B> {
    pub(crate) fn new(backend: &B, config: &AttentionConfig, max_rows: usize) -> Self {
        let [query, key, value, attended] =
            Self::widths(config).map(|width| backend.buffer(max_rows, width));
        Self { query, key, value, attended }
    }

    /// Widths of the buffers.
    pub(crate) fn widths(config: &AttentionConfig) -> [usize; 4] {
        let key = config.n_kv_heads * config.head_dim;
        let query = config.n_heads * spec(config, 0.0).query_width();
        [query, key, key, config.n_heads * config.head_dim]
    }
}

fn spec(config: &AttentionConfig, eps: f32) -> AttentionSpec {
    let AttentionConfig { n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta, gated } = *config;
    AttentionSpec { n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta, eps, gated }
}
