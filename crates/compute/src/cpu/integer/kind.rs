//! The stored formats that integer kernels read.

use checkpoint::{BlockType, FloatType, Format};

use crate::cpu::integer::{BLOCK, CHUNK};

/// A low-bit format as integer kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// MLX affine codes: bits, columns of a group, type of scales and biases.
    Affine {
        bits: u8,
        group: u16,
        scales: FloatType,
    },
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Iq4Nl,
    Mxfp4,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Xs,
}

/// What a kind adds to the products of its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    /// Nothing.
    None,
    /// A bias for each block of 32 columns.
    Block,
    /// A bias for each chunk part, times a small integer for each 16 columns.
    Halves,
}

impl Kind {
    pub(crate) const MAX_CHUNK_BYTES: usize = CHUNK / BLOCK * 34;
    pub(crate) const MAX_CHUNK_SCALE_BYTES: usize = CHUNK / BLOCK * 4;

    /// The kind of a format; `None` for plain floats and for formats of lattice points.
    pub(crate) fn of(format: Format) -> Option<Self> {
        Some(match format {
            Format::Float(_) => return None,
            Format::Affine(affine) => {
                Self::Affine { bits: affine.bits, group: affine.group, scales: affine.scales }
            }
            Format::Block(block) => match block {
                BlockType::Q4_0 => Self::Q4_0,
                BlockType::Q4_1 => Self::Q4_1,
                BlockType::Q5_0 => Self::Q5_0,
                BlockType::Q5_1 => Self::Q5_1,
                BlockType::Q8_0 => Self::Q8_0,
                BlockType::Iq4Nl => Self::Iq4Nl,
                BlockType::Mxfp4 => Self::Mxfp4,
                BlockType::Q2K => Self::Q2K,
                BlockType::Q3K => Self::Q3K,
                BlockType::Q4K => Self::Q4K,
                BlockType::Q5K => Self::Q5K,
                BlockType::Q6K => Self::Q6K,
                BlockType::Iq4Xs => Self::Iq4Xs,
                _ => return None,
            },
        })
    }

    /// What is subtracted from a stored code.
    #[inline(always)]
    pub(crate) const fn zero(self) -> i32 {
        match self {
            Self::Affine { .. } | Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K => 0,
            Self::Q3K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6K => 32,
            // Signed values, stored as they are or in tables.
            Self::Q8_0 | Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 => 128,
        }
    }

    /// Whether each 16 columns have a small factor of their own.
    #[inline(always)]
    pub(crate) const fn has_subs(self) -> bool {
        matches!(self, Self::Q2K | Self::Q3K | Self::Q6K)
    }

    #[inline(always)]
    pub(crate) const fn bias(self) -> Bias {
        match self {
            Self::Affine { .. } | Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => Bias::Block,
            Self::Q2K => Bias::Halves,
            _ => Bias::None,
        }
    }

    /// Whether codes need all eight bits, so that sums of two products may not fit 16 bits.
    #[inline(always)]
    pub(crate) const fn is_wide(self) -> bool {
        matches!(self, Self::Affine { bits: 8, .. }) || self.zero() == 128
    }

    /// Bytes of the codes of a chunk.
    #[inline(always)]
    pub(crate) const fn chunk_bytes(self) -> usize {
        match self {
            Self::Affine { bits, .. } => CHUNK * bits as usize / 8,
            Self::Q4_0 | Self::Iq4Nl => CHUNK / 32 * 18,
            Self::Q4_1 => CHUNK / 32 * 20,
            Self::Q5_0 => CHUNK / 32 * 22,
            Self::Q5_1 => CHUNK / 32 * 24,
            Self::Q8_0 => CHUNK / 32 * 34,
            Self::Mxfp4 => CHUNK / 32 * 17,
            Self::Q2K => CHUNK / 256 * 84,
            Self::Q3K => CHUNK / 256 * 110,
            Self::Q4K => CHUNK / 256 * 144,
            Self::Q5K => CHUNK / 256 * 176,
            Self::Q6K => CHUNK / 256 * 210,
            Self::Iq4Xs => CHUNK / 256 * 136,
        }
    }

    /// Bytes of the scales of a chunk, and of its biases, where they lie apart.
    #[inline(always)]
    pub(crate) const fn chunk_scale_bytes(self) -> usize {
        match self {
            Self::Affine { group, scales, .. } => CHUNK / group as usize * scales.size(),
            _ => 0,
        }
    }
}
