//! Threads that read experts from the drive.
//!
//! A job owns its destination while it is read and gives it back with the result, so nothing else can
//! touch the bytes meanwhile and no lock guards them.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use checkpoint::{ExpertLocation, Format};
use compute::memory::Block;

use crate::files::{DataFiles, IoError};
use crate::plan::ReadPlan;

/// An expert to be read.
pub(crate) struct Job {
    pub(crate) slot: usize,
    pub(crate) location: ExpertLocation,
    pub(crate) plan: ReadPlan,
    /// The destination; nobody else holds it.
    pub(crate) block: Arc<Block>,
}

/// A job that is done.
pub(crate) struct Completion {
    pub(crate) slot: usize,
    pub(crate) plan: ReadPlan,
    pub(crate) block: Arc<Block>,
    /// Bytes read.
    pub(crate) result: Result<u64, ReadError>,
    /// Which thread read.
    pub(crate) reader: u8,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// Why an expert could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(IoError),
    /// A scale or bias is infinite or not a number.
    NotFinite,
}

/// A pool of reading threads.
pub(crate) struct Reader {
    queue: Arc<Queue>,
    completions: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
}

/// Jobs that wait for a thread.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Reader {
    pub(crate) fn new(files: &Arc<DataFiles>, n_threads: usize) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (sender, completions) = channel();
        let mut reader = Self { queue, completions, threads: Vec::new() };
        for index in 0..n_threads.max(1) {
            let (files, queue, sender) =
                (Arc::clone(files), Arc::clone(&reader.queue), sender.clone());
            let thread = std::thread::Builder::new()
                .name(format!("expert-reader-{index}"))
                .stack_size(256 << 10)
                .spawn(move || work(index as u8, &files, &queue, &sender))?;
            reader.threads.push(thread);
        }
        Ok(reader)
    }

    /// Starts a read.
    pub(crate) fn submit(&self, job: Job) {
        self.queue.lock().jobs.push_back(job);
        self.queue.changed.notify_one();
    }

    /// A read that is done, if there is one.
    pub(crate) fn try_completion(&self) -> Option<Completion> {
        self.completions.try_recv().ok()
    }

    /// Waits for a read to be done; fails when no thread is left to do it.
    pub(crate) fn wait(&self) -> Result<Completion, RecvError> {
        self.completions.recv()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        {
            let mut state = self.queue.lock();
            state.closed = true;
            state.jobs.clear();
        }
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, or `None` when the pool closes.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What a reading thread does until the pool closes.
fn work(reader: u8, files: &DataFiles, queue: &Queue, completions: &Sender<Completion>) {
    while let Some(Job { slot, location, plan, mut block }) = queue.next() {
        let destination = Arc::get_mut(&mut block).expect("a job alone holds its block");
        let began = Instant::now();
        let result = read(files, &location, &plan, destination.bytes_mut());
        let ended = Instant::now();
        let completion = Completion { slot, plan, block, result, reader, began, ended };
        if completions.send(completion).is_err() {
            return;
        }
    }
}

/// Reads an expert and looks at its scales: a damaged one must not become output.
fn read(
    files: &DataFiles,
    location: &ExpertLocation,
    plan: &ReadPlan,
    destination: &mut [u8],
) -> Result<u64, ReadError> {
    let bytes = files.read(plan, destination).map_err(ReadError::Io)?;
    let mut part = 0;
    for matrix in location.matrices() {
        part += 1;
        if let (Format::Affine(affine), Some(extents)) = (matrix.format, matrix.scales) {
            for extent in extents {
                let begin = plan.offset(part);
                let values = &destination[begin..begin + extent.len as usize];
                if !checkpoint::are_finite(affine.scales, values) {
                    return Err(ReadError::NotFinite);
                }
                part += 1;
            }
        }
    }
    Ok(bytes)
}
