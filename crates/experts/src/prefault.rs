//! A thread that has memory ready for experts to come.
//!
//! Fresh memory costs 0.2 ms for each 2 MiB, and 3 ms where a virtual machine's host must supply it:
//! as much as reading an expert into it. A read that meets it waits in the system, and with it whoever
//! submitted it. This thread goes before, a little ahead of the slots in use, and ends with the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use compute::memory::Pages;

/// How far it goes ahead of the slots in use.
const AHEAD_BYTES: usize = 512 << 20;

/// The thread; it ends when this goes.
pub(crate) struct Prefault {
    n_used: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// More slots than there are: the thread shall end.
const END: usize = usize::MAX;

impl Prefault {
    /// For slots that are used in order. Where no thread can be had, reads find fresh memory.
    pub(crate) fn new(pages: Pages, slot_bytes: usize, n_slots: usize) -> Self {
        let n_used = Arc::new(AtomicUsize::new(0));
        let used = Arc::clone(&n_used);
        let work = move || {
            let n_ahead = (AHEAD_BYTES / slot_bytes.max(1)).max(1);
            let mut n_done = 0;
            loop {
                let n_used = used.load(Ordering::Relaxed);
                if n_used == END || n_done == n_slots {
                    return;
                }
                if n_done >= n_used.saturating_add(n_ahead) {
                    std::thread::park();
                    continue;
                }
                // What was overtaken is resident.
                n_done = n_done.max(n_used);
                if n_done < n_slots && !pages.populate(n_done * slot_bytes, slot_bytes) {
                    return;
                }
                n_done = (n_done + 1).min(n_slots);
            }
        };
        let thread = std::thread::Builder::new().name("expert-memory".to_owned());
        let thread = thread.stack_size(64 << 10).spawn(work).ok();
        Self { n_used, thread }
    }

    /// Tells that one more slot is in use for the first time.
    pub(crate) fn use_slot(&self) {
        self.n_used.fetch_add(1, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Prefault {
    fn drop(&mut self) {
        self.n_used.store(END, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic; and if it did, it has said so.
            drop(thread.join());
        }
    }
}
