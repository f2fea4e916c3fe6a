//! A checkpoint on the drive: its configuration and a directory of its tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{GenerationConfig, ModelConfig};
use crate::config_json::{read_config, read_generation_config, read_json};
use crate::error::Error;
use crate::location::{Extent, FileId};
use crate::quantization::Quantization;
use crate::resolver::Resolver;
use crate::safetensors::{Dtype, read_header};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// A file with tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes when it was opened.
    pub len: u64,
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub extent: Extent,
}

/// A checkpoint that was opened: nothing but headers and configuration is in memory.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    generation: GenerationConfig,
    quantization: Quantization,
    files: Vec<DataFile>,
    /// Sorted by name.
    tensors: Vec<StoredTensor>,
}

impl Checkpoint {
    /// Opens the directory of a checkpoint. Every byte range is checked against its file; whether
    /// the model has all that it needs is checked by whoever asks the [`Resolver`] for it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let not_a_checkpoint = |reason: &str| Error::NotACheckpoint {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let metadata = fs::metadata(path);
        let metadata = metadata.map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if !metadata.is_dir() {
            let reason = match path.extension().and_then(|extension| extension.to_str()) {
                Some("gguf") => "it is a GGUF file, which is not supported yet",
                _ => "it is a file",
            };
            return Err(not_a_checkpoint(reason));
        }
        let config_path = path.join("config.json");
        if !config_path.exists() {
            return Err(not_a_checkpoint("it has no config.json"));
        }
        let (config, quantization) = read_config(&config_path)?;
        let generation = read_generation_config(&path.join("generation_config.json"))?;
        let (files, tensors) = read_files(path)?;
        Ok(Self { path: path.to_owned(), config, generation, quantization, files, tensors })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How the model's authors sample from it.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The files with tensors; a [`FileId`] is an index into them.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The tensor with a name.
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensor_index(name).map(|index| &self.tensors[index])
    }

    /// Finds the weights of the model among the tensors.
    pub fn resolver(&self) -> Resolver<'_> {
        Resolver::new(self)
    }

    pub(crate) fn tensor_index(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    pub(crate) fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    pub(crate) fn file_of(&self, tensor: &StoredTensor) -> PathBuf {
        self.files[tensor.extent.file.0 as usize].path.clone()
    }
}

/// Reads the headers of all files of a checkpoint.
fn read_files(directory: &Path) -> Result<(Vec<DataFile>, Vec<StoredTensor>), Error> {
    let index_path = directory.join(INDEX);
    let (names, weight_map) = if index_path.exists() {
        let weight_map = read_index(&index_path)?;
        let mut names: Vec<String> = weight_map.values().cloned().collect();
        names.sort_unstable();
        names.dedup();
        (names, Some(weight_map))
    } else if directory.join(SINGLE).exists() {
        (vec![SINGLE.to_owned()], None)
    } else {
        let path = directory.to_owned();
        let reason = format!("it has neither {SINGLE} nor {INDEX}");
        return Err(Error::NotACheckpoint { path, reason });
    };

    let mut files = Vec::with_capacity(names.len());
    let mut tensors: Vec<StoredTensor> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let path = directory.join(name);
        let header = read_header(&path)?;
        let file = FileId(index as u32);
        tensors.extend(header.tensors.into_iter().map(|tensor| StoredTensor {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            extent: Extent { file, offset: tensor.offset, len: tensor.len },
        }));
        files.push(DataFile { path, len: header.file_len });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let path_of = |tensor: &StoredTensor| files[tensor.extent.file.0 as usize].path.clone();
    for pair in tensors.windows(2) {
        if pair[0].name == pair[1].name {
            let (first, second) = (path_of(&pair[0]), path_of(&pair[1]));
            return Err(Error::Duplicate { tensor: pair[0].name.clone(), first, second });
        }
    }
    for (tensor, shard) in weight_map.iter().flatten() {
        let found = tensors.binary_search_by(|stored| stored.name.as_str().cmp(tensor));
        let file = found.ok().map(|index| tensors[index].extent.file.0 as usize);
        if file.map(|file| &names[file]) != Some(shard) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(Error::WrongIndex { index: index_path, tensor, shard });
        }
    }
    Ok((files, tensors))
}

/// Reads the index: tensor names and their files, which are plain names beside it.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let malformed = |reason: String| Error::Malformed { path: path.to_owned(), reason };
    let index = read_json(path)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("it has no weight_map".to_owned()))?;
    let entries = map.iter().map(|(tensor, file)| {
        let file = file.as_str().filter(|file| {
            // Nothing outside the directory may be opened because a file says so.
            let mut parts = Path::new(file).components();
            matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
        });
        let file = file.ok_or_else(|| malformed(format!("{tensor} has no plain file name")))?;
        Ok((tensor.clone(), file.to_owned()))
    });
    entries.collect()
}
