//! A pool of threads that read by positional reads: works on every system.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::piece::Piece;
use super::{Active, Completion, Job, Reader, Urgency};
use crate::files::DataFiles;
use crate::plan::{MAX_PARTS, ReadPlan};

/// A pool of reading threads.
pub(crate) struct ThreadReader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    files: Arc<DataFiles>,
    state: Mutex<State>,
    /// There is work, or the pool closes.
    work: Condvar,
    /// A job is done, or a thread has ended.
    done: Condvar,
}

struct State {
    demand: VecDeque<Piece>,
    ahead: VecDeque<Piece>,
    /// The jobs in progress, by slot.
    active: Vec<Option<Active>>,
    completions: VecDeque<Completion>,
    n_threads: usize,
    closed: bool,
}

impl ThreadReader {
    pub(crate) fn new(
        files: Arc<DataFiles>,
        n_slots: usize,
        n_threads: usize,
    ) -> std::io::Result<Self> {
        let n_threads = n_threads.max(1);
        let state = State {
            demand: VecDeque::with_capacity(n_slots * MAX_PARTS),
            ahead: VecDeque::with_capacity(n_slots * MAX_PARTS),
            active: (0..n_slots).map(|_| None).collect(),
            completions: VecDeque::with_capacity(n_slots),
            n_threads,
            closed: false,
        };
        let (work, done) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { files, state: Mutex::new(state), work, done });
        let mut reader = Self { shared, threads: Vec::new() };
        for index in 0..n_threads {
            let shared = Arc::clone(&reader.shared);
            let thread = std::thread::Builder::new()
                .name(format!("expert-reader-{index}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    let _guard = EndGuard(&shared);
                    read_pieces(&shared);
                })?;
            reader.threads.push(thread);
        }
        Ok(reader)
    }
}

impl Reader for ThreadReader {
    fn submit(&mut self, mut job: Job) {
        let plan = ReadPlan::of_expert(&job.location);
        let mut state = self.shared.lock();
        let State { demand, ahead, active, completions, .. } = &mut *state;
        let slot = job.slot;
        let queue = match job.urgency {
            Urgency::Demand => demand,
            Urgency::Ahead => ahead,
        };
        let n_pieces = Piece::cut(slot, &plan, &mut job.block, |piece| queue.push_back(piece));
        let job = Active::new(job, plan, n_pieces);
        if n_pieces == 0 {
            completions.push_back(job.complete());
            return;
        }
        active[slot as usize] = Some(job);
    }

    fn begin(&mut self) {
        self.shared.work.notify_all();
    }

    fn try_completion(&mut self) -> Option<Completion> {
        self.shared.lock().completions.pop_front()
    }

    fn wait(&mut self) -> Option<Completion> {
        let mut state = self.shared.lock();
        loop {
            if let Some(completion) = state.completions.pop_front() {
                return Some(completion);
            }
            // A thread that ended before its time may have had a piece in hand.
            if state.n_threads < self.threads.len() {
                return None;
            }
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_back(&mut self) -> Option<Job> {
        let mut state = self.shared.lock();
        let State { ahead, active, .. } = &mut *state;
        super::take_back(ahead, active)
    }
}

impl Drop for ThreadReader {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            state.demand.clear();
            state.ahead.clear();
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece, or `None` when the pool closes.
    fn next(&self) -> Option<Piece> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(piece) = state.demand.pop_front() {
                return Some(piece);
            }
            if let Some(piece) = state.ahead.pop_front() {
                return Some(piece);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells that a thread has ended, so that nobody waits for its pieces for ever.
struct EndGuard<'a>(&'a Shared);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().n_threads -= 1;
        self.0.done.notify_all();
    }
}

/// What a reading thread does until the pool closes.
fn read_pieces(shared: &Shared) {
    while let Some(mut piece) = shared.next() {
        let (run, slot) = (piece.run, piece.slot as usize);
        let result = shared.files.read_run(&run, piece.place());
        let mut state = shared.lock();
        let entry = &mut state.active[slot];
        if !entry.as_mut().expect("a job in progress").finish_piece(result) {
            continue;
        }
        let job = entry.take().expect("it was just there");
        drop(state);
        let completion = job.complete();
        shared.lock().completions.push_back(completion);
        shared.done.notify_one();
    }
}
