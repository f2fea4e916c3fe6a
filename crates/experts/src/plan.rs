//! What one read looks like: byte ranges of files become few aligned runs of one destination.

use checkpoint::{ExpertLocation, Extent, FileId, MatrixLocation};
use compute::memory::BLOCK_ALIGNMENT;

/// Most byte ranges of one read: an expert's three matrices, each with data, scales and biases.
pub const MAX_PARTS: usize = 9;

/// Aligned stretches of files to read, and where in the destination each wanted byte range begins.
///
/// Direct reads need offset, length and address to be multiples of a block. Byte ranges whose blocks
/// touch are read together: an expert that lies in one piece is one read. A plan lies on the stack:
/// it is cheaper to make it anew than to keep it for every expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadPlan {
    runs: [Run; MAX_PARTS],
    n_runs: usize,
    /// Where each extent begins in the destination, in the order given.
    offsets: [usize; MAX_PARTS],
    n_parts: usize,
}

/// An aligned stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) file: FileId,
    /// First byte in the file; a multiple of the block size.
    pub(crate) offset: u64,
    /// Bytes until the last wanted one; the file may end right after.
    pub(crate) wanted: usize,
    /// First byte in the destination; a multiple of the block size.
    pub(crate) destination: usize,
}

impl Run {
    const EMPTY: Self = Self { file: FileId(0), offset: 0, wanted: 0, destination: 0 };

    /// Bytes of the destination: whole blocks.
    pub(crate) fn len(&self) -> usize {
        self.wanted.next_multiple_of(BLOCK_ALIGNMENT)
    }

    fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }
}

impl ReadPlan {
    /// The plan for byte ranges that lie inside their files.
    ///
    /// # Panics
    /// If there are more than [`MAX_PARTS`].
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut plan =
            Self { runs: [Run::EMPTY; MAX_PARTS], n_runs: 0, offsets: [0; MAX_PARTS], n_parts: 0 };
        let mut sorted = [(Extent { file: FileId(0), offset: 0, len: 0 }, 0); MAX_PARTS];
        for extent in extents {
            sorted[plan.n_parts] = (extent, plan.n_parts);
            plan.n_parts += 1;
        }
        let sorted = &mut sorted[..plan.n_parts];
        sorted.sort_unstable();
        for &mut (Extent { file, offset, len }, index) in sorted {
            let begin = offset - offset % BLOCK_ALIGNMENT as u64;
            let next = plan.bytes();
            if !plan.runs().last().is_some_and(|run| run.file == file && begin <= run.end()) {
                plan.runs[plan.n_runs] = Run { file, offset: begin, wanted: 0, destination: next };
                plan.n_runs += 1;
            }
            let run = &mut plan.runs[plan.n_runs - 1];
            run.wanted = run.wanted.max((offset + len - run.offset) as usize);
            plan.offsets[index] = run.destination + (offset - run.offset) as usize;
        }
        plan
    }

    /// The plan of an expert: its parts in the order gate, up, down, each with data, scales, biases.
    pub fn of_expert(location: &ExpertLocation) -> Self {
        Self::new(location.matrices().into_iter().flat_map(MatrixLocation::extents))
    }

    /// Bytes of the destination.
    pub fn bytes(&self) -> usize {
        self.runs().last().map_or(0, |run| run.destination + run.len())
    }

    /// Number of byte ranges.
    pub fn parts(&self) -> usize {
        self.n_parts
    }

    /// Where a byte range begins in the destination.
    pub fn offset(&self, part: usize) -> usize {
        self.offsets[..self.n_parts][part]
    }

    /// The first byte that is read: plans in this order read files from front to back.
    pub fn first_byte(&self) -> (FileId, u64) {
        self.runs().first().map_or((FileId(0), 0), |run| (run.file, run.offset))
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs[..self.n_runs]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file: u32, offset: u64, len: u64) -> Extent {
        Extent { file: FileId(file), offset, len }
    }

    #[test]
    fn ranges_that_touch_become_one_run() {
        let plan = ReadPlan::new([extent(0, 8200, 100), extent(0, 5000, 3200)]);
        assert_eq!(plan.runs().len(), 1);
        assert_eq!((plan.runs[0].offset, plan.runs[0].wanted), (4096, 4204));
        assert_eq!((plan.offset(0), plan.offset(1), plan.bytes()), (4104, 904, 8192));
    }

    #[test]
    fn ranges_apart_get_aligned_places() {
        let plan = ReadPlan::new([extent(1, 1, 5000), extent(0, 99_999, 1), extent(0, 0, 4096)]);
        assert_eq!(plan.runs().len(), 3);
        assert_eq!([plan.offset(2), plan.offset(1), plan.offset(0)], [0, 4096 + 1695, 8193]);
        assert_eq!(plan.bytes(), 8192 + 8192);
        assert_eq!(plan.first_byte(), (FileId(0), 0));
    }
}
