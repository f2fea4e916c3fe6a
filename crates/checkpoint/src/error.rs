//! Why a checkpoint cannot be used, with the file, tensor or field that is at fault.

use std::io;
use std::path::PathBuf;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no checkpoint where one was expected.
    #[error("{} is not a checkpoint: {reason}\nhint: give the directory that holds config.json and *.safetensors, or a GGUF file", .path.display())]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// A file is not the JSON that it should be.
    #[error("{}: not valid: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model or format that this program cannot run.
    #[error("{}: {what} is not supported\nhint: supported are Qwen3.5-MoE, Qwen3.6-MoE (model_type qwen3_5_moe), Qwen3-Next (qwen3_next) and Qwen3-MoE (qwen3_moe), as safetensors in bf16, f16, f32 or MLX affine 2, 3, 4, 5, 6, 8 bit, or as GGUF", .path.display())]
    Unsupported {
        /// The file that says so.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A field of a configuration has a value that cannot be used.
    #[error("{}: {field} is {found}, but must be {expected}", .path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// The header of a safetensors file is damaged.
    #[error("{}: damaged header: {reason}\nhint: the file is incomplete or not a safetensors file; fetch it again", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's bytes are not all in the file.
    #[error(
        "{}: tensor {tensor} ends at byte {needed}, but the file has {found}\n\
         hint: the file is truncated; fetch it again",
        .path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Length that the file must have at least.
        needed: u64,
        /// Length that it has.
        found: u64,
    },
    /// Two tensors of a file share bytes.
    #[error("{}: tensors {first} and {second} overlap", .path.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A tensor is in two files.
    #[error("tensor {tensor} is in {} and in {}", .first.display(), .second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// A file that has it.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// The index names a tensor that its file does not have.
    #[error("{}: says that {tensor} is in {shard}, which does not have it", .index.display())]
    WrongIndex {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file.
        shard: String,
    },
    /// A tensor that the model needs is not there.
    #[error("tensor {name} is missing (looked for {})", .tried.join(", "))]
    Missing {
        /// Canonical name.
        name: String,
        /// Spellings looked for.
        tried: Vec<String>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor {tensor} has shape {found:?}, but {expected:?} is expected", .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that it should have.
        expected: Vec<usize>,
    },
    /// A tensor has a type that cannot be used in its place.
    #[error("{}: tensor {tensor} has type {found}, but must be {expected}", .path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The quantisation of a tensor cannot be decoded.
    #[error("tensor {tensor}: quantisation with {what} is not supported")]
    Quantisation {
        /// The tensor.
        tensor: String,
        /// What is not supported.
        what: String,
    },
}
