//! Reads through a ring shared with the Linux kernel, without threads of our own: on few cores they
//! would compete with those that compute.
//!
//! The ring is served whenever the store is asked something. So that the drive stays busy while the
//! caller computes, all that is asked for is handed to the kernel at once, up to [`DEPTH`] pieces.

#![expect(unsafe_code, reason = "the kernel writes into blocks")]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::piece::Piece;
use super::{Active, Completion, Job, Reader, Urgency};
use crate::files::DataFiles;
use crate::plan::{MAX_PARTS, ReadPlan};

/// Most pieces that the kernel has at a time.
const DEPTH: usize = 256;

/// A ring of reads.
pub(crate) struct UringReader {
    files: Arc<DataFiles>,
    ring: IoUring,
    demand: VecDeque<Piece>,
    ahead: VecDeque<Piece>,
    /// Pieces that the kernel has, by the number that it gives back.
    flying: Vec<Option<Piece>>,
    /// Unused numbers.
    numbers: Vec<usize>,
    /// The jobs in progress, by slot.
    active: Vec<Option<Active>>,
    completions: VecDeque<Completion>,
}

impl UringReader {
    /// Fails where the kernel has no rings, or forbids them.
    pub(crate) fn new(files: Arc<DataFiles>, n_slots: usize) -> io::Result<Self> {
        let mut ring = IoUring::new(DEPTH as u32)?;
        // A system may allow to make a ring and forbid to use it: an operation that does nothing tells.
        // SAFETY: it reads and writes nothing.
        unsafe { ring.submission().push(&opcode::Nop::new().build()) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        ring.completion().next().ok_or_else(|| io::Error::other("the ring does not answer"))?;
        Ok(Self {
            files,
            ring,
            demand: VecDeque::with_capacity(n_slots * MAX_PARTS),
            ahead: VecDeque::with_capacity(n_slots * MAX_PARTS),
            flying: (0..DEPTH).map(|_| None).collect(),
            numbers: (0..DEPTH).rev().collect(),
            active: (0..n_slots).map(|_| None).collect(),
            completions: VecDeque::with_capacity(n_slots),
        })
    }

    fn n_flying(&self) -> usize {
        DEPTH - self.numbers.len()
    }

    /// Hands waiting pieces to the kernel, those that somebody waits for first.
    fn start(&mut self) -> io::Result<()> {
        let mut n_new = 0;
        while let Some(&number) = self.numbers.last() {
            let Some(mut piece) = self.demand.pop_front().or_else(|| self.ahead.pop_front()) else {
                break;
            };
            let Some(fd) = self.files.direct_fd(piece.run.file) else {
                self.read_plainly(piece);
                continue;
            };
            let (offset, place) = (piece.run.offset, piece.place());
            let read = opcode::Read::new(types::Fd(fd), place.as_mut_ptr(), place.len() as u32);
            let entry = read.offset(offset).build().user_data(number as u64);
            // SAFETY: the piece is the only way to the bytes at `place`. It goes to `flying`, and its
            // job's block stays in `active`, until the kernel tells that it is done with them; the
            // descriptor is open as long as `files`, which outlives the ring's last read (see `drop`).
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                self.demand.push_front(piece);
                break;
            }
            self.numbers.pop();
            self.flying[number] = Some(piece);
            n_new += 1;
        }
        if n_new == 0 && self.ring.submission().is_empty() {
            return Ok(());
        }
        match self.ring.submit() {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes what the kernel has done.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let (number, result) = (entry.user_data() as usize, entry.result());
            let piece = self.flying[number].take().expect("the kernel had this piece");
            self.numbers.push(number);
            match usize::try_from(result) {
                Ok(len) if len >= piece.run.wanted => self.finish(piece.slot, Ok(len)),
                // Whatever it is, a plain read will manage or say what is wrong.
                _ => self.read_plainly(piece),
            }
        }
    }

    fn read_plainly(&mut self, mut piece: Piece) {
        let run = piece.run;
        let result = self.files.read_run(&run, piece.place());
        self.finish(piece.slot, result);
    }

    fn finish(&mut self, slot: u32, result: Result<usize, crate::files::IoError>) {
        let entry = &mut self.active[slot as usize];
        if entry.as_mut().expect("a job in progress").finish_piece(result) {
            let job = entry.take().expect("it was just there");
            self.completions.push_back(job.complete());
        }
    }
}

impl Reader for UringReader {
    fn submit(&mut self, mut job: Job) {
        let plan = ReadPlan::of_expert(&job.location);
        let queue = match job.urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Ahead => &mut self.ahead,
        };
        let slot = job.slot;
        let n_pieces = Piece::cut(slot, &plan, &mut job.block, |piece| queue.push_back(piece));
        let job = Active::new(job, plan, n_pieces);
        match n_pieces {
            0 => self.completions.push_back(job.complete()),
            _ => self.active[slot as usize] = Some(job),
        }
    }

    fn begin(&mut self) {
        // What the kernel refuses now it is offered again by whoever waits.
        drop(self.start());
    }

    fn try_completion(&mut self) -> Option<Completion> {
        if self.completions.is_empty() && self.n_flying() > 0 {
            self.reap();
            drop(self.start());
        }
        self.completions.pop_front()
    }

    fn wait(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.try_completion() {
                return Some(completion);
            }
            self.start().ok()?;
            if !self.completions.is_empty() {
                continue;
            }
            if self.n_flying() == 0 {
                return None;
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if !is_passing(&error) => return None,
                _ => {}
            }
        }
    }

    fn take_back(&mut self) -> Option<Job> {
        super::take_back(&mut self.ahead, &mut self.active)
    }
}

impl Drop for UringReader {
    fn drop(&mut self) {
        self.demand.clear();
        self.ahead.clear();
        while self.n_flying() > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if !is_passing(&error) => break,
                _ => {}
            }
            while let Some(entry) = self.ring.completion().next() {
                let number = entry.user_data() as usize;
                self.flying[number] = None;
                self.numbers.push(number);
            }
        }
        if self.n_flying() > 0 {
            // The kernel may still write into the blocks: they must never be used again.
            self.active.drain(..).for_each(std::mem::forget);
            std::mem::forget(Arc::clone(&self.files));
        }
    }
}

/// Whether the kernel only wants to be asked again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
