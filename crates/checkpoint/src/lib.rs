//! Checkpoints in place: a directory of stored tensors, never a loaded copy.

mod config;
mod format;
mod location;

pub use config::{
    AttentionConfig, DeltaNetConfig, Family, GenerationConfig, MixerKind, ModelConfig, MoeConfig,
};
pub use format::{Affine, FloatType, Format};
pub use location::{
    ExpertLocation, Extent, FileId, MatrixLocation, VectorKind, VectorLocation,
};
