//! Shapes of the published models, and the tensors that follow from them.

use serde_json::{Value, json};

use crate::blocks::BlockType;
use crate::format::{Affine, FloatType, Format};
use crate::safetensors::Dtype;
use crate::synth::SynthError;
use crate::synth::tokenizer::N_CONTROL_TOKENS;

/// Columns that share a scale.
pub(crate) const GROUP: u16 = 64;
/// Bits of routers and of shared experts' gates, as the MLX converter chooses them.
const ROUTER_BITS: u8 = 8;
/// Vocabulary of a model that is cut short: the head would outweigh a few layers.
const SMALL_VOCAB: usize = 4096;

/// A model whose shapes can be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Qwen3.5-35B-A3B.
    Qwen35A3b,
    /// Qwen3.5-122B-A10B.
    Qwen122bA10b,
    /// Qwen3.5-397B-A17B.
    Qwen397bA17b,
    /// The same structure in a few megabytes.
    #[default]
    Tiny,
}

/// What kind of file to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileKind {
    /// MLX safetensors, all matrices affine.
    #[default]
    Mlx,
    /// GGUF with experts of this type and Q8_0 for the other matrices.
    Gguf(BlockType),
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthOptions {
    /// The model whose shapes to take.
    pub preset: Preset,
    /// What kind of file.
    pub file: FileKind,
    /// Layers, if not all.
    pub layers: Option<usize>,
    /// Experts of a layer, if not all.
    pub experts: Option<usize>,
    /// Bits of a weight.
    pub bits: u8,
    /// Rows of the vocabulary, if not the model's own.
    pub vocab: Option<usize>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SynthOptions {
    fn default() -> Self {
        let preset = Preset::default();
        Self {
            preset,
            file: FileKind::default(),
            layers: None,
            experts: None,
            bits: 4,
            vocab: None,
            seed: 0,
        }
    }
}

/// The dimensions of what is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) key_heads: usize,
    pub(crate) value_heads: usize,
    /// Width of the heads of the delta net.
    pub(crate) linear_dim: usize,
    pub(crate) conv: usize,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    /// How fast popularity falls with rank.
    pub(crate) zipf: f64,
    pub(crate) bits: u8,
    pub(crate) seed: u64,
}

impl Shape {
    /// The preset with what the options change.
    pub(crate) fn new(options: &SynthOptions) -> Result<Self, SynthError> {
        let base = Self {
            hidden: 2048,
            layers: 40,
            heads: 16,
            kv_heads: 2,
            head_dim: 256,
            key_heads: 16,
            value_heads: 32,
            linear_dim: 128,
            conv: 4,
            experts: 256,
            top_k: 8,
            intermediate: 512,
            vocab: 248_320,
            zipf: 0.6,
            bits: options.bits,
            seed: options.seed,
        };
        let large = Self { heads: 32, value_heads: 64, intermediate: 1024, ..base };
        let preset = match options.preset {
            Preset::Qwen35A3b => base,
            Preset::Qwen122bA10b => Self { hidden: 3072, layers: 48, ..large },
            Preset::Qwen397bA17b => {
                Self { hidden: 4096, layers: 60, experts: 512, top_k: 10, zipf: 0.5, ..large }
            }
            Preset::Tiny => Self {
                hidden: 256,
                layers: 4,
                heads: 4,
                head_dim: 64,
                key_heads: 2,
                value_heads: 4,
                linear_dim: 64,
                experts: 16,
                top_k: 4,
                intermediate: 256,
                vocab: 512,
                ..base
            },
        };
        let check = |option, value: usize, range: std::ops::RangeInclusive<usize>| {
            let expected = format!("from {} to {}", range.start(), range.end());
            match range.contains(&value) {
                true => Ok(value),
                false => Err(SynthError::Option { option, value, expected }),
            }
        };
        if !matches!(options.bits, 2..=6 | 8) {
            let (value, expected) = (options.bits.into(), "2, 3, 4, 5, 6 or 8".to_owned());
            return Err(SynthError::Option { option: "bits", value, expected });
        }
        let layers = check("layers", options.layers.unwrap_or(preset.layers), 1..=1000)?;
        let experts = options.experts.unwrap_or(preset.experts);
        let experts = check("experts", experts, preset.top_k..=4096)?;
        let vocab = match options.vocab {
            Some(vocab) => vocab,
            None if layers < preset.layers => preset.vocab.min(SMALL_VOCAB),
            None => preset.vocab,
        };
        let vocab = check("vocab", vocab, 257 + N_CONTROL_TOKENS..=1 << 22)?;
        Ok(Self { layers, experts, vocab, ..preset })
    }

