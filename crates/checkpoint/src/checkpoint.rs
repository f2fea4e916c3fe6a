//! A checkpoint on the drive: its configuration and a directory of its tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{GenerationConfig, ModelConfig};
use crate::config_json::{read_config, read_generation_config, read_json};
use crate::error::Error;
use crate::format::Format;
use crate::gguf::{read_gguf, split_paths};
use crate::gguf_model::Metadata;
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
    /// What a GGUF file holds beside its tensors.
    text: Option<EmbeddedText>,
}

/// Tokenizer and template of a file that holds them itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmbeddedText {
    /// The tokenizer, in the form of a `tokenizer.json`.
    pub tokenizer_json: Option<String>,
    /// The chat template.
    pub chat_template: Option<String>,
}

impl Checkpoint {
    /// Opens the directory of a checkpoint, or a GGUF file. Every byte range is checked against its file; whether
    /// the model has all that it needs is checked by whoever asks the [`Resolver`] for it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let not_a_checkpoint = |reason: &str| Error::NotACheckpoint {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let metadata = fs::metadata(path);
        let metadata = metadata.map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let config_path = path.join("config.json");
        if !metadata.is_dir() {
            return match path.extension().and_then(|extension| extension.to_str()) {
                Some("gguf") => Self::open_gguf(path),
                _ => Err(not_a_checkpoint("it is a file")),
            };
        }
        if !config_path.exists() {
            return match gguf_files(path)?.as_slice() {
                [file] => Self::open_gguf(file),
                [] => Err(not_a_checkpoint("it has no config.json")),
                _ => Err(not_a_checkpoint("it has several GGUF files; give one of them")),
            };
        }
        let (config, quantization) = read_config(&config_path)?;
        let generation = read_generation_config(&path.join("generation_config.json"))?;
        let (files, tensors) = read_files(path)?;
        Ok(Self {
            path: path.to_owned(),
            config,
            generation,
            quantization,
            files,
            tensors,
            text: None,
        })
    }

    /// Opens a GGUF file, or all files of a split one by its first.
    fn open_gguf(path: &Path) -> Result<Self, Error> {
        let first = read_gguf(path)?;
        let paths = split_paths(path, &first.metadata)?;
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for (index, path) in paths.iter().enumerate() {
            let other = if index == 0 { None } else { Some(read_gguf(path)?) };
            let part = other.as_ref().unwrap_or(&first);
            let file = FileId(index as u32);
            tensors.extend(part.tensors.iter().map(|tensor| StoredTensor {
                name: tensor.name.clone(),
                dtype: match tensor.format {
                    Format::Float(float) => Dtype::Float(float),
                    Format::Block(block) => Dtype::Block(block),
                    Format::Affine(_) => unreachable!("GGUF has no affine format"),
                },
                shape: tensor.shape.clone(),
                extent: Extent { file, offset: tensor.offset, len: tensor.len },
            }));
            files.push(DataFile { path: path.clone(), len: part.file_len });
        }
        sort_by_name(&mut tensors, &files)?;
        let metadata = Metadata::new(path, &first.metadata)?;
        let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
        let vocab_size = find("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
        let is_dense = |layer: usize| find(&format!("blk.{layer}.ffn_gate_inp.weight")).is_none();
        let config =
            metadata.config(vocab_size.unwrap_or(1), find("output.weight").is_some(), is_dense)?;
        let text = EmbeddedText {
            tokenizer_json: metadata.tokenizer_json()?,
            chat_template: metadata.chat_template().map(str::to_owned),
        };
        Ok(Self {
            path: path.to_owned(),
            config,
            generation: metadata.generation(),
            quantization: Quantization::default(),
            files,
            tensors,
            text: Some(text),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a GGUF file holds beside its tensors; other checkpoints have files for it.
    pub fn text(&self) -> Option<&EmbeddedText> {
        self.text.as_ref()
    }

    /// Takes what a GGUF file holds beside its tensors; other checkpoints have files for it.
    pub fn take_text(&mut self) -> Option<EmbeddedText> {
        self.text.as_mut().map(std::mem::take)
    }

    pub(crate) fn is_gguf(&self) -> bool {
        self.text.is_some()
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
    sort_by_name(&mut tensors, &files)?;
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

/// Sorts tensors and refuses two of the same name.
fn sort_by_name(tensors: &mut [StoredTensor], files: &[DataFile]) -> Result<(), Error> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let path_of = |tensor: &StoredTensor| files[tensor.extent.file.0 as usize].path.clone();
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        None => Ok(()),
        Some(pair) => {
            let (first, second) = (path_of(&pair[0]), path_of(&pair[1]));
            Err(Error::Duplicate { tensor: pair[0].name.clone(), first, second })
        }
    }
}

/// The GGUF files of a directory that a model can be opened by: of split ones the first.
fn gguf_files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_later_part = name.contains("-of-") && !name.contains("-00001-of-");
        if name.ends_with(".gguf") && !is_later_part {
            files.push(path);
        }
    }
    Ok(files)
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
