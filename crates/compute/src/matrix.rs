//! Weights as kernels see them: a format, a shape, and bytes in a [`Block`].

use std::ops::Range;
use std::sync::Arc;

use checkpoint::Format;

use crate::memory::Block;

/// A weight matrix of shape (rows, cols), applied as `x W^T`, whose stored bytes are in memory.
///
/// Cloning is cheap and keeps the bytes alive: an expert slot is free when no matrix refers to it.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// How the values are stored.
    pub format: Format,
    /// Output width.
    pub rows: usize,
    /// Input width; a multiple of the format's group.
    pub cols: usize,
    block: Arc<Block>,
    data: usize,
    scales: usize,
    biases: usize,
}

impl Matrix {
    /// A matrix whose parts begin at the given offsets of `block`; `scales` and `biases` are ignored
    /// by formats that have none. The offsets need no alignment.
    ///
    /// # Panics
    /// If a part does not lie inside the block: callers compute offsets from validated locations.
    pub fn new(
        format: Format,
        (rows, cols): (usize, usize),
        block: Arc<Block>,
        [data, scales, biases]: [usize; 3],
    ) -> Self {
        let matrix = Self { format, rows, cols, block, data, scales, biases };
        assert!(cols % format.group() == 0, "the width is a whole number of groups");
        let len = matrix.block.bytes().len();
        assert!(matrix.data_range().end <= len, "the codes lie inside the block");
        let scale_bytes = rows * format.scale_row_bytes(cols);
        assert!(scale_bytes == 0 || scales.max(biases) + scale_bytes <= len, "so do the scales");
        matrix
    }

    fn data_range(&self) -> Range<usize> {
        self.data..self.data + self.rows * self.format.row_bytes(self.cols)
    }

    /// The memory that it lies in.
    pub fn block(&self) -> &Arc<Block> {
        &self.block
    }

    /// The stored values or codes, row after row.
    pub fn data(&self) -> &[u8] {
        &self.block.bytes()[self.data_range()]
    }

    /// The scales, row after row; empty for formats without them.
    pub fn scales(&self) -> &[u8] {
        let len = self.rows * self.format.scale_row_bytes(self.cols);
        if len == 0 { &[] } else { &self.block.bytes()[self.scales..self.scales + len] }
    }

    /// The biases, row after row; empty for formats without them.
    pub fn biases(&self) -> &[u8] {
        let len = self.rows * self.format.scale_row_bytes(self.cols);
        if len == 0 { &[] } else { &self.block.bytes()[self.biases..self.biases + len] }
    }
}

/// A routed expert whose weights are in memory.
#[derive(Clone, Debug)]
pub struct LoadedExpert {
    /// Its index in its layer.
    pub index: u32,
    /// Its weights; the memory is free again when they are dropped.
    pub weights: ExpertWeights,
}

/// The three matrices of an expert: `(silu(x gate^T) * (x up^T)) down^T`.
#[derive(Clone, Debug)]
pub struct ExpertWeights<M = Matrix> {
    /// Gate projection (intermediate, hidden).
    pub gate: M,
    /// Up projection (intermediate, hidden).
    pub up: M,
    /// Down projection (hidden, intermediate).
    pub down: M,
}
