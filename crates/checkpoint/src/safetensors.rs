//! The header of a safetensors file: names, types, shapes and byte ranges, checked against the file.
//!
//! Layout: a little-endian `u64` N, N bytes of JSON, then data; offsets are relative to byte 8 + N. The
//! header is read with our own few lines because errors must name tensors, and because only the header
//! is read: the file may have hundreds of gigabytes.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::blocks::BlockType;
use crate::error::Error;
use crate::format::FloatType;

/// A longer header than any real one (a checkpoint of 200,000 tensors has 30 MB).
const MAX_HEADER_BYTES: u64 = 256 << 20;
const MAX_DIMENSIONS: usize = 8;

/// Type of the values of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Floating point that weights can have.
    Float(FloatType),
    /// 32-bit words: packed codes.
    U32,
    /// 32-bit signed integers.
    I32,
    /// Blocks of a GGUF file.
    Block(BlockType),
    /// Anything else: its name, and bytes of a value.
    Other(&'static str, usize),
}

impl Dtype {
    /// Bytes of a value; zero for blocks, whose values have no bytes of their own.
    pub const fn size(self) -> usize {
        match self {
            Self::Float(float) => float.size(),
            Self::U32 | Self::I32 => 4,
            Self::Block(_) => 0,
            Self::Other(_, size) => size,
        }
    }

    /// The name that safetensors files use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float(FloatType::F32) => "F32",
            Self::Float(FloatType::F16) => "F16",
            Self::Float(FloatType::Bf16) => "BF16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::Block(block) => block.name(),
            Self::Other(name, _) => name,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        const OTHERS: [(&str, usize); 13] = [
            ("BOOL", 1),
            ("U8", 1),
            ("I8", 1),
            ("F8_E4M3", 1),
            ("F8_E5M2", 1),
            ("F8_E8M0", 1),
            ("I16", 2),
            ("U16", 2),
            ("I64", 8),
            ("U64", 8),
            ("F64", 8),
            ("C64", 8),
            ("F8_E4M3FNUZ", 1),
        ];
        Some(match name {
            "F32" => Self::Float(FloatType::F32),
            "F16" => Self::Float(FloatType::F16),
            "BF16" => Self::Float(FloatType::Bf16),
            "U32" => Self::U32,
            "I32" => Self::I32,
            _ => {
                let (name, size) = OTHERS.iter().find(|(other, _)| *other == name)?;
                Self::Other(name, *size)
            }
        })
    }
}

/// A tensor of one file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeaderTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// First byte, from the beginning of the file.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The checked header of a file.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// Tensors in order of offset.
    pub(crate) tensors: Vec<HeaderTensor>,
    pub(crate) file_len: u64,
}

