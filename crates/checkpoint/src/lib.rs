//! Checkpoints in place: a directory of stored tensors, never a loaded copy.
//!
//! Opening a checkpoint reads its configuration and the headers of its files. A weight is a set of
//! byte ranges with a [`Format`] until something reads them; the [`Resolver`] finds a model's weights
//! in whatever layout they were saved. This crate knows what stored values mean, and nothing of
//! arithmetic on activations.
//!
//! ```no_run
//! let checkpoint = checkpoint::Checkpoint::open("models/qwen3.5-35b-a3b".as_ref())?;
//! println!("{} layers", checkpoint.config().mixers.len());
//! let head = checkpoint.resolver().matrix("lm_head.weight", 248_320, 2_048)?;
//! println!("{} bytes as {}", head.bytes(), head.format);
//! # Ok::<(), checkpoint::Error>(())
//! ```

#![forbid(unsafe_code)]

mod blocks;
mod checkpoint;
mod codec;
mod config;
mod config_json;
mod error;
mod expert_table;
mod format;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gguf;
mod gguf_model;
mod location;
mod quantization;
mod resolver;
mod safetensors;
pub mod safetensors_file;
pub mod synth;

pub use blocks::BlockType;
pub use checkpoint::{Checkpoint, DataFile, EmbeddedText, StoredTensor};
pub use codec::{
    QuantizedRow, are_finite, decode_floats, decode_vector, dequantize_row, encode_floats,
    pack_codes, quantize_affine, unpack_codes,
};
pub use config::{
    AttentionConfig, DeltaNetConfig, Family, FfnKind, GenerationConfig, MixerKind, ModelConfig,
    MoeConfig, Projections,
};
pub use error::Error;
pub use expert_table::ExpertTable;
pub use format::{Affine, FloatType, Format};
pub use location::{
    ExpertLocation, Extent, FileId, MatrixLocation, VectorKind, VectorLocation, VectorTransform,
};
pub use resolver::{Leftover, PADDING_PREFIX, Resolver};
pub use safetensors::Dtype;
