//! GGUF files: metadata, and a directory of tensors.
//!
//! Layout: the magic `GGUF`, a version, the numbers of tensors and of metadata entries, the entries,
//! the tensors' names, dimensions (innermost first), types and offsets, padding, data. Lengths are
//! hostile until they were compared with what the file can hold: nothing is allocated for a length
//! before its bytes were seen to be there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::blocks::BlockType;
use crate::error::Error;
use crate::format::{FloatType, Format};

/// A longer header than any real one: a vocabulary of 250,000 tokens takes some 15 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Longest text of a name or a metadata entry: chat templates have tens of kilobytes.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// Most values of an array: vocabularies have a few hundred thousand.
const MAX_ITEMS: u64 = 1 << 24;
/// Most tensors of a file.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Most files of a split checkpoint.
const MAX_SPLITS: u64 = 4096;

/// A metadata value. Numbers are widened: their width carries no meaning.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Texts(Vec<String>),
    /// An array of another kind, which nobody asks for.
    Other,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    pub(crate) format: Format,
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    /// First byte, from the beginning of the file.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The header of a file.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) metadata: HashMap<String, Value>,
    pub(crate) tensors: Vec<GgufTensor>,
    pub(crate) file_len: u64,
}

/// Reads the header of a file and checks every tensor against the file's length.
pub(crate) fn read_gguf(path: &Path) -> Result<Gguf, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    parse_gguf(path, BufReader::with_capacity(1 << 16, file), file_len)
}

/// Reads a header from its beginning.
pub(crate) fn parse_gguf(path: &Path, input: impl Read, file_len: u64) -> Result<Gguf, Error> {
    let mut reader = Reader { path, input, position: 0, file_len };
    let magic = reader.bytes(4)?;
    if magic != b"GGUF" {
        return Err(reader.damaged("it does not begin with GGUF"));
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        let what = format!("GGUF version {version}");
        return Err(Error::Unsupported { path: path.to_owned(), what });
    }
    let n_tensors = reader.count(MAX_TENSORS, "tensors")?;
    let n_entries = reader.count(MAX_ITEMS, "metadata entries")?;
    let mut metadata = HashMap::new();
    for _ in 0..n_entries {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.damaged(&format!("{key} comes twice")));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..n_tensors {
        infos.push(reader.tensor_info()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Integer(alignment @ 1..=1_048_576)) => *alignment as u64,
        Some(_) => return Err(reader.damaged("general.alignment is no usable number")),
    };
    let data_begin = reader.position.next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(infos.len());
    for TensorInfo { name, kind, shape, offset } in infos {
        let damaged = |what: &str| reader.damaged(&format!("tensor {name}: {what}"));
        let Some(format) = format_of(kind) else {
            let what = format!("tensor {name} of ggml type {kind}");
            return Err(Error::Unsupported { path: path.to_owned(), what });
        };
        let cols = shape.last().copied().unwrap_or(1);
        if !cols.is_multiple_of(format.group()) {
            return Err(damaged(&format!(
                "rows of {cols} values are not whole blocks of {format}"
            )));
        }
        let rows = shape[..shape.len().saturating_sub(1)].iter();
        let row_bytes = cols.checked_mul(8).map(|_| format.row_bytes(cols));
        let bytes = rows.fold(row_bytes, |bytes, &size| bytes?.checked_mul(size));
        let len = bytes.ok_or_else(|| damaged("it is too large"))? as u64;
        let begin = data_begin.checked_add(offset);
        let begin = begin.ok_or_else(|| damaged("its offset is too large"))?;
        let needed = begin.checked_add(len).ok_or_else(|| damaged("it is too large"))?;
        if needed > file_len {
            let path = path.to_owned();
            return Err(Error::Truncated { path, tensor: name, needed, found: file_len });
        }
        tensors.push(GgufTensor { name, format, shape, offset: begin, len });
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    for pair in tensors.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(Error::Overlap { path: path.to_owned(), first, second });
        }
    }
    Ok(Gguf { metadata, tensors, file_len })
}

/// The files of a split checkpoint, of which `path` is the first; or the file alone.
pub(crate) fn split_paths(
    path: &Path,
    metadata: &HashMap<String, Value>,
) -> Result<Vec<PathBuf>, Error> {
    let count = match metadata.get("split.count") {
        None | Some(Value::Integer(0 | 1)) => return Ok(vec![path.to_owned()]),
        Some(Value::Integer(count)) if (2..=i128::from(MAX_SPLITS)).contains(count) => {
            *count as u64
        }
        Some(_) => {
            let reason = "split.count is no usable number".to_owned();
            return Err(Error::Malformed { path: path.to_owned(), reason });
        }
    };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let first = format!("-00001-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&first) else {
        let reason = format!("it is a part of {count} files; give the one that ends in {first}");
        return Err(Error::Malformed { path: path.to_owned(), reason });
    };
    Ok((1..=count)
        .map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf")))
        .collect())
}

/// The format of a ggml type.
fn format_of(kind: u32) -> Option<Format> {
    match kind {
        0 => Some(Format::Float(FloatType::F32)),
        1 => Some(Format::Float(FloatType::F16)),
        30 => Some(Format::Float(FloatType::Bf16)),
        _ => BlockType::from_number(kind).map(Format::Block),
    }
}

