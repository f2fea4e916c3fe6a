//! Where the routed experts of a layer lie.
//!
//! Most checkpoints stack a layer's experts in a few tensors, so an expert's place is computed rather
//! than stored: 30,720 experts would otherwise take megabytes of directory.

use crate::format::Format;
use crate::location::{ExpertLocation, Extent, MatrixLocation};

/// Where the routed experts of a layer lie.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertTable(Table);

#[derive(Clone, Debug, PartialEq)]
enum Table {
    /// Gate, up and down, each in a stack.
    Stacked { n_experts: usize, matrices: Box<[StackedMatrix; 3]> },
    /// Every expert by itself.
    Separate(Vec<ExpertLocation>),
}

impl ExpertTable {
    pub(crate) fn stacked(n_experts: usize, matrices: [StackedMatrix; 3]) -> Self {
        Self(Table::Stacked { n_experts, matrices: Box::new(matrices) })
    }

    /// A table of experts that lie anywhere.
    pub fn separate(experts: Vec<ExpertLocation>) -> Self {
        Self(Table::Separate(experts))
    }

    /// Number of experts.
    pub fn len(&self) -> usize {
        match &self.0 {
            Table::Stacked { n_experts, .. } => *n_experts,
            Table::Separate(experts) => experts.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where an expert lies.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn get(&self, expert: usize) -> ExpertLocation {
        assert!(expert < self.len(), "expert {expert} of {}", self.len());
        match &self.0 {
            Table::Stacked { matrices, .. } => {
                let [gate, up, down] = matrices.as_ref().map(|matrix| matrix.location(expert));
                ExpertLocation { gate, up, down }
            }
            Table::Separate(experts) => experts[expert],
        }
    }
}

/// Equal matrices at equal distances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StackedMatrix {
    format: Format,
    rows: usize,
    cols: usize,
    data: Extent,
    scales: Option<[Extent; 2]>,
    /// Rows from the beginning of one matrix to that of the next.
    row_stride: usize,
    /// Row of the first matrix in the stack.
    first_row: usize,
}

impl StackedMatrix {
    /// A stack of the shape (.., rows, cols) whose tensors have the sizes that the shape says.
    pub(crate) fn new(
        format: Format,
        shape: &[usize],
        data: Extent,
        scales: Option<[Extent; 2]>,
    ) -> Self {
        let (rows, cols) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        Self { format, rows, cols, data, scales, row_stride: rows, first_row: 0 }
    }

    /// The upper and the lower half of every matrix.
    pub(crate) fn split_rows(self) -> [Self; 2] {
        let upper = Self { rows: self.rows / 2, ..self };
        [upper, Self { first_row: upper.rows, ..upper }]
    }

    /// Where a matrix of the stack lies.
    pub(crate) fn location(&self, index: usize) -> MatrixLocation {
        let Self { format, rows, cols, row_stride, first_row, .. } = *self;
        let row = (index * row_stride + first_row) as u64;
        let part = |extent: Extent, row_bytes: usize| {
            extent.part(row * row_bytes as u64, (rows * row_bytes) as u64)
        };
        let data = part(self.data, format.row_bytes(cols));
        let scales = self.scales;
        let scales = scales.map(|pair| pair.map(|part_| part(part_, format.scale_row_bytes(cols))));
        MatrixLocation { format, rows, cols, data, scales }
    }
}
