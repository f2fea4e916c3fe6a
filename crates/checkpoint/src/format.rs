//! How the values of a tensor are stored, and how many bytes they take.

use crate::blocks::BlockType;

/// A floating-point type in which plain tensors, scales and biases are stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl FloatType {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// MLX affine quantisation: `w = scale * q + bias` with one scale and bias per `group` consecutive
/// columns, `q` packed as one little-endian bit stream per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Affine {
    /// Bits of one code: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Columns that share a scale and a bias: 32, 64 or 128.
    pub group: u16,
    /// Type of the scales and of the biases.
    pub scales: FloatType,
}

/// How the rows of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Plain floating-point values, row-major.
    Float(FloatType),
    /// MLX affine codes with separate tensors of scales and biases.
    Affine(Affine),
    /// Blocks of a GGUF file, which hold their own scales.
    Block(BlockType),
}

impl Format {
    /// Bytes of one row of the main tensor. `cols` is a multiple of [`Format::group`].
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Float(float) => cols * float.size(),
            Self::Affine(affine) => cols * affine.bits as usize / 8,
            Self::Block(block) => cols / block.values() * block.bytes(),
        }
    }

    /// Bytes of one row of the scales, and as many of the biases; zero for formats without them.
    pub const fn scale_row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Float(_) | Self::Block(_) => 0,
            Self::Affine(affine) => cols / affine.group as usize * affine.scales.size(),
        }
    }

    /// Columns that can only be decoded together; the width of a matrix is a multiple of it.
    pub const fn group(self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Affine(affine) => affine.group as usize,
            Self::Block(block) => block.values(),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(FloatType::F32) => write!(f, "f32"),
            Self::Float(FloatType::F16) => write!(f, "f16"),
            Self::Float(FloatType::Bf16) => write!(f, "bf16"),
            Self::Block(block) => f.write_str(block.name()),
            Self::Affine(affine) => write!(f, "affine {}-bit g{}", affine.bits, affine.group),
        }
    }
}
