//! Synthetic checkpoints of true shapes, for performance work at sizes that cannot be downloaded.
//!
//! What they say is noise; shapes, names, formats, file layout and the work per token are the real
//! ones. Weights are written straight as random codes whose scales give every matrix zero mean and a
//! sane spread, so that activations stay of order one in any number of layers. Routing is uneven as in
//! real models: all embeddings share a direction, and each expert's router row has a component along
//! it that falls with the logarithm of the expert's rank (a Zipf law, another order in each layer).

mod gguf;
mod plan;
mod random;
mod tokenizer;
mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use plan::{FileKind, Preset, SynthOptions};

use crate::error::Error;
use plan::{Shape, Tensor};

/// A shard is closed before it grows beyond this.
const SHARD_BYTES: u64 = 4 << 30;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthReport {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Files with tensors.
    pub files: usize,
}

/// Why a synthetic checkpoint cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// A file cannot be written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something where the checkpoint should go.
    #[error("{} exists and is not an empty directory\nhint: give a new name", .path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// An option has a value that cannot be used.
    #[error("{option} is {value}, but must be {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// What it may be.
        expected: String,
    },
    /// A small file could not be made.
    #[error(transparent)]
    Checkpoint(#[from] Error),
}

/// Writes a checkpoint into a new directory, or a new GGUF file; `progress` hears the bytes written and the bytes in all.
/// It has its name only when it is complete.
pub fn write(
    options: &SynthOptions,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SynthReport, SynthError> {
    let shape = Shape::new(options)?;
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file() {
        return Err(SynthError::Exists { path: out.to_owned() });
    }
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |source| SynthError::Io { path, source }
    };
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = out.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io_at(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(io_at(&partial))?;

    if let FileKind::Gguf(experts) = options.file {
        fs::remove_dir_all(&partial).map_err(io_at(&partial))?;
        let bytes = gguf::write(&partial, &shape, experts, progress).map_err(io_at(&partial))?;
        fs::rename(&partial, out).map_err(io_at(out))?;
        return Ok(SynthReport { bytes, files: 1 });
    }
    let tensors = plan::tensors(&shape);
    let shards = shards(&tensors);
    let total = tensors.iter().map(Tensor::bytes).sum();
    let mut written = 0;
    for (index, shard) in shards.iter().enumerate() {
        let path = partial.join(shard_name(index, shards.len()));
        let mut advance = |bytes| {
            written += bytes;
            progress(written, total);
        };
        write::shard(&path, &shape, shard, &mut advance).map_err(io_at(&path))?;
    }
    for (name, contents) in small_files(&shape, &shards) {
        let path = partial.join(name);
        fs::write(&path, contents).map_err(io_at(&path))?;
    }
    if out.exists() {
        fs::remove_dir(out).map_err(io_at(out))?;
    }
    fs::rename(&partial, out).map_err(io_at(out))?;
    Ok(SynthReport { bytes: total, files: shards.len() })
}

/// Cuts the tensors into shards, in order.
fn shards(tensors: &[Tensor]) -> Vec<&[Tensor]> {
    let mut shards = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + tensor.bytes() > SHARD_BYTES {
            shards.push(&tensors[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += tensor.bytes();
    }
    shards.push(&tensors[begin..]);
    shards
}

fn shard_name(index: usize, of: usize) -> String {
    format!("model-{:05}-of-{of:05}.safetensors", index + 1)
}

/// Everything but the tensors.
fn small_files(shape: &Shape, shards: &[&[Tensor]]) -> Vec<(&'static str, String)> {
    let mut weight_map = serde_json::Map::new();
    let mut bytes = 0;
    for (index, shard) in shards.iter().enumerate() {
        for part in shard.iter().flat_map(Tensor::parts) {
            bytes += part.bytes();
            weight_map.insert(part.name, shard_name(index, shards.len()).into());
        }
    }
    let index = serde_json::json!({
        "metadata": { "total_size": bytes }, "weight_map": weight_map,
    });
    vec![
        ("model.safetensors.index.json", index.to_string()),
        ("config.json", format!("{:#}", shape.config())),
        ("generation_config.json", format!("{:#}", tokenizer::generation_config(shape.vocab))),
        ("tokenizer.json", tokenizer::tokenizer(shape.vocab).to_string()),
        ("tokenizer_config.json", format!("{:#}", tokenizer::tokenizer_config())),
        ("chat_template.jinja", tokenizer::CHAT_TEMPLATE.to_owned()),
    ]
}