    /// Whether a layer has full attention.
    pub(crate) fn is_attention(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(4)
    }

    /// The share of an embedding that all tokens have in common, along a direction of signs.
    pub(crate) fn common_share(&self) -> f64 {
        let (shift, levels) = self.embedding_levels();
        let (common, noise) = (shift as f64 / 2.0, (levels * levels - 1) as f64 / 12.0);
        common / (noise + common * common).sqrt()
    }

    /// How far a positive sign shifts the codes of a column, and the levels of their noise.
    pub(crate) fn embedding_levels(&self) -> (u32, u32) {
        let levels = 1 << self.bits;
        (levels / 4, levels - levels / 4)
    }

    /// `config.json`.
    pub(crate) fn config(&self) -> Value {
        let router = json!({ "group_size": GROUP, "bits": ROUTER_BITS });
        let mut quantization = json!({ "group_size": GROUP, "bits": self.bits, "mode": "affine" });
        for layer in 0..self.layers {
            for module in ["mlp.gate", "mlp.shared_expert_gate"] {
                quantization[format!("language_model.model.layers.{layer}.{module}")] =
                    router.clone();
            }
        }
        let end = self.vocab - N_CONTROL_TOKENS;
        json!({
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "tie_word_embeddings": false,
            "text_config": {
                "model_type": "qwen3_5_moe_text",
                "vocab_size": self.vocab,
                "hidden_size": self.hidden,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
                "hidden_act": "silu",
                "max_position_embeddings": 262_144,
                "rms_norm_eps": 1e-6,
                "attention_bias": false,
                "attn_output_gate": true,
                "full_attention_interval": 4,
                "linear_conv_kernel_dim": self.conv,
                "linear_key_head_dim": self.linear_dim,
                "linear_value_head_dim": self.linear_dim,
                "linear_num_key_heads": self.key_heads,
                "linear_num_value_heads": self.value_heads,
                "moe_intermediate_size": self.intermediate,
                "shared_expert_intermediate_size": self.intermediate,
                "num_experts": self.experts,
                "num_experts_per_tok": self.top_k,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
                },
                "dtype": "bfloat16",
                "eos_token_id": end,
            },
            "quantization": quantization,
        })
    }
}

/// A weight: one tensor, or codes with scales and biases.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) module: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) fill: Fill,
}

/// What a weight is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fill {
    /// Random codes; the standard deviation of a row's product with numbers of order one is `gain`.
    Codes { affine: Affine, gain: f64 },
    /// Random codes with a direction that all rows share.
    Embedding { affine: Affine },
    /// Router rows of uneven popularity.
    Router { affine: Affine, layer: usize },
    /// Plain values.
    Plain(FloatType, Values),
}

/// Plain values of small tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Values {
    /// All one.
    Ones,
    /// Normal numbers with this standard deviation.
    Normal(f64),
    /// Logarithms of decay rates from 1 to 16.
    DecayLog,
    /// Decay rates from -16 to -1.
    NegativeDecay,
    /// Such that softplus gives time steps from 1e-3 to 1e-1, evenly by logarithm.
    TimeStep,
}

/// A stored tensor of a weight.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl Part {
    pub(crate) fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }
}

impl Tensor {
    /// The stored tensors, in the order in which their bytes lie.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |suffix: &str, dtype, shape| Part {
            name: format!("{}{suffix}", self.module),
            dtype,
            shape,
        };
        let affine = match self.fill {
            Fill::Plain(float, _) => {
                // A few weights are no modules and have no `.weight`.
                let bare = self.module.ends_with("A_log") || self.module.ends_with("dt_bias");
                let suffix = if bare { "" } else { ".weight" };
                return vec![part(suffix, Dtype::Float(float), self.shape.clone())];
            }
            Fill::Codes { affine, .. }
            | Fill::Embedding { affine }
            | Fill::Router { affine, .. } => affine,
        };
        let (rows, cols) = self.shape.split_at(self.shape.len() - 1);
        let with_cols = |cols: usize| [rows, &[cols]].concat();
        let words = Format::Affine(affine).row_bytes(cols[0]) / 4;
        let groups = with_cols(cols[0] / usize::from(GROUP));
        let scales = Dtype::Float(affine.scales);
        vec![
            part(".weight", Dtype::U32, with_cols(words)),
            part(".scales", scales, groups.clone()),
            part(".biases", scales, groups),
        ]
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.parts().iter().map(Part::bytes).sum()
    }
}

