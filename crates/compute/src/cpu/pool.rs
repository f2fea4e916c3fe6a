//! Threads for short parallel regions.
//!
//! A token has about a thousand regions of tens of microseconds, so a region must cost little: workers
//! spin for a moment before they sleep, and nothing is allocated. The caller works too, and only waits for
//! workers that have really begun: one that sleeps, or that the system has given to somebody else, holds
//! nobody up.
//!
//! Neighbouring tasks read neighbouring memory, so each thread has a share of the tasks that lies together
//! and takes it from the front; a thread that has done its share takes from the end of another's. Tasks
//! that threads take in turn from one counter let them fetch each other's cache lines: two threads then
//! multiplied Q4_K weights at 28 GB/s where one alone reached 35 and two with shares reach 45 (Zen 5).

#![expect(unsafe_code, reason = "lends a closure on the caller's stack to other threads")]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use trace::{Kind, Recorder, Span};

/// Turns of the spin loop before a worker sleeps: some 20 microseconds, longer than the caller needs
/// between two regions of a layer, and short enough to leave the core to reading threads.
const SPINS: usize = 1000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A pool of worker threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    region: UnsafeCell<Region>,
    /// Whether workers may begin to take tasks of the region.
    open: AtomicBool,
    /// Workers that are taking tasks.
    inside: AtomicUsize,
    /// The tasks that each thread has left; the caller's come first.
    shares: Box<[Share]>,
    /// Counts regions, so that a worker sees that there is a new one.
    epoch: AtomicUsize,
    sleepers: AtomicUsize,
    closed: AtomicBool,
    panicked: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Who is told what each thread did of each region.
    recorder: Option<Recorder>,
}

/// The tasks of a region.
#[derive(Clone, Copy)]
struct Region {
    /// A short name for people.
    name: &'static str,
    /// Borrowed from the caller of [`Pool::run`], who does not return while a worker is inside.
    task: *const Task<'static>,
}

/// Tasks that are left of a thread's share: the first in the lower half, the end in the upper. On a
/// cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, begin: usize, end: usize) {
        self.0.store((end as u64) << 32 | begin as u64, SeqCst);
    }

    /// The first task that is left.
    fn take_first(&self) -> Option<usize> {
        self.take(|begin, end| (begin + 1, end)).map(|(begin, _)| begin as usize)
    }

    /// The last task that is left.
    fn take_last(&self) -> Option<usize> {
        self.take(|begin, end| (begin, end - 1)).map(|(_, end)| end as usize - 1)
    }

    /// Changes what is left, if anything is, and gives what it was.
    fn take(&self, change: impl Fn(u64, u64) -> (u64, u64)) -> Option<(u64, u64)> {
        let bounds = |share: u64| (share & u64::from(u32::MAX), share >> 32);
        let take = |share| {
            let (begin, end) = bounds(share);
            let (begin, end) = (begin < end).then(|| change(begin, end))?;
            Some(end << 32 | begin)
        };
        self.0.fetch_update(SeqCst, SeqCst, take).ok().map(bounds)
    }
}

