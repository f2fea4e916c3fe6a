//! The forward pass of each architecture, written once against [`compute::Backend`].
//!
//! A model is a [`Decoder`]: blocks (attention, gated delta net, mixture of experts) in the order that
//! its architecture's file says. The file is the only place that knows an architecture; [`load`] picks
//! it by the checkpoint's family. Nothing here knows where weights lie or what device runs them: trunk
//! weights come from a [`WeightSource`], routed experts from an [`ExpertSource`].
//!
//! One [`Decoder::forward`] serves everything: a token of one sequence, tokens of many sequences, a
//! prompt chunk of thousands of rows.

#![forbid(unsafe_code)]

mod batch;
mod blocks;
mod decoder;
mod layer_pass;
mod lossy;
mod qwen35_moe;
mod qwen3_moe;
mod router_log;
mod saved;
mod source;
mod timeline;

pub use batch::Batch;
pub use decoder::{
    Decoder, ExpertObserver, ForwardLog, LayerState, ObserveExperts, SequenceState, Workspace,
};
pub use layer_pass::LayerPass;
pub use lossy::Lossy;
pub use router_log::{RoutedLayer, RouterLog};
pub use saved::{SavedParts, SavedShape};
pub use source::{ExpertSource, SourceError, WeightSource};
pub use timeline::{Phase, Timeline};

use checkpoint::{Family, ModelConfig};

/// Builds the model that `config` describes from the weights that `source` gives.
///
/// A source may also give placeholders: that lists what a model needs without loading anything.
pub fn load<S: WeightSource>(
    config: &ModelConfig,
    source: &mut S,
) -> Result<Decoder<S::Matrix, S::Vector>, S::Error> {
    match config.family {
        Family::Qwen35Moe | Family::Qwen3Next => qwen35_moe::load(config, source),
        Family::Qwen3Moe => qwen3_moe::load(config, source),
    }
}

/// The canonical name of the block that holds the routed experts of a layer.
pub fn expert_block_name(layer: usize) -> String {
    format!("layers.{layer}.mlp")
}
