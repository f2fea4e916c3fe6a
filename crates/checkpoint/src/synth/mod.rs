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
    /// The file system has not enough room.
    #[error(
        "{} needs {needed} bytes, but its file system has {free} left\n\
         hint: make room, or take fewer --layers or --experts",
        .path.display()
    )]
    Space {
        /// What was to be written.
        path: PathBuf,
        /// Its bytes.
        needed: u64,
        /// The bytes that are free.
        free: u64,
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
/// It has its name only when it is complete, and no file is left of one that failed.
pub fn write(
    options: &SynthOptions,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SynthReport, SynthError> {
    let shape = Shape::new(options)?;
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file() {
        return Err(SynthError::Exists { path: out.to_owned() });
    }
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = out.with_file_name(name);
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let begin = || {
        fs::create_dir_all(parent).map_err(io_at(parent))?;
        // A run that was killed may have left one.
        remove_ours(&partial)
    };

    let written = match options.file {
        FileKind::Gguf(experts) => {
            check_space(parent, out, gguf::file_bytes(&shape, experts))?;
            begin()?;
            gguf::write(&partial, &shape, experts, progress)
                .map_err(io_at(&partial))
                .map(|bytes| SynthReport { bytes, files: 1 })
        }
        FileKind::Mlx => {
            let tensors = plan::tensors(&shape);
            let shards = shards(&tensors);
            let small_files = small_files(&shape, &shards);
            let small_bytes: usize = small_files.iter().map(|(_, contents)| contents.len()).sum();
            let bytes: u64 = tensors.iter().map(Tensor::bytes).sum();
            check_space(parent, out, bytes + small_bytes as u64)?;
            begin()?;
            write_directory(&partial, &shape, &shards, &small_files, &mut |done| {
                progress(done, bytes);
            })
            .map(|()| SynthReport { bytes, files: shards.len() })
        }
    };
    let finished = written.and_then(|report| {
        if out.exists() {
            fs::remove_dir(out).map_err(io_at(out))?;
        }
        fs::rename(&partial, out).map_err(io_at(out))?;
        Ok(report)
    });
    if finished.is_err() {
        // What went wrong is told, rather than that this failed as well.
        drop(remove(&partial));
    }
    finished
}

/// Writes the files of a checkpoint into a new directory; `progress` hears the bytes of tensors written.
fn write_directory(
    directory: &Path,
    shape: &Shape,
    shards: &[&[Tensor]],
    small_files: &[(&str, String)],
    progress: &mut dyn FnMut(u64),
) -> Result<(), SynthError> {
    fs::create_dir(directory).map_err(io_at(directory))?;
    let mut written = 0;
    for (index, shard) in shards.iter().enumerate() {
        let path = directory.join(shard_name(index, shards.len()));
        let mut advance = |bytes| {
            written += bytes;
            progress(written);
        };
        write::shard(&path, shape, shard, &mut advance).map_err(io_at(&path))?;
    }
    for (name, contents) in small_files {
        let path = directory.join(name);
        fs::write(&path, contents).map_err(io_at(&path))?;
    }
    Ok(())
}

/// Removes what a run that was killed has left: a directory, or a file that is empty or begins like what it writes. Another
/// file of that name is somebody else's.
fn remove_ours(partial: &Path) -> Result<(), SynthError> {
    let mut begin = [0; 4];
    let file = partial.is_file().then(|| fs::File::open(partial)).transpose();
    let is_ours = match file.map_err(io_at(partial))? {
        Some(mut file) => {
            let len = io::Read::read(&mut file, &mut begin).map_err(io_at(partial))?;
            b"GGUF".starts_with(&begin[..len])
        }
        None => true,
    };
    match is_ours {
        true => remove(partial),
        false => Err(SynthError::Exists { path: partial.to_owned() }),
    }
}

/// Removes a file or a directory, if it is there.
fn remove(path: &Path) -> Result<(), SynthError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_at(path)(error)),
        _ => Ok(()),
    }
}

/// Refuses what the file system of `parent` has no room for.
fn check_space(parent: &Path, out: &Path, needed: u64) -> Result<(), SynthError> {
    // The directory may still have to be made.
    let existing = parent.ancestors().find(|directory| directory.is_dir());
    match existing.and_then(free_bytes) {
        Some(free) if free < needed => {
            Err(SynthError::Space { path: out.to_owned(), needed, free })
        }
        _ => Ok(()),
    }
}

/// The bytes that a file system has left for this user, where the system tells.
#[cfg(unix)]
fn free_bytes(directory: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The bytes that a file system has left for this user, where the system tells.
#[cfg(not(unix))]
fn free_bytes(_directory: &Path) -> Option<u64> {
    None
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SynthError {
    let path = path.to_owned();
    move |source| SynthError::Io { path, source }
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
