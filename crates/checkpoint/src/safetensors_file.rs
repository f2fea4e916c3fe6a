//! Whole tensors from and to small safetensors files: golden outputs, dumps.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use crate::codec::decode_floats;
use crate::error::Error;
use crate::format::FloatType;
use crate::safetensors::{Dtype, Header, HeaderTensor, read_header};

/// A safetensors file whose tensors can be read one by one.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    header: Header,
}

impl SafetensorsFile {
    /// Reads the header of a file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), header: read_header(path)? })
    }

    /// Whether there is a tensor with this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.iter().any(|tensor| tensor.name == name)
    }

    /// The values of a floating-point tensor.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let tensor = self.find(name)?;
        let Dtype::Float(dtype) = tensor.dtype else {
            return Err(self.wrong_type(tensor, "F32, F16 or BF16"));
        };
        let bytes = self.read_bytes(tensor)?;
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        decode_floats(dtype, &bytes, &mut values);
        Ok(values)
    }

    /// The values of an integer tensor.
    pub fn read_i32(&self, name: &str) -> Result<Vec<i32>, Error> {
        let tensor = self.find(name)?;
        if tensor.dtype != Dtype::I32 {
            return Err(self.wrong_type(tensor, "I32"));
        }
        let bytes = self.read_bytes(tensor)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
    }

    /// The stored bytes of a tensor.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.read_bytes(self.find(name)?)
    }

    fn find(&self, name: &str) -> Result<&HeaderTensor, Error> {
        let tensor = self.header.tensors.iter().find(|tensor| tensor.name == name);
        let missing = || Error::Missing {
            name: name.to_owned(),
            tried: vec![format!("{name} in {}", self.path.display())],
        };
        tensor.ok_or_else(missing)
    }

    fn read_bytes(&self, tensor: &HeaderTensor) -> Result<Vec<u8>, Error> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(tensor.offset)).map_err(io)?;
        // The length was checked against that of the file.
        let mut bytes = vec![0; tensor.len as usize];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    fn wrong_type(&self, tensor: &HeaderTensor, expected: &'static str) -> Error {
        Error::Type {
            path: self.path.clone(),
            tensor: tensor.name.clone(),
            found: tensor.dtype.name().to_owned(),
            expected,
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl TensorData {
    /// A tensor of 32-bit floats.
    pub fn f32(shape: Vec<usize>, values: Vec<f32>) -> Self {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::Float(FloatType::F32), shape, bytes }
    }

    /// A tensor of 32-bit integers.
    pub fn i32(shape: Vec<usize>, values: Vec<i32>) -> Self {
        let bytes = values.into_iter().flat_map(i32::to_le_bytes).collect();
        Self { dtype: Dtype::I32, shape, bytes }
    }
}

/// Writes a file, under another name first, so that nobody reads half of it.
pub fn write_safetensors(path: &Path, tensors: &[(String, TensorData)]) -> Result<(), Error> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, tensor) in tensors {
        let begin = end;
        end += tensor.bytes.len();
        let entry = json!({
            "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [begin, end],
        });
        header.insert(name.clone(), entry);
    }
    let partial = path.with_extension("safetensors.tmp");
    let write = || -> io::Result<()> {
        let mut file = io::BufWriter::new(File::create(&partial)?);
        write_header(&mut file, &header)?;
        for (_, tensor) in tensors {
            file.write_all(&tensor.bytes)?;
        }
        file.into_inner()?.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Writes length and JSON of a header, padded with spaces so that data begins at a multiple of eight.
pub(crate) fn write_header(
    file: &mut impl Write,
    header: &Map<String, serde_json::Value>,
) -> io::Result<u64> {
    let mut json = serde_json::to_string(header)?;
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    file.write_all(&(json.len() as u64).to_le_bytes())?;
    file.write_all(json.as_bytes())?;
    Ok(8 + json.len() as u64)
}
