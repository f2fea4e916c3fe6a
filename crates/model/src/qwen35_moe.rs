//! Qwen3.5-MoE and Qwen3.6-MoE, text part.
//!
//! Every layer: zero-centred RMS norm, a mixer (gated full attention or gated delta net), norm, and a
//! mixture of experts with a shared expert. Reference: `modeling_qwen3_5_moe.py` of Hugging Face
//! transformers.

use checkpoint::{MixerKind, ModelConfig, VectorKind};

use crate::blocks::{Attention, DeltaNet, Moe};
use crate::decoder::{Decoder, Layer, Mixer};
use crate::source::WeightSource;

/// Builds the decoder from the tensors of the architecture.
pub(crate) fn load<S: WeightSource>(
    config: &ModelConfig,
    source: &mut S,
) -> Result<Decoder<S::Matrix, S::Vector>, S::Error> {
    let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
    let embed_tokens = source.matrix("embed_tokens.weight", config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.mixers.len());
    for (index, kind) in config.mixers.iter().enumerate() {
        let layer = format!("layers.{index}");
        let norm = |source: &mut S, name: &str| {
            source.vector(&format!("{layer}.{name}.weight"), hidden, VectorKind::ZeroCentredNorm)
        };
        let mixer_norm = norm(source, "input_layernorm")?;
        let mixer = match kind {
            MixerKind::Attention => Mixer::Attention(Attention::load(
                source,
                &format!("{layer}.self_attn"),
                hidden,
                &config.attention,
                eps,
            )?),
            MixerKind::DeltaNet => Mixer::DeltaNet(DeltaNet::load(
                source,
                &format!("{layer}.linear_attn"),
                hidden,
                &config.delta_net,
                eps,
            )?),
        };
        let moe_norm = norm(source, "post_attention_layernorm")?;
        let moe = Moe::load(source, &crate::expert_block_name(index), hidden, &config.moe)?;
        layers.push(Layer { mixer_norm, mixer, moe_norm, moe });
    }
    let norm = source.vector("norm.weight", hidden, VectorKind::ZeroCentredNorm)?;
    let lm_head = if config.tie_word_embeddings {
        None
    } else {
        Some(source.matrix("lm_head.weight", config.vocab_size, hidden)?)
    };
    Ok(Decoder { config: config.clone(), embed_tokens, layers, norm, lm_head })
}
