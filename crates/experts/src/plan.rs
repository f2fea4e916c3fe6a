//! What one read looks like: byte ranges of files become few aligned runs of one destination.

use checkpoint::{Extent, FileId};
use compute::memory::BLOCK_ALIGNMENT;

/// Aligned stretches of files to read, and where in the destination each wanted byte range begins.
///
/// Direct reads need offset, length and address to be multiples of a block. Byte ranges whose blocks
/// touch are read together: an expert that lies in one piece is one read.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadPlan {
    runs: Vec<Run>,
    /// Where each extent begins in the destination, in the order given.
    offsets: Vec<usize>,
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
    pub fn new(extents: &[Extent]) -> Self {
        let mut order: Vec<usize> = (0..extents.len()).collect();
        order.sort_by_key(|&index| extents[index]);
        let mut runs: Vec<Run> = Vec::new();
        let mut offsets = vec![0; extents.len()];
        for index in order {
            let Extent { file, offset, len } = extents[index];
            let begin = offset - offset % BLOCK_ALIGNMENT as u64;
            let next = runs.last().map_or(0, |run| run.destination + run.len());
            let run = match runs.last_mut() {
                Some(run) if run.file == file && begin <= run.end() => run,
                _ => {
                    runs.push(Run { file, offset: begin, wanted: 0, destination: next });
                    runs.last_mut().expect("it was just pushed")
                }
            };
            run.wanted = run.wanted.max((offset + len - run.offset) as usize);
            offsets[index] = run.destination + (offset - run.offset) as usize;
        }
        Self { runs, offsets }
    }

    /// Bytes of the destination.
    pub fn bytes(&self) -> usize {
        self.runs.last().map_or(0, |run| run.destination + run.len())
    }

    /// Number of byte ranges.
    pub fn parts(&self) -> usize {
        self.offsets.len()
    }

    /// Where a byte range begins in the destination.
    pub fn offset(&self, part: usize) -> usize {
        self.offsets[part]
    }

    /// The first byte that is read: plans in this order read files from front to back.
    pub fn first_byte(&self) -> (FileId, u64) {
        self.runs.first().map_or((FileId(0), 0), |run| (run.file, run.offset))
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
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
        let plan = ReadPlan::new(&[extent(0, 8200, 100), extent(0, 5000, 3200)]);
        assert_eq!(plan.runs.len(), 1);
        assert_eq!((plan.runs[0].offset, plan.runs[0].wanted), (4096, 4204));
        assert_eq!((plan.offset(0), plan.offset(1), plan.bytes()), (4104, 904, 8192));
    }

    #[test]
    fn ranges_apart_get_aligned_places() {
        let plan = ReadPlan::new(&[extent(1, 1, 5000), extent(0, 99_999, 1), extent(0, 0, 4096)]);
        assert_eq!(plan.runs.len(), 3);
        assert_eq!([plan.offset(2), plan.offset(1), plan.offset(0)], [0, 4096 + 1695, 8193]);
        assert_eq!(plan.bytes(), 8192 + 8192);
        assert_eq!(plan.first_byte(), (FileId(0), 0));
    }
}
