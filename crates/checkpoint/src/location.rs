//! Where stored values lie: a weight is a set of byte ranges until something touches it.

use crate::format::{FloatType, Format};

/// Index of a data file in [`crate::Checkpoint::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A byte range of a data file; known to lie inside the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// The file.
    pub file: FileId,
    /// First byte, from the beginning of the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Extent {
    /// A part of the range, which lies inside it.
    pub(crate) fn part(self, offset: u64, len: u64) -> Self {
        debug_assert!(offset + len <= self.len, "a part lies inside the whole");
        Self { file: self.file, offset: self.offset + offset, len }
    }

    /// The range when so many files come before its own.
    pub(crate) fn after_files(self, n_files: u32) -> Self {
        Self { file: FileId(self.file.0 + n_files), ..self }
    }
}

/// A stored matrix of shape (rows, cols), applied as `x W^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixLocation {
    /// How the values are stored.
    pub format: Format,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// The values or codes.
    pub data: Extent,
    /// Scales and biases, for the formats that keep them apart.
    pub scales: Option<[Extent; 2]>,
}

impl MatrixLocation {
    /// The byte ranges of the matrix: data, then scales and biases where there are any.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        [Some(self.data), self.scales.map(|s| s[0]), self.scales.map(|s| s[1])]
            .into_iter()
            .flatten()
    }

    /// Stored bytes.
    pub fn bytes(&self) -> u64 {
        self.extents().map(|extent| extent.len).sum()
    }

    pub(crate) fn after_files(self, n_files: u32) -> Self {
        let scales = self.scales.map(|pair| pair.map(|part| part.after_files(n_files)));
        Self { data: self.data.after_files(n_files), scales, ..self }
    }
}

/// What a stored vector means, from the point of view of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorKind {
    /// Used as stored.
    Plain,
    /// The weight of a zero-centred RMS norm: the effective weight is `1 + w`, which some layouts
    /// store as such and others as `w`.
    ZeroCentredNorm,
}

/// A stored vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VectorLocation {
    /// Type of the stored values.
    pub dtype: FloatType,
    /// Number of values.
    pub len: usize,
    /// Their bytes.
    pub extent: Extent,
    /// How a stored value becomes the effective one.
    pub transform: VectorTransform,
}

/// How a stored value of a vector becomes the effective one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorTransform {
    /// It is the effective one.
    Identity,
    /// `1 + x`: zero-centred norms as Hugging Face stores them.
    AddOne,
    /// `ln(-x)`: decay rates, which GGUF files keep as `-exp(A_log)`.
    LogOfNegative,
}

/// The three matrices of one routed expert: `(silu(x gate^T) * (x up^T)) down^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLocation {
    /// Gate projection (intermediate, hidden).
    pub gate: MatrixLocation,
    /// Up projection (intermediate, hidden).
    pub up: MatrixLocation,
    /// Down projection (hidden, intermediate).
    pub down: MatrixLocation,
}

impl ExpertLocation {
    /// The matrices in the order gate, up, down.
    pub fn matrices(&self) -> [&MatrixLocation; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Stored bytes of the expert.
    pub fn bytes(&self) -> u64 {
        self.matrices().iter().map(|matrix| matrix.bytes()).sum()
    }
}
