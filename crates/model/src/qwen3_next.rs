//! Qwen3-Next and Qwen3-Coder-Next.
//!
//! The layers of Qwen3.5-MoE, whose predecessor it is; its files keep the delta nets' projections
//! interleaved by key head. Reference: `modeling_qwen3_next.py` of Hugging Face transformers.

use checkpoint::ModelConfig;

use crate::blocks::Projections;
use crate::decoder::Decoder;
use crate::qwen35_moe;
use crate::source::WeightSource;

/// Builds the decoder from the tensors of the architecture.
pub(crate) fn load<S: WeightSource>(
    config: &ModelConfig,
    source: &mut S,
) -> Result<Decoder<S::Matrix, S::Vector>, S::Error> {
    qwen35_moe::load_with(config, source, Projections::Interleaved)
}