/// All weights in the order of the forward pass.
pub(crate) fn tensors(shape: &Shape) -> Vec<Tensor> {
    let Shape { hidden, heads, kv_heads, head_dim, key_heads, value_heads, linear_dim, .. } =
        *shape;
    let Shape { experts, intermediate, vocab, conv, bits, .. } = *shape;
    let affine = |bits| Affine { bits, group: GROUP, scales: FloatType::Bf16 };
    let mut tensors = Vec::new();
    let mut add = |module: String, shape: &[usize], fill| {
        tensors.push(Tensor { module, shape: shape.to_vec(), fill });
    };
    let codes = |gain| Fill::Codes { affine: affine(bits), gain };
    let bf16 = |values| Fill::Plain(FloatType::Bf16, values);
    let model = "language_model.model";
    add(
        format!("{model}.embed_tokens"),
        &[vocab, hidden],
        Fill::Embedding { affine: affine(bits) },
    );
    for layer in 0..shape.layers {
        let mut add = |name: &str, shape: &[usize], fill| {
            add(format!("{model}.layers.{layer}.{name}"), shape, fill);
        };
        add("input_layernorm", &[hidden], bf16(Values::Ones));
        if shape.is_attention(layer) {
            let (query, key) = (heads * head_dim, kv_heads * head_dim);
            add("self_attn.q_proj", &[2 * query, hidden], codes(1.0));
            add("self_attn.k_proj", &[key, hidden], codes(1.0));
            add("self_attn.v_proj", &[key, hidden], codes(1.0));
            add("self_attn.o_proj", &[hidden, query], codes(0.3));
            add("self_attn.q_norm", &[head_dim], bf16(Values::Ones));
            add("self_attn.k_norm", &[head_dim], bf16(Values::Ones));
        } else {
            let value = value_heads * linear_dim;
            let channels = 2 * key_heads * linear_dim + value;
            add("linear_attn.in_proj_qkv", &[channels, hidden], codes(1.0));
            add("linear_attn.in_proj_z", &[value, hidden], codes(1.0));
            add("linear_attn.in_proj_b", &[value_heads, hidden], codes(1.0));
            add("linear_attn.in_proj_a", &[value_heads, hidden], codes(1.0));
            add("linear_attn.out_proj", &[hidden, value], codes(0.15));
            add("linear_attn.conv1d", &[channels, conv, 1], bf16(Values::Normal(0.5)));
            let f32 = |values| Fill::Plain(FloatType::F32, values);
            add("linear_attn.A_log", &[value_heads], f32(Values::DecayLog));
            add("linear_attn.dt_bias", &[value_heads], bf16(Values::TimeStep));
            add("linear_attn.norm", &[linear_dim], bf16(Values::Ones));
        }
        add("post_attention_layernorm", &[hidden], bf16(Values::Ones));
        let router = Fill::Router { affine: affine(ROUTER_BITS), layer };
        add("mlp.gate", &[experts, hidden], router);
        add("mlp.switch_mlp.gate_proj", &[experts, intermediate, hidden], codes(1.0));
        add("mlp.switch_mlp.up_proj", &[experts, intermediate, hidden], codes(1.0));
        add("mlp.switch_mlp.down_proj", &[experts, hidden, intermediate], codes(0.6));
        add("mlp.shared_expert.gate_proj", &[intermediate, hidden], codes(1.0));
        add("mlp.shared_expert.up_proj", &[intermediate, hidden], codes(1.0));
        add("mlp.shared_expert.down_proj", &[hidden, intermediate], codes(0.3));
        let gate = Fill::Codes { affine: affine(ROUTER_BITS), gain: 1.0 };
        add("mlp.shared_expert_gate", &[1, hidden], gate);
    }
    add(format!("{model}.norm"), &[hidden], bf16(Values::Ones));
    add("language_model.lm_head".to_owned(), &[vocab, hidden], codes(3.0));
    tensors
}