/// Reads and checks the header of a file.
pub(crate) fn read_header(path: &Path) -> Result<Header, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let damaged = |reason: String| Error::Header { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    if file_len < 8 {
        return Err(damaged(format!("the file has {file_len} bytes, fewer than a header")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER_BYTES || header_len > file_len - 8 {
        return Err(damaged(format!("it claims {header_len} bytes of a file of {file_len}")));
    }
    let mut json = vec![0; header_len as usize];
    file.read_exact(&mut json).map_err(io)?;
    parse_header(path, &json, file_len)
}

/// Checks the JSON of a header against the length of its file.
pub(crate) fn parse_header(path: &Path, json: &[u8], file_len: u64) -> Result<Header, Error> {
    let damaged = |reason: String| Error::Header { path: path.to_owned(), reason };
    let Entries(entries) =
        serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    let data_begin = 8 + json.len() as u64;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let tensor = parse_tensor(name, &entry, data_begin).map_err(damaged)?;
        let needed = tensor.offset + tensor.len;
        if needed > file_len {
            let (path, tensor) = (path.to_owned(), tensor.name);
            return Err(Error::Truncated { path, tensor, needed, found: file_len });
        }
        tensors.push(tensor);
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    for pair in tensors.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(Error::Overlap { path: path.to_owned(), first, second });
        }
    }
    Ok(Header { tensors, file_len })
}

fn parse_tensor(name: String, entry: &Value, data_begin: u64) -> Result<HeaderTensor, String> {
    let wrong = |what: &str| format!("tensor {name}: {what}");
    let dtype = entry.get("dtype").and_then(Value::as_str).ok_or_else(|| wrong("no dtype"))?;
    let dtype = Dtype::parse(dtype).ok_or_else(|| wrong(&format!("unknown dtype {dtype:?}")))?;
    let shape = entry.get("shape").and_then(Value::as_array);
    let shape = shape.filter(|shape| shape.len() <= MAX_DIMENSIONS);
    let dimensions = shape.map(|shape| {
        let sizes = shape.iter().map(|size| size.as_u64().and_then(|size| size.try_into().ok()));
        sizes.collect::<Option<Vec<usize>>>()
    });
    let shape = dimensions.flatten().ok_or_else(|| wrong("no usable shape"))?;
    let offset = |index: usize| entry.get("data_offsets")?.get(index)?.as_u64();
    let (begin, end) = offset(0).zip(offset(1)).ok_or_else(|| wrong("no usable data_offsets"))?;
    let bytes = shape.iter().try_fold(dtype.size(), |bytes, &size| bytes.checked_mul(size));
    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let len = end.checked_sub(begin).ok_or_else(|| wrong("data_offsets run backwards"))?;
    if bytes != Some(len) {
        let kind = dtype.name();
        return Err(wrong(&format!("{len} bytes do not hold {kind} values of shape {shape:?}")));
    }
    let offset = data_begin.checked_add(begin).filter(|offset| offset.checked_add(len).is_some());
    let offset = offset.ok_or_else(|| wrong("data_offsets are too large"))?;
    Ok(HeaderTensor { name, dtype, shape, offset, len })
}

/// The entries of a JSON object in order; a repeated name is an error instead of a silent loss.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                let mut names = std::collections::HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("{name} comes twice")));
                    }
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str, file_len: u64) -> Result<Header, Error> {
        parse_header(Path::new("test.safetensors"), json.as_bytes(), file_len)
    }

    #[test]
    fn a_sound_header_is_read() {
        let json = r#"{"__metadata__":{"format":"mlx"},
            "b":{"dtype":"U32","shape":[2],"data_offsets":[4,12]},
            "a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
        let header = parse(json, 8 + json.len() as u64 + 12).expect("the header is sound");
        let begin = 8 + json.len() as u64;
        let places: Vec<_> = header.tensors.iter().map(|t| (&*t.name, t.offset, t.len)).collect();
        assert_eq!(places, [("a", begin, 4), ("b", begin + 4, 8)]);
    }

    #[test]
    fn each_fault_is_named() {
        let with = |fields: &str| format!(r#"{{"w":{{{fields}}}}}"#);
        for (json, words) in [
            (with(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), "4 bytes"),
            (with(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), "backwards"),
            (with(r#""dtype":"Q7","shape":[2],"data_offsets":[0,8]"#), "Q7"),
            (with(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#), "shape"),
            (
                with(r#""dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,8]"#),
                "hold",
            ),
            (with(r#""dtype":"F32","shape":[250],"data_offsets":[0,1000]"#), "truncated"),
            (r#"{"w":{},"w":{}}"#.to_owned(), "twice"),
            ("[]".to_owned(), "object"),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                    "b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}"#
                    .to_owned(),
                "overlap",
            ),
        ] {
            let message = parse(&json, 500).expect_err("the header is faulty").to_string();
            assert!(message.contains(words), "{json}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(json in prop::collection::vec(any::<u8>(), 0..256), len in any::<u64>()) {
            let _ = parse_header(Path::new("x"), &json, len);
        }

        #[test]
        fn no_header_panics(
            dtype in prop::sample::select(vec!["F32", "BF16", "U32", "F64", "?"]),
            shape in prop::collection::vec(any::<u64>(), 0..10),
            begin in any::<u64>(),
            end in any::<u64>(),
            len in any::<u64>(),
        ) {
            let json = serde_json::json!({
                "w": { "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }
            });
            let result = parse(&json.to_string(), len);
            if let Ok(header) = result {
                let tensor = &header.tensors[0];
                prop_assert!(tensor.offset + tensor.len <= len);
            }
        }
    }
}
