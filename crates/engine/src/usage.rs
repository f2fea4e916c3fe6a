//! What work cost: time by phase, and experts moved.

use std::ops::AddAssign;
use std::time::Duration;

use compute::Handoffs;
use model::{Phase, Timeline};

/// The cost of one or several forward passes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens computed.
    pub tokens: usize,
    /// Time from beginning to end.
    pub wall: Duration,
    /// Time by phase, in the order of [`Phase::ALL`].
    pub phases: [Duration; Phase::ALL.len()],
    /// How often rows used experts that the device held.
    pub held_uses: u64,
    /// What was said between program and device.
    pub handoffs: Handoffs,
    /// Experts that were in memory when they were asked for.
    pub hits: u64,
    /// Experts that were read.
    pub misses: u64,
    /// Experts that were read before they were asked for.
    pub ahead_reads: u64,
    /// Those of them that were asked for then.
    pub ahead_useful: u64,
    /// Experts that were read for the heat map.
    pub warm_reads: u64,
    /// Experts read for the heat map, in this pass or before, that were asked for the first time.
    pub warm_useful: u64,
    /// Bytes of the experts that rows used, each row's counted: what a token needs wherever it lies.
    pub used_bytes: u64,
    /// How often rows used the twin of an expert in its place.
    pub twin_uses: u64,
    /// Bytes that those uses had less than the experts would have.
    pub twin_saved_bytes: u64,
    /// Bytes read from the drive.
    pub bytes_read: u64,
    /// Time in which at least one expert was being read.
    pub drive_busy: Duration,
    /// Time spent on handing reads to the system: part of the same phases.
    pub submitting: Duration,
    /// Time spent on keeping the experts' books: part of the phases "router" and "waiting".
    pub bookkeeping: Duration,
}

impl Usage {
    /// The cost of a pass, from its timeline and from the experts' statistics around it; without what a
    /// device of its own had to do with it.
    pub(crate) fn of_pass(
        tokens: usize,
        wall: Duration,
        timeline: &Timeline,
        before: &experts::Stats,
        after: &experts::Stats,
    ) -> Self {
        Self {
            tokens,
            wall,
            phases: Phase::ALL.map(|phase| timeline.total(phase)),
            held_uses: 0,
            handoffs: Handoffs::default(),
            hits: after.hits - before.hits,
            misses: after.misses - before.misses,
            ahead_reads: after.ahead_reads.saturating_sub(before.ahead_reads),
            ahead_useful: after.ahead_useful - before.ahead_useful,
            warm_reads: after.warm_reads.saturating_sub(before.warm_reads),
            warm_useful: after.warm_useful - before.warm_useful,
            used_bytes: after.used_bytes - before.used_bytes,
            twin_uses: after.twin_uses - before.twin_uses,
            twin_saved_bytes: after.twin_saved_bytes - before.twin_saved_bytes,
            bytes_read: after.bytes_read - before.bytes_read,
            drive_busy: after.drive_busy - before.drive_busy,
            submitting: after.submitting - before.submitting,
            bookkeeping: after.bookkeeping - before.bookkeeping,
        }
    }

    /// Tokens a second; zero when nothing was measured.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.wall.as_secs_f64();
        if seconds > 0.0 { self.tokens as f64 / seconds } else { 0.0 }
    }

    /// Share of the experts that were in memory; `None` when none was asked for.
    pub fn hit_rate(&self) -> Option<f64> {
        let asked = self.hits + self.misses;
        (asked > 0).then(|| self.hits as f64 / asked as f64)
    }

    /// Bytes a second from the drive while it was reading; `None` when it never was.
    pub fn drive_bytes_per_second(&self) -> Option<f64> {
        let seconds = self.drive_busy.as_secs_f64();
        (seconds > 0.0).then(|| self.bytes_read as f64 / seconds)
    }

    /// Time that belongs to no phase.
    pub fn other(&self) -> Duration {
        self.wall.saturating_sub(self.phases.iter().sum())
    }

    /// Time spent in a phase.
    pub fn phase(&self, phase: Phase) -> Duration {
        self.phases[phase as usize]
    }
}

impl AddAssign<&Self> for Usage {
    fn add_assign(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.wall += other.wall;
        for (phase, more) in self.phases.iter_mut().zip(other.phases) {
            *phase += more;
        }
        self.held_uses += other.held_uses;
        self.handoffs += other.handoffs;
        self.hits += other.hits;
        self.misses += other.misses;
        self.ahead_reads += other.ahead_reads;
        self.ahead_useful += other.ahead_useful;
        self.warm_reads += other.warm_reads;
        self.warm_useful += other.warm_useful;
        self.used_bytes += other.used_bytes;
        self.twin_uses += other.twin_uses;
        self.twin_saved_bytes += other.twin_saved_bytes;
        self.bytes_read += other.bytes_read;
        self.drive_busy += other.drive_busy;
        self.submitting += other.submitting;
        self.bookkeeping += other.bookkeeping;
    }
}
