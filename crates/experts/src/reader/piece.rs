//! Parts of a job that are read by themselves.

#![expect(unsafe_code, reason = "pieces of one block are read at the same time")]

use std::sync::Arc;

use compute::memory::{BLOCK_ALIGNMENT, Block};

use crate::plan::{ReadPlan, Run};

/// Largest piece: enough for the drive's full speed at a depth of four.
const PIECE_BYTES: usize = 1 << 20;

/// A stretch of a file and its place in the block of a job.
///
/// No two pieces of a job overlap, and the reader keeps the job's block, to which nobody else refers,
/// until all of its pieces are done: so a piece is the only way to its bytes.
pub(crate) struct Piece {
    pub(crate) slot: u32,
    pub(crate) run: Run,
    place: *mut u8,
}

// SAFETY: a piece is the only way to its bytes, as above, on whichever thread it is.
unsafe impl Send for Piece {}

impl Piece {
    /// Cuts what a plan reads into `block` into pieces of about equal size; gives their number.
    ///
    /// # Panics
    /// If anybody else refers to the block, or the plan does not fit into it.
    pub(crate) fn cut(
        slot: u32,
        plan: &ReadPlan,
        block: &mut Arc<Block>,
        mut add: impl FnMut(Self),
    ) -> u32 {
        let bytes = Arc::get_mut(block).expect("a job alone holds its block").bytes_mut();
        let mut n_pieces = 0;
        for run in plan.runs() {
            let mut place = &mut bytes[run.destination..run.destination + run.len()];
            let n_cuts = place.len().div_ceil(PIECE_BYTES).max(1);
            let len = place.len().div_ceil(n_cuts).next_multiple_of(BLOCK_ALIGNMENT);
            let mut run = *run;
            while !place.is_empty() {
                let (head, tail) = place.split_at_mut(len.min(place.len()));
                let wanted = run.wanted.min(head.len());
                add(Self { slot, run: Run { wanted, ..run }, place: head.as_mut_ptr() });
                n_pieces += 1;
                run.offset += head.len() as u64;
                run.destination += head.len();
                run.wanted -= wanted;
                place = tail;
            }
        }
        n_pieces
    }

    /// Where the bytes go.
    pub(crate) fn place(&mut self) -> &mut [u8] {
        // SAFETY: the pointer and length come from a part of the job's block, which the reader keeps
        // until this piece is done; no other piece has the part, and nobody else has the block.
        unsafe { std::slice::from_raw_parts_mut(self.place, self.run.len()) }
    }
}