/// A tensor before its data are known to be there.
struct TensorInfo {
    name: String,
    kind: u32,
    shape: Vec<usize>,
    offset: u64,
}

/// Reads from the beginning of a file and knows how much of it is left.
struct Reader<'a, R> {
    path: &'a Path,
    input: R,
    position: u64,
    file_len: u64,
}

impl<R: Read> Reader<'_, R> {
    fn damaged(&self, reason: &str) -> Error {
        Error::Header { path: self.path.to_owned(), reason: reason.to_owned() }
    }

    /// Refuses to go on beyond the end of the file, or beyond what a header may have.
    fn expect(&self, len: u64) -> Result<(), Error> {
        if len > self.file_len.saturating_sub(self.position) {
            return Err(self.damaged("it ends early"));
        }
        if self.position + len > MAX_HEADER_BYTES {
            return Err(self.damaged("it is longer than any header"));
        }
        Ok(())
    }

    /// So many bytes, if the file has them.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Error> {
        self.expect(len)?;
        let mut bytes = vec![0; len as usize];
        let read = self.input.read_exact(&mut bytes);
        read.map_err(|source| Error::Io { path: self.path.to_owned(), source })?;
        self.position += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.expect(N as u64)?;
        let mut bytes = [0; N];
        let read = self.input.read_exact(&mut bytes);
        read.map_err(|source| Error::Io { path: self.path.to_owned(), source })?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things of which each takes at least a byte.
    fn count(&mut self, max: u64, what: &str) -> Result<u64, Error> {
        let count = self.u64()?;
        if count > max || count > self.file_len {
            return Err(self.damaged(&format!("it claims {count} {what}")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, Error> {
        let len = self.count(MAX_TEXT_BYTES, "bytes of text")?;
        let bytes = self.bytes(len)?;
        String::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    /// A metadata value of a kind.
    fn value(&mut self, kind: u32) -> Result<Value, Error> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.items()?,
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.damaged(&format!("a metadata entry has unknown type {kind}"))),
        })
    }

    /// An array. Arrays of arrays have no use in checkpoints and are refused.
    fn items(&mut self) -> Result<Value, Error> {
        let kind = self.u32()?;
        let count = self.count(MAX_ITEMS, "items")?;
        if kind == 9 {
            return Err(self.damaged("it has an array of arrays"));
        }
        let (mut integers, mut texts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match self.value(kind)? {
                Value::Integer(integer) => integers.push(integer as i64),
                Value::Bool(flag) => integers.push(flag.into()),
                Value::Text(text) => texts.push(text),
                _ => {}
            }
        }
        Ok(match kind {
            8 => Value::Texts(texts),
            6 | 12 => Value::Other,
            _ => Value::Integers(integers),
        })
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, Error> {
        let name = self.text()?;
        let n_dimensions = self.u32()?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(self.damaged(&format!("tensor {name} has {n_dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            let size = usize::try_from(self.u64()?).ok();
            let size = size.filter(|&size| size <= 1 << 40);
            shape.push(size.ok_or_else(|| self.damaged(&format!("tensor {name} is too large")))?);
        }
        shape.reverse();
        Ok(TensorInfo { name, kind: self.u32()?, shape, offset: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small file: one metadata entry and one Q8_0 tensor of (2, 32).
    fn sample() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        text(&mut bytes, "general.alignment");
        bytes.extend(4_u32.to_le_bytes());
        bytes.extend(64_u32.to_le_bytes());
        text(&mut bytes, "names");
        bytes.extend([9, 0, 0, 0, 8, 0, 0, 0]);
        bytes.extend(1_u64.to_le_bytes());
        text(&mut bytes, "one");
        text(&mut bytes, "w");
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(32_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(64) + 68, 7);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Gguf, Error> {
        parse_gguf(Path::new("test.gguf"), bytes, bytes.len() as u64)
    }

    #[test]
    fn a_sound_file_is_read() {
        let bytes = sample();
        let gguf = parse(&bytes).expect("it is sound");
        assert_eq!(gguf.metadata["names"], Value::Texts(vec!["one".to_owned()]));
        let tensor = &gguf.tensors[0];
        assert_eq!((&*tensor.name, &tensor.shape[..], tensor.len), ("w", &[2, 32][..], 68));
        assert_eq!(tensor.offset + tensor.len, bytes.len() as u64);
        assert_eq!(tensor.offset % 64, 0);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn splits_are_named_by_their_first() {
        let metadata = HashMap::from([("split.count".to_owned(), Value::Integer(3))]);
        let paths = split_paths(Path::new("d/m-00001-of-00003.gguf"), &metadata);
        let paths = paths.expect("it is the first");
        assert_eq!(paths[2], Path::new("d/m-00003-of-00003.gguf"));
        assert!(split_paths(Path::new("d/m-00002-of-00003.gguf"), &metadata).is_err());
        assert_eq!(split_paths(Path::new("m.gguf"), &HashMap::new()).expect("alone").len(), 1);
    }

    proptest! {
        #[test]
        fn no_change_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut bytes = sample();
            for (at, with) in changes {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            if let Ok(gguf) = parse(&bytes) {
                for tensor in gguf.tensors {
                    prop_assert!(tensor.offset + tensor.len <= bytes.len() as u64);
                }
            }
        }
    }
}
