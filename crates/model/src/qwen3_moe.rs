//! Qwen3-MoE and Qwen3-Coder.
//!
//! Every layer: plain RMS norm, full attention without gates whose whole heads turn, norm, and a
//! mixture of experts without a shared one, or a dense block. Reference: `modeling_qwen3_moe.py` of
//! Hugging Face transformers.

use checkpoint::{ModelConfig, VectorKind};

use crate::blocks::Attention;
use crate::decoder::{Decoder, Mixer, Norm};
use crate::source::WeightSource;

/// Builds the decoder from the tensors of the architecture.
pub(crate) fn load<S: WeightSource>(
    config: &ModelConfig,
    source: &mut S,
) -> Result<Decoder<S::Matrix, S::Vector>, S::Error> {
    let norm = Norm { kind: VectorKind::Plain, eps: config.rms_norm_eps };
    Decoder::load(config, source, norm.kind, |source, layer, _| {
        let name = format!("{layer}.self_attn");
        Attention::load(source, &name, config.hidden_size, &config.attention, norm)
            .map(Mixer::Attention)
    })
}
