//! Where each byte of the result goes: shards, their headers, and the order of tensors in them.
//!
//! A file of safetensors describes each tensor as one range, and allows no gaps. An expert that is to be one
//! read is nine neighbouring tensors (codes, scales and biases of three matrices) that begin at a multiple
//! of the block size; where sizes do not come out even, a tensor of zeros named
//! [`checkpoint::PADDING_PREFIX`] fills the gap.

use checkpoint::{Affine, FloatType, Format, PADDING_PREFIX};
use serde_json::{Map, Value, json};

/// What direct reads begin and end at.
const BLOCK: u64 = 4096;

/// A range of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) shard: usize,
    /// First byte, from the beginning of the shard's data.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Piece {
    /// A part of the range.
    pub(crate) fn part(self, offset: u64, len: u64) -> Self {
        debug_assert!(offset + len <= self.len, "a part lies inside the whole");
        Self { offset: self.offset + offset, len, ..self }
    }
}

/// The shards of a checkpoint to be written.
#[derive(Debug)]
pub(crate) struct Layout {
    shards: Vec<Shard>,
    shard_bytes: u64,
    n_paddings: usize,
}

#[derive(Debug, Default)]
struct Shard {
    header: Map<String, Value>,
    len: u64,
}

impl Layout {
    /// No tensors yet; shards of about so many bytes.
    pub(crate) fn new(shard_bytes: u64) -> Self {
        Self { shards: vec![Shard::default()], shard_bytes, n_paddings: 0 }
    }

    fn last(&mut self) -> &mut Shard {
        self.shards.last_mut().expect("there is always one")
    }

    /// Makes sure that so many bytes that belong together come to lie in one shard.
    pub(crate) fn keep_together(&mut self, bytes: u64) {
        let shard_bytes = self.shard_bytes;
        if self.last().len > 0 && self.last().len + bytes > shard_bytes {
            self.shards.push(Shard::default());
        }
    }

    /// Goes on at a multiple of the block size.
    pub(crate) fn align(&mut self) {
        let gap = self.last().len.next_multiple_of(BLOCK) - self.last().len;
        if gap > 0 {
            let name = format!("{PADDING_PREFIX}{}", self.n_paddings);
            self.n_paddings += 1;
            self.tensor(name, "U8", &[gap as usize], gap);
        }
    }

    /// Adds a tensor.
    pub(crate) fn tensor(&mut self, name: String, dtype: &str, shape: &[usize], len: u64) -> Piece {
        let shard = self.shards.len() - 1;
        let last = self.last();
        let offset = last.len;
        last.len += len;
        let entry = json!({
            "dtype": dtype, "shape": shape, "data_offsets": [offset, last.len],
        });
        last.header.insert(name, entry);
        Piece { shard, offset, len }
    }

    /// Adds the tensors of a matrix, or of a stack of matrices, of the shape (lead.., cols): its values, or
    /// its codes, scales and biases.
    pub(crate) fn module(
        &mut self,
        module: &str,
        format: Stored,
        lead: &[usize],
        cols: usize,
    ) -> Vec<Piece> {
        let rows = lead.iter().product::<usize>() as u64;
        let with_cols = |cols: usize| [lead, &[cols]].concat();
        let weight = format!("{module}.weight");
        match format {
            Stored::Float(float) => {
                let bytes = rows * (cols * float.size()) as u64;
                vec![self.tensor(weight, float_name(float), &with_cols(cols), bytes)]
            }
            Stored::Affine(affine) => {
                let words = cols * usize::from(affine.bits) / 32;
                let codes = self.tensor(weight, "U32", &with_cols(words), rows * 4 * words as u64);
                let groups = cols / usize::from(affine.group);
                let bytes = rows * (groups * affine.scales.size()) as u64;
                let name = float_name(affine.scales);
                let mut parameter = |kind: &str| {
                    self.tensor(format!("{module}.{kind}"), name, &with_cols(groups), bytes)
                };
                vec![codes, parameter("scales"), parameter("biases")]
            }
        }
    }

    /// Names of the shards, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let n = self.shards.len();
        match n {
            1 => vec!["model.safetensors".to_owned()],
            _ => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
        }
    }

    /// Length of the data of a shard.
    pub(crate) fn data_bytes(&self, shard: usize) -> u64 {
        self.shards[shard].len
    }

    /// The header of a shard: a whole number of blocks, so that data is aligned in the file as here.
    pub(crate) fn header(&self, shard: usize) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
        header.extend(self.shards[shard].header.clone());
        let mut json = Value::Object(header).to_string().into_bytes();
        let len = (8 + json.len() as u64).next_multiple_of(BLOCK) - 8;
        json.resize(len as usize, b' ');
        [&len.to_le_bytes()[..], &json].concat()
    }

    /// The contents of `model.safetensors.index.json`.
    pub(crate) fn index(&self) -> Value {
        let mut weight_map = Map::new();
        for (shard, name) in self.shards.iter().zip(self.names()) {
            weight_map.extend(shard.header.keys().map(|key| (key.clone(), json!(name))));
        }
        let total: u64 = self.shards.iter().map(|shard| shard.len).sum();
        json!({ "metadata": { "total_size": total }, "weight_map": weight_map })
    }
}

/// How a matrix is stored in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Float(FloatType),
    Affine(Affine),
}

impl Stored {
    /// The form in safetensors of a matrix that is kept: blocks have none, and become bf16.
    pub(crate) fn of_kept(format: Format) -> Self {
        match format {
            Format::Float(float) => Self::Float(float),
            Format::Affine(affine) => Self::Affine(affine),
            Format::Block(_) => Self::Float(FloatType::Bf16),
        }
    }

    /// Bytes of a matrix.
    pub(crate) fn bytes(self, rows: usize, cols: usize) -> u64 {
        let format = match self {
            Self::Float(float) => Format::Float(float),
            Self::Affine(affine) => Format::Affine(affine),
        };
        (rows * (format.row_bytes(cols) + 2 * format.scale_row_bytes(cols))) as u64
    }
}

/// The name that safetensors files use.
pub(crate) const fn float_name(float: FloatType) -> &'static str {
    match float {
        FloatType::F32 => "F32",
        FloatType::F16 => "F16",
        FloatType::Bf16 => "BF16",
    }
}
