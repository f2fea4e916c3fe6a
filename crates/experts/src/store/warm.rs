//! Filling empty slots with the experts that were hot in an earlier run.
//!
//! They are read while nobody waits for the drive and no prediction wants it, a few at a time: as many
//! as are done before the next request. They need no protection in their slots, since the policy begins
//! with the same heat map. When no slot is empty, all is done. Callers without work can give it all the
//! time they have.

use std::time::{Duration, Instant};

use super::{ExpertStore, NOWHERE};
use crate::heat_map::HeatMap;
use crate::reader::Urgency;

/// Most bytes read at a time. A phase of a large model, in which the drive has nothing else to do, takes
/// some milliseconds.
const MOST_BYTES: u64 = 16 << 20;
/// Most experts read at a time, for experts so small that their number counts.
const MOST_READS: u64 = 32;
/// Requests that must find all done in time before more are read at a time, and requests to rest for
/// when even one was too many: so one request in some nine is delayed.
const PATIENCE: u32 = 8;

/// What is still to be read.
#[derive(Default)]
pub(super) struct State {
    /// Keys, the hottest last.
    keys: Vec<u32>,
    /// How many are being read that nobody has asked for.
    pub(super) in_flight: usize,
    /// How many are read at a time.
    n_reads: usize,
    /// Whether so many were begun since the last request.
    is_full: bool,
    /// How often in a row so many were done in time.
    n_in_time: u32,
    /// Requests until the next reads.
    rest: u32,
}

impl ExpertStore {
    /// How hot each expert is, for the next run's [`ExpertStore::recall`].
    pub fn heat_map(&self) -> HeatMap {
        let worths = (0..self.places.len()).map(|key| self.policy.worth(key as u32));
        HeatMap::new(&self.layers, worths)
    }

    /// Begins with the heat of an earlier run: for the policy, and, unless looking ahead is off, as what
    /// empty slots are filled with while the drive is idle. Tells whether the map is of such a model;
    /// if not, nothing happens.
    pub fn recall(&mut self, map: &HeatMap) -> bool {
        if !map.fits(&self.layers) {
            return false;
        }
        let mut hottest = Vec::with_capacity(self.places.len());
        for (key, worth) in (0..).zip(map.worths()) {
            if let Some(worth) = worth {
                self.policy.recall(key, worth);
                hottest.push((worth, key));
            }
        }
        if !self.is_look_ahead_off() {
            // Of experts alike those of earlier layers are wanted first.
            hottest.sort_by(|(a, key), (b, other)| b.total_cmp(a).then(key.cmp(other)));
            hottest.truncate(self.slots.len());
            self.warm.keys = hottest.into_iter().rev().map(|(_, key)| key).collect();
            self.warm.n_reads = 1;
            self.warm();
        }
        true
    }

    /// Begins to read some of the hottest experts if a slot is empty and the drive has nothing to do.
    pub(super) fn warm(&mut self) {
        let is_off = self.warm.keys.is_empty() || self.free.is_empty() || self.warm.rest > 0;
        let is_awaited = self.request.n_expected > 0 || !self.request.waiting.is_empty();
        if is_off || is_awaited || self.is_sweeping() {
            return;
        }
        // Nothing in flight is owed, so nobody is to be told of a failure.
        drop(self.take_completions());
        if self.in_flight == 0 {
            self.submit_warm(self.warm.n_reads);
            self.warm.is_full |= self.warm.in_flight == self.warm.n_reads;
        }
    }

    /// Fills empty slots for so long, or until nothing is left to do, which it tells; for callers that
    /// have no work. What they asked for before and did not take is forgotten. A read that is under way
    /// in the end goes on.
    pub fn warm_up(&mut self, limit: Duration) -> bool {
        let begin = Instant::now();
        self.abandon();
        self.release();
        drop(self.take_completions());
        while begin.elapsed() < limit {
            self.submit_warm(self.most_warm_reads());
            if self.in_flight == 0 {
                break;
            }
            // As nothing is owed, nobody is to be told of a failure; the slot is free again.
            let Some(completion) = self.reader.wait() else { break };
            drop(self.complete(completion));
        }
        self.warm.keys.is_empty() || self.free.is_empty()
    }

    /// Begins reads until so many are under way.
    fn submit_warm(&mut self, n_reads: usize) {
        let n_before = self.warm.in_flight;
        while self.warm.in_flight < n_reads && !self.free.is_empty() {
            let Some(key) = self.warm.keys.pop() else { break };
            if self.places[key as usize] != NOWHERE {
                continue;
            }
            let Some(slot) = self.take_slot() else { break };
            let job = self.job(key, slot, Urgency::Ahead);
            self.slots[slot as usize].is_warm = true;
            self.warm.in_flight += 1;
            self.stats.warm_reads += 1;
            self.reader.submit(job);
        }
        if self.warm.in_flight > n_before {
            self.begin_reads();
        }
    }

    /// Whether the caller is about to compute the last of what it asked for, or is done with the last
    /// layer: no other call tells that the drive will have time then.
    pub(super) fn is_last_delivery(&self) -> bool {
        let request = &self.request;
        !request.ready.is_empty() || request.layer + 1 == self.layers.len()
    }

    /// Adapts the number of reads to the time that there was; in the midst of a request.
    pub(super) fn judge_warm(&mut self) {
        let most = self.most_warm_reads();
        let warm = &mut self.warm;
        warm.rest = warm.rest.saturating_sub(1);
        if warm.in_flight > 0 {
            // They delay the reads that somebody waits for.
            if warm.n_reads == 1 {
                warm.rest = PATIENCE;
            }
            warm.n_reads = (warm.n_reads - 1).max(1);
            warm.n_in_time = 0;
        } else if warm.is_full {
            warm.n_in_time += 1;
            if warm.n_in_time == PATIENCE {
                (warm.n_reads, warm.n_in_time) = ((warm.n_reads + 1).min(most), 0);
            }
        }
        warm.is_full = false;
    }

    fn most_warm_reads(&self) -> usize {
        (MOST_BYTES / self.slot_bytes.max(1)).clamp(1, MOST_READS) as usize
    }

    /// A read that had not begun when a request came.
    pub(super) fn take_back_warm(&mut self, key: u32) {
        self.warm.in_flight -= 1;
        self.stats.warm_reads -= 1;
        self.warm.keys.push(key);
    }
}
