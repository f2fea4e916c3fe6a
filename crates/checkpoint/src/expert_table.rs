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
    /// All experts, and then the twins of all.
    Twinned(Box<[ExpertTable; 2]>),
}

impl ExpertTable {
    pub(crate) fn stacked(n_experts: usize, matrices: [StackedMatrix; 3]) -> Self {
        Self(Table::Stacked { n_experts, matrices: Box::new(matrices) })
    }

    /// A table of experts that lie anywhere.
    pub fn separate(experts: Vec<ExpertLocation>) -> Self {
        Self(Table::Separate(experts))
    }

    /// The table with the twins of its experts behind them: of `n` experts, `n + e` is the twin of `e`.
    ///
    /// # Panics
    /// If there are not as many of both.
    pub fn with_twins(self, twins: Self) -> Self {
        assert_eq!(self.len(), twins.len(), "every expert has one twin");
        Self(Table::Twinned(Box::new([self, twins])))
    }

    /// The table when so many files come before those that it names.
    pub fn after_files(self, n_files: u32) -> Self {
        match self.0 {
            Table::Stacked { n_experts, matrices } => {
                Self::stacked(n_experts, matrices.map(|matrix| matrix.after_files(n_files)))
            }
            Table::Separate(mut experts) => {
                for expert in &mut experts {
                    for matrix in [&mut expert.gate, &mut expert.up, &mut expert.down] {
                        *matrix = matrix.after_files(n_files);
                    }
                }
                Self::separate(experts)
            }
            Table::Twinned(tables) => {
                let [experts, twins] = tables.map(|table| table.after_files(n_files));
                experts.with_twins(twins)
            }
        }
    }

    /// Number of entries: experts and their twins.
    pub fn len(&self) -> usize {
        match &self.0 {
            Table::Stacked { n_experts, .. } => *n_experts,
            Table::Separate(experts) => experts.len(),
            Table::Twinned(tables) => tables.iter().map(Self::len).sum(),
        }
    }

    /// Number of experts, without twins.
    pub fn n_experts(&self) -> usize {
        match &self.0 {
            Table::Twinned(tables) => tables[0].len(),
            Table::Stacked { .. } | Table::Separate(_) => self.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where an expert lies, or a twin.
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
            Table::Twinned(tables) => match expert.checked_sub(tables[0].len()) {
                None => tables[0].get(expert),
                Some(twin) => tables[1].get(twin),
            },
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

    fn after_files(self, n_files: u32) -> Self {
        let scales = self.scales.map(|pair| pair.map(|part| part.after_files(n_files)));
        Self { data: self.data.after_files(n_files), scales, ..self }
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
