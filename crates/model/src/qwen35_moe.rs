//! Qwen3.5-MoE and Qwen3.6-MoE, text part, and Qwen3-Next, their predecessor.
//!
//! Every layer: zero-centred RMS norm, a mixer (gated full attention or gated delta net), norm, and a
//! mixture of experts with a shared expert. Reference: `modeling_qwen3_5_moe.py` and
//! `modeling_qwen3_next.py` of Hugging Face transformers. The two differ only in how files keep the
//! delta nets' projections, which their configuration tells.

use checkpoint::{MixerKind, ModelConfig, VectorKind};

use crate::blocks::{Attention, DeltaNet};
use crate::decoder::{Decoder, Mixer, Norm};
use crate::source::WeightSource;

/// Builds the decoder from the tensors of the architecture.
pub(crate) fn load<S: WeightSource>(
    config: &ModelConfig,
    source: &mut S,
) -> Result<Decoder<S::Matrix, S::Vector>, S::Error> {
    let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
    let norm = Norm { kind: VectorKind::ZeroCentredNorm, eps };
    Decoder::load(config, source, norm.kind, |source, layer, kind| match kind {
        MixerKind::Attention => {
            let name = format!("{layer}.self_attn");
            Attention::load(source, &name, hidden, &config.attention, norm).map(Mixer::Attention)
        }
        MixerKind::DeltaNet => {
            let name = format!("{layer}.linear_attn");
            let dimensions = config.delta_net.as_ref().expect("the family has delta nets");
            DeltaNet::load(source, &name, hidden, dimensions, eps).map(Mixer::DeltaNet)
        }
    })
}
