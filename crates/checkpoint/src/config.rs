//! What a checkpoint says about its model: `config.json`, and how to sample from it:
//! `generation_config.json`.

/// A family of models that share an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen3.5-MoE and Qwen3.6-MoE text models.
    Qwen35Moe,
    /// Qwen3-Next and Qwen3-Coder-Next.
    Qwen3Next,
    /// Qwen3-MoE and Qwen3-Coder.
    Qwen3Moe,
}

/// The token mixer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerKind {
    /// Full attention.
    Attention,
    /// Gated delta net (linear attention).
    DeltaNet,
}

/// What follows the mixer in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnKind {
    /// Mixture of experts.
    Moe,
    /// A dense SwiGLU block of this intermediate width.
    Dense(usize),
}

/// Dimensions of the full-attention layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading dimensions of a head that rotary embedding turns; even.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the query projection also gives a gate of the output.
    pub gated: bool,
}

/// Dimensions of the gated-delta-net layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNetConfig {
    /// Key (and query) heads.
    pub n_key_heads: usize,
    /// Value heads; a multiple of `n_key_heads`.
    pub n_value_heads: usize,
    /// Width of a key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
    /// How the checkpoint stores the input projections.
    pub projections: Projections,
    /// Whether value head `h` belongs to key head `h % n_key_heads`, instead of neighbours sharing one.
    pub tiled_values: bool,
}

/// How a checkpoint stores the input projections of a gated delta net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`.
    Separate,
    /// `in_proj_qkvz` and `in_proj_ba`, whose rows are grouped by key head.
    Interleaved,
    /// `in_proj_qkv` and `in_proj_z`, and `in_proj_ba` grouped by key head.
    InterleavedGates,
}

/// Dimensions of the mixture-of-experts block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Routed experts of a layer.
    pub n_experts: usize,
    /// Routed experts that a token uses.
    pub top_k: usize,
    /// Intermediate width of a routed expert.
    pub intermediate: usize,
    /// Intermediate width of the shared expert, if there is one.
    pub shared_intermediate: Option<usize>,
    /// Whether the weights of the chosen experts are renormalised to sum to one.
    pub normalise: bool,
}

/// A model's dimensions, whatever file they were read from. Every value is checked: positive, in
/// range, and consistent with the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// The mixer of every layer, in order.
    pub mixers: Vec<MixerKind>,
    /// What follows the mixer of every layer, in order.
    pub ffns: Vec<FfnKind>,
    /// Full attention.
    pub attention: AttentionConfig,
    /// Gated delta net, of families that have it.
    pub delta_net: Option<DeltaNetConfig>,
    /// Experts.
    pub moe: MoeConfig,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest context that the model was made for.
    pub max_context: usize,
    /// End tokens that the configuration names.
    pub eos_token_ids: Vec<u32>,
}

/// `generation_config.json`: how the model's authors sample from it. Absent fields are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Sample (`true`) or take the best token.
    pub do_sample: Option<bool>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Keep the best so many tokens.
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens with this probability.
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the best token's probability.
    pub min_p: Option<f32>,
    /// Divide the logits of tokens already seen.
    pub repetition_penalty: Option<f32>,
    /// End tokens.
    pub eos_token_ids: Vec<u32>,
}

impl Family {
    /// The name of the family for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qwen35Moe => "Qwen3.5-MoE",
            Self::Qwen3Next => "Qwen3-Next",
            Self::Qwen3Moe => "Qwen3-MoE",
        }
    }
}

impl ModelConfig {
    /// How many layers have full attention.
    pub fn attention_layers(&self) -> usize {
        self.mixers.iter().filter(|&&kind| kind == MixerKind::Attention).count()
    }
}
