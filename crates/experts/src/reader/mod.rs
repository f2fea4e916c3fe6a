//! Reading experts from the drive while the caller computes.
//!
//! A job owns its destination while it is read and gives it back with the result, so nothing else can
//! touch the bytes meanwhile and no lock guards them. Jobs are cut into pieces, so that even a single
//! large expert keeps several requests in flight.

mod choice;
mod piece;
mod threads;
#[cfg(target_os = "linux")]
mod uring;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use checkpoint::{ExpertLocation, Format};
use compute::memory::Block;

use crate::files::IoError;
use crate::plan::ReadPlan;
use piece::Piece;

pub use choice::{ReaderKind, ReaderProbe, ReaderReport};

pub(crate) use choice::make_reader;
use threads::ThreadReader;

/// An expert to be read.
pub(crate) struct Job {
    pub(crate) slot: u32,
    pub(crate) location: ExpertLocation,
    /// The destination; nobody else holds it.
    pub(crate) block: Arc<Block>,
    pub(crate) urgency: Urgency,
}

/// Whether somebody waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Somebody does.
    Demand,
    /// It may become useful: it begins only when no demand waits to begin.
    Ahead,
}

/// A job that is done.
pub(crate) struct Completion {
    pub(crate) slot: u32,
    pub(crate) block: Arc<Block>,
    /// Bytes read.
    pub(crate) result: Result<u64, ReadError>,
    /// When it was asked for.
    pub(crate) began: Instant,
    /// When all of it was there.
    pub(crate) ended: Instant,
}

/// Why an expert could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(IoError),
    /// A scale or bias is infinite or not a number.
    NotFinite,
}

/// Reads experts; submitting and completing takes no memory after warm-up.
pub(crate) trait Reader: Send {
    /// Queues a read. No two reads into the same slot are under way.
    fn submit(&mut self, job: Job);
    /// Begins what was queued.
    fn begin(&mut self);
    /// A read that is done, if there is one.
    fn try_completion(&mut self) -> Option<Completion>;
    /// Waits for a read to be done; `None` when that cannot be.
    fn wait(&mut self) -> Option<Completion>;
    /// Takes back a job of [`Urgency::Ahead`] of which nothing has been read.
    fn take_back(&mut self) -> Option<Job>;
}

/// A job in progress.
struct Active {
    job: Job,
    plan: ReadPlan,
    n_pieces: u32,
    n_left: u32,
    result: Result<u64, IoError>,
    began: Instant,
}

impl Active {
    fn new(job: Job, plan: ReadPlan, n_pieces: u32) -> Self {
        Self { job, plan, n_pieces, n_left: n_pieces, result: Ok(0), began: Instant::now() }
    }

    /// Books a piece that is done; the first error counts. Tells whether it was the last.
    fn finish_piece(&mut self, result: Result<usize, IoError>) -> bool {
        match (&mut self.result, result) {
            (Ok(bytes), Ok(more)) => *bytes += more as u64,
            (Ok(_), Err(error)) => self.result = Err(error),
            (Err(_), _) => {}
        }
        self.n_left -= 1;
        self.n_left == 0
    }

    /// Looks at what was read: a damaged expert must not become output.
    fn complete(self) -> Completion {
        let ended = Instant::now();
        let Self { job: Job { slot, location, block, .. }, plan, result, began, .. } = self;
        let result = result.map_err(ReadError::Io).and_then(|bytes| {
            match has_finite_scales(&location, &plan, block.bytes()) {
                true => Ok(bytes),
                false => Err(ReadError::NotFinite),
            }
        });
        Completion { slot, block, result, began, ended }
    }
}

/// Takes back the job at the end of a queue if all of its pieces are there: they are neighbours, and
/// are taken from the front.
fn take_back(queue: &mut VecDeque<Piece>, active: &mut [Option<Active>]) -> Option<Job> {
    let slot = queue.back()?.slot;
    let n_pieces = active[slot as usize].as_ref().expect("its pieces wait").n_pieces as usize;
    let n_left = queue.len().checked_sub(n_pieces).filter(|&index| queue[index].slot == slot)?;
    queue.truncate(n_left);
    active[slot as usize].take().map(|active| active.job)
}

fn has_finite_scales(location: &ExpertLocation, plan: &ReadPlan, bytes: &[u8]) -> bool {
    let mut part = 0;
    for matrix in location.matrices() {
        part += 1;
        for extent in matrix.scales.iter().flatten() {
            let values = &bytes[plan.offset(part)..plan.offset(part) + extent.len as usize];
            if let Format::Affine(affine) = matrix.format
                && !checkpoint::are_finite(affine.scales, values)
            {
                return false;
            }
            part += 1;
        }
    }
    true
}