// SAFETY: the pointer is to a `Sync` closure, and is only followed while the caller keeps it alive.
unsafe impl Send for Shared {}
// SAFETY: `region` is written only while the pool is closed to workers and nobody is inside.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool of so many threads, of which the caller is one.
    pub(crate) fn new(n_threads: usize, recorder: Option<Recorder>) -> std::io::Result<Self> {
        fn nothing(_: usize) {}

        let shared = Arc::new(Shared {
            region: UnsafeCell::new(Region { name: "", task: &nothing }),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            shares: (0..n_threads.max(1)).map(|_| Share::default()).collect(),
            epoch: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            recorder,
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("compute-{index}");
            let worker =
                std::thread::Builder::new().name(name).spawn(move || shared.work(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads with the caller's.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with every number below `n_tasks`, on all threads, in any order. Takes the pool by
    /// unique reference: regions do not nest. The name is for people who look at a trace.
    pub(crate) fn run(&mut self, name: &'static str, n_tasks: usize, task: impl Fn(usize) + Sync) {
        assert!(u32::try_from(n_tasks).is_ok(), "tasks are counted in 32 bits");
        if n_tasks <= 1 || self.workers.is_empty() {
            let begin = self.shared.begin();
            (0..n_tasks).for_each(task);
            self.shared.record(0, name, begin, n_tasks);
            return;
        }
        let task: *const Task<'_> = &task;
        // SAFETY: only the lifetime changes; `Visit` waits for all workers before `task` is dropped.
        let task: *const Task<'static> = unsafe { std::mem::transmute(task) };
        // SAFETY: the pool is not open and nobody is inside: the last region's `Visit` saw to it.
        unsafe { *self.shared.region.get() = Region { name, task } };
        let n_threads = self.shared.shares.len();
        for (index, share) in self.shared.shares.iter().enumerate() {
            share.set(index * n_tasks / n_threads, (index + 1) * n_tasks / n_threads);
        }
        self.shared.open.store(true, SeqCst);
        let visit = Visit(&self.shared);
        self.shared.epoch.fetch_add(1, SeqCst);
        if self.shared.sleepers.load(SeqCst) > 0 {
            let _guard = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        self.shared.take_tasks(0);
        drop(visit);
        if self.shared.panicked.swap(false, SeqCst) {
            resume_unwind(Box::new("a task of a parallel region panicked"));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        {
            let _guard = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // Workers catch the panics of tasks, so they end in order.
            drop(worker.join());
        }
    }
}

/// The caller's stay in its region: when it ends, also by a panic, no worker is inside any more.
struct Visit<'a>(&'a Shared);

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.open.store(false, SeqCst);
        let mut turns = 0;
        while self.0.inside.load(SeqCst) > 0 {
            turns += 1;
            if turns < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Shared {
    /// What a worker with this share does until the pool closes.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_epoch(seen);
            if self.closed.load(SeqCst) {
                return;
            }
            // In this order: whoever closes the region after we saw it open also sees us inside.
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst)
                && catch_unwind(AssertUnwindSafe(|| self.take_tasks(index))).is_err()
            {
                self.panicked.store(true, SeqCst);
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for a region after the one that was seen: first awake, then asleep.
    fn next_epoch(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(SeqCst);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        loop {
            let epoch = self.epoch.load(SeqCst);
            if epoch != seen {
                self.sleepers.fetch_sub(1, SeqCst);
                return epoch;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes tasks until none is left: those of its own share, then what others have left.
    fn take_tasks(&self, index: usize) {
        // SAFETY: the region is only written when nobody is inside; we are, or are the caller.
        let Region { name, task } = unsafe { *self.region.get() };
        let (before, rest) = self.shares.split_at(index);
        let (own, after) = rest.split_first().expect("each thread has a share");
        let others = || after.iter().chain(before);
        let (begin, mut n_tasks) = (self.begin(), 0);
        while let Some(index) = own.take_first().or_else(|| others().find_map(Share::take_last)) {
            // SAFETY: the caller keeps the closure alive until nobody is inside.
            unsafe { (*task)(index) };
            n_tasks += 1;
        }
        self.record(index, name, begin, n_tasks);
    }

    /// The time, if anybody wants to know.
    fn begin(&self) -> Option<Instant> {
        self.recorder.as_ref().map(|_| Instant::now())
    }

    /// Records what a thread did of a region.
    fn record(&self, thread: usize, name: &'static str, begin: Option<Instant>, n_tasks: usize) {
        if let (Some(recorder), Some(begin)) = (&self.recorder, begin) {
            record(recorder, thread, name, begin, n_tasks);
        }
    }
}

#[cold]
fn record(recorder: &Recorder, thread: usize, name: &'static str, begin: Instant, n_tasks: usize) {
    // Threads beyond the largest number that a record can hold are not shown.
    if let (1.., Ok(thread)) = (n_tasks, u8::try_from(thread)) {
        let (kind, end, amount) = (Kind::Work { thread }, Instant::now(), n_tasks as u64);
        recorder.record(&Span { kind, name, begin, end, layer: None, expert: None, amount });
    }
}

/// A mutable slice whose parts are written by different tasks of a region.
pub(crate) struct Parts<'a, T = f32> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Parts<'_, T> {}

// SAFETY: it only gives out parts under the contract of `part`.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), lifetime: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// Parts that are alive at the same time must not overlap.
    #[expect(clippy::mut_from_ref, reason = "the contract replaces the borrow checker's")]
    pub(crate) unsafe fn part(&self, begin: usize, len: usize) -> &mut [T] {
        assert!(begin <= self.len && len <= self.len - begin, "a part lies inside the whole");
        // SAFETY: the range is inside the slice, and the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_many_regions() {
        for n_threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(n_threads, None).expect("threads");
            for round in 0..2000 {
                let n_tasks = round % 17;
                let mut counts = vec![0.0; n_tasks];
                let parts = Parts::new(&mut counts);
                pool.run("count", n_tasks, |task| {
                    // SAFETY: each task has its own element.
                    let count = unsafe { parts.part(task, 1) };
                    count[0] += 1.0;
                });
                assert!(
                    counts.iter().all(|&count| count == 1.0),
                    "{n_threads} threads: {counts:?}"
                );
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(4, None).expect("threads");
        for _ in 0..50 {
            let run = catch_unwind(AssertUnwindSafe(|| {
                pool.run("test", 64, |task| assert!(task != 33, "the 33rd task panics"));
            }));
            assert!(run.is_err());
            let sum = AtomicUsize::new(0);
            pool.run("test", 64, |task| {
                sum.fetch_add(task, SeqCst);
            });
            assert_eq!(sum.load(SeqCst), 63 * 32);
        }
    }
    #[test]
    fn what_threads_did_is_recorded_and_adds_up() {
        for n_threads in [1, 3] {
            let recorder = Recorder::new(1000);
            let mut pool = Pool::new(n_threads, Some(recorder.clone())).expect("threads");
            for n_tasks in [0, 1, 40] {
                pool.run("tasks", n_tasks, |_| std::thread::yield_now());
            }
            drop(pool);
            let (kept, dropped) = recorder.counts();
            assert!((2..=1 + n_threads).contains(&kept), "{kept} spans of {n_threads} threads");
            assert_eq!(dropped, 0);
            let mut json = Vec::new();
            recorder.write_chrome(&mut json).expect("a Vec takes all");
            let json = String::from_utf8(json).expect("JSON is text");
            let counts = json.split("\"tasks\":").skip(1).map(|rest| {
                let end = rest.find('}').expect("the arguments end");
                rest[..end].parse::<usize>().expect("a number")
            });
            assert_eq!(counts.sum::<usize>(), 41, "every task is somebody's");
        }
    }
}
