//! Products of low-bit weights with activations in eight bits: integer arithmetic on stored codes.
//!
//! Activations are quantised in blocks of 32 columns, `x = scale * code` with `code` in -127..=127
//! ([`QuantizedRows`]). A weight is `w = scale * sub * (code - zero) + bias * min` with an unsigned code
//! of at most eight bits; `sub` and `min` are small integers for each 16 columns, 1 in most formats
//! ([`Kind`]). So a block of 32 columns contributes two exact integers:
//!
//! ```text
//! isum = sum over halves of sub * sum (code_w - zero) * code_x
//! bsum = sum over halves of min * sum code_x
//! ```
//!
//! and the product of a row is defined, for every instruction set alike, as
//!
//! ```text
//! lane[b % 16] = fma(isum * scale_w, scale_x, lane[b % 16])     for the blocks b in order
//! lane[b % 16] = fma(bias, scale_x * bsum, lane[b % 16])        if the format has biases
//! out          = lanes added up in halves: i + 8, i + 4, i + 2, i + 1
//! ```
//!
//! Integers have no order and the floating-point steps have one, so a result depends neither on how
//! many rows or tokens a kernel takes at a time nor on its instructions. Sixteen lanes let a vector
//! hold the blocks of a [`CHUNK`]: one conversion, two multiplications and one addition for 512 weights.

mod activations;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod id;
mod kind;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
mod unpack;

pub(crate) use activations::{BlocksMut, QuantizedRows, Tokens, quantize_portable};
pub(crate) use kind::Kind;

use crate::matrix::Matrix;

/// Columns that share a scale of the activations.
pub(crate) const BLOCK: usize = 32;
/// Blocks of a chunk, and running sums of a result.
pub(crate) const LANES: usize = 16;
/// Columns that are unpacked at a time.
pub(crate) const CHUNK: usize = BLOCK * LANES;

/// Consecutive rows of a matrix of low-bit codes.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) kind: Kind,
    /// Bytes of a row of codes, and of its scales and biases.
    row_bytes: usize,
    scale_row_bytes: usize,
    /// Those of a chunk.
    chunk_bytes: usize,
    chunk_scale_bytes: usize,
    data: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    /// Number of rows.
    pub(crate) n_rows: usize,
    pub(crate) cols: usize,
}

/// The stored bytes of one chunk of one row.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
}

impl<'a> Rows<'a> {
    /// Rows `begin..begin + n_rows`; `None` if the matrix has no low-bit codes.
    pub(crate) fn of(matrix: &'a Matrix, begin: usize, n_rows: usize) -> Option<Self> {
        let kind = Kind::of(matrix.format)?;
        let row_bytes = matrix.format.row_bytes(matrix.cols);
        let scale_row_bytes = matrix.format.scale_row_bytes(matrix.cols);
        let scales = begin * scale_row_bytes..(begin + n_rows) * scale_row_bytes;
        Some(Self {
            kind,
            row_bytes,
            scale_row_bytes,
            chunk_bytes: kind.chunk_bytes(),
            chunk_scale_bytes: kind.chunk_scale_bytes(),
            data: &matrix.data()[begin * row_bytes..(begin + n_rows) * row_bytes],
            scales: &matrix.scales()[scales.clone()],
            biases: &matrix.biases()[scales],
            n_rows,
            cols: matrix.cols,
        })
    }

    /// Number of chunks of a row; the last may be shorter.
    #[inline(always)]
    pub(crate) fn n_chunks(&self) -> usize {
        self.cols.div_ceil(CHUNK)
    }

    /// Whether the bytes are those of a whole chunk.
    #[inline(always)]
    fn is_whole(&self, stored: Stored<'_>) -> bool {
        stored.data.len() == self.chunk_bytes
    }

    /// A chunk of a row, without what is missing in a short last one.
    #[inline(always)]
    pub(crate) fn chunk(&self, row: usize, chunk: usize) -> Stored<'a> {
        let part = |all: &'a [u8], row_bytes: usize, bytes: usize| {
            let row = &all[row * row_bytes..(row + 1) * row_bytes];
            let begin = (chunk * bytes).min(row.len());
            &row[begin..(begin + bytes).min(row.len())]
        };
        Stored {
            data: part(self.data, self.row_bytes, self.chunk_bytes),
            scales: part(self.scales, self.scale_row_bytes, self.chunk_scale_bytes),
            biases: part(self.biases, self.scale_row_bytes, self.chunk_scale_bytes),
        }
    }
}

/// A short last chunk, filled up with zeros: zero scales make its codes harmless.
pub(crate) struct Padded {
    data: [u8; Kind::MAX_CHUNK_BYTES],
    scales: [u8; Kind::MAX_CHUNK_SCALE_BYTES],
    biases: [u8; Kind::MAX_CHUNK_SCALE_BYTES],
}

impl Padded {
    pub(crate) fn new(stored: Stored<'_>) -> Self {
        let mut padded = Self {
            data: [0; Kind::MAX_CHUNK_BYTES],
            scales: [0; Kind::MAX_CHUNK_SCALE_BYTES],
            biases: [0; Kind::MAX_CHUNK_SCALE_BYTES],
        };
        padded.data[..stored.data.len()].copy_from_slice(stored.data);
        padded.scales[..stored.scales.len()].copy_from_slice(stored.scales);
        padded.biases[..stored.biases.len()].copy_from_slice(stored.biases);
        padded
    }

    pub(crate) fn stored(&self, kind: Kind) -> Stored<'_> {
        let scale_bytes = kind.chunk_scale_bytes();
        Stored {
            data: &self.data[..kind.chunk_bytes()],
            scales: &self.scales[..scale_bytes],
            biases: &self.biases[..scale_bytes],
        }
    }
}

/// Adds up the lanes of a result, always in this order.
pub(crate) fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut sums = *lanes;
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}
