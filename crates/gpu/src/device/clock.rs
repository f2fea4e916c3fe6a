//! When kernels run, by the device's own clock: timestamps before and after each, told to a recorder.
//!
//! A device that is opened without a recorder has no clock: no feature is asked for and nothing is allocated.
//! Timestamps are taken when all that was handed over before is done, so spans never overlap: of kernels
//! that run side by side, the later one's span is what it takes longer. Launching is part of a span, what a barrier
//! costs lies between spans. Taking timestamps costs time itself, so totals are longer than without.
//!
//! The clocks of device and host are tied by what must be true: a kernel begins after the host handed it over, and
//! ends before the host saw that it was done. Each submission narrows that interval; while it is wide, a time near its
//! beginning is taken, for the host often sees late but an idle device begins at once, else the middle. How far the
//! truth may be from there is told with each span.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use trace::{Kind, Recorder, Span};
use wgpu::BufferUses;
use wgpu::hal;

use crate::device::Shared;
use crate::device::mapped::Mapped;

/// What a device must offer to have a clock.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

/// Bytes of a timestamp.
const STAMP_BYTES: u64 = 8;
/// How much faster or slower one clock may be than the other: more than crystals differ.
const DRIFT: f64 = 1e-4;
/// Nanoseconds after which an idle device has mostly begun with what was handed over.
const LATENCY: f64 = 50e3;

/// A device's clock.
pub(super) struct Clock {
    recorder: Recorder,
    /// Most kernels of a submission.
    most: u32,
    /// Nanoseconds of a tick.
    period: f64,
    tie: Option<Tie>,
    last_end: Option<Instant>,
    /// Of the submission that is being recorded.
    current: Option<Stamps>,
    idle: Vec<Stamps>,
}

/// Timestamps of a submission: two of each kernel.
pub(super) struct Stamps {
    set: Box<dyn hal::DynQuerySet>,
    memory: Mapped,
    names: Vec<&'static str>,
    handed_over: Instant,
}

impl Clock {
    /// For submissions of at most so many kernels.
    pub(super) fn new(recorder: Recorder, most: u32, queue: &dyn hal::DynQueue) -> Self {
        // SAFETY: the device was opened with timestamps.
        let period = f64::from(unsafe { queue.get_timestamp_period() });
        let (tie, last_end, current, idle) = (None, None, None, Vec::new());
        Self { recorder, most, period, tie, last_end, current, idle }
    }

    /// Begins a submission with an encoder that records, outside of passes.
    pub(super) fn begin(&mut self, shared: &Shared, encoder: &mut dyn hal::DynCommandEncoder) {
        if let Some(left) = self.current.take() {
            self.idle.push(left);
        }
        if !self.recorder.is_recording() {
            return;
        }
        let stamps = self.idle.pop().or_else(|| Stamps::new(shared, self.most));
        if let Some(mut stamps) = stamps {
            stamps.names.clear();
            // SAFETY: the set has so many queries, and what used them before is done.
            unsafe { encoder.reset_queries(&*stamps.set, 0..2 * self.most) };
            self.current = Some(stamps);
        }
    }

    /// A kernel comes next.
    pub(super) fn before(&mut self, encoder: &mut dyn hal::DynCommandEncoder) {
        if let Some(stamps) = self.current.as_ref().filter(|stamps| stamps.has_room(self.most)) {
            let index = 2 * stamps.names.len() as u32;
            // SAFETY: the query is of the set and not used since it was reset.
            unsafe { encoder.write_timestamp(&*stamps.set, index) };
        }
    }

    /// A kernel was started, after [`Clock::before`].
    pub(super) fn after(&mut self, encoder: &mut dyn hal::DynCommandEncoder, name: &'static str) {
        if let Some(stamps) = self.current.as_mut().filter(|stamps| stamps.has_room(self.most)) {
            let index = 2 * stamps.names.len() as u32 + 1;
            // SAFETY: as above.
            unsafe { encoder.write_timestamp(&*stamps.set, index) };
            stamps.names.push(name);
        }
    }

    /// Ends a submission, outside of passes, before it is handed over.
    pub(super) fn end(
        &mut self,
        shared: &Shared,
        encoder: &mut dyn hal::DynCommandEncoder,
    ) -> Option<Stamps> {
        let mut stamps = self.current.take()?;
        if stamps.names.is_empty() {
            self.idle.push(stamps);
            return None;
        }
        let all = 0..2 * stamps.names.len() as u32;
        let stride = NonZeroU64::new(STAMP_BYTES).expect("it is not zero");
        // SAFETY: exactly these queries were written, and the memory has room for all of the set.
        unsafe {
            encoder.copy_query_results(&*stamps.set, all, &*stamps.memory.raw, 0, stride);
        }
        shared.special.show_host(encoder);
        stamps.handed_over = Instant::now();
        Some(stamps)
    }

    /// Takes back what a submission did not come to use.
    pub(super) fn unused(&mut self, stamps: Stamps) {
        self.idle.push(stamps);
    }

    /// Tells the recorder of a submission that was seen to be done at a time.
    pub(super) fn done(&mut self, shared: &Shared, stamps: Stamps, seen: Instant) {
        let bytes = 2 * stamps.names.len() as u64 * STAMP_BYTES;
        // SAFETY: the submission is done, and its stamps are not used again before they are idle.
        let bytes = unsafe { stamps.memory.get(shared, bytes) };
        let ticks = bytes.as_chunks().0.iter().map(|ticks| u64::from_le_bytes(*ticks));
        let ticks: Vec<u64> = ticks.collect();
        if let [first, .., last] = ticks[..] {
            let tie = self.tie.get_or_insert_with(|| Tie::new(first, stamps.handed_over));
            let time = |ticks| tie.since_origin(ticks, self.period);
            let (first, last) = (time(first), time(last));
            tie.narrow(first, last, stamps.handed_over, seen);
        }
        let Some(tie) = &self.tie else { return };
        // The tie may have moved since the last submission; spans keep their lengths and their order.
        let begins = ticks.first().map(|ticks| tie.on_host(tie.since_origin(*ticks, self.period)));
        let late = self.last_end.zip(begins);
        let late = late.map_or(Duration::ZERO, |(last, next)| last.saturating_duration_since(next));
        let amount = tie.uncertainty_ns().saturating_add(late.as_nanos() as u64);
        let mut is_first = true;
        for (pair, name) in ticks.as_chunks().0.iter().zip(&stamps.names) {
            let [begin, end] =
                pair.map(|ticks| tie.on_host(tie.since_origin(ticks, self.period)) + late);
            // Rounded, or by a clock that jumped.
            let begin = self.last_end.map_or(begin, |last| begin.max(last));
            let end = end.max(begin);
            self.last_end = Some(end);
            let kind = Kind::Kernel { is_first };
            let (layer, expert) = (None, None);
            self.recorder.record(&Span { kind, name, begin, end, layer, expert, amount });
            is_first = false;
        }
        self.idle.push(stamps);
    }

    /// Destroys everything.
    ///
    /// # Safety
    /// The device does nothing any more.
    pub(super) unsafe fn destroy(&mut self, shared: &Shared) {
        for stamps in self.idle.drain(..).chain(self.current.take()) {
            // SAFETY: the caller's promise.
            unsafe { stamps.destroy(shared) };
        }
    }
}

impl Stamps {
    fn new(shared: &Shared, most: u32) -> Option<Self> {
        let descriptor = wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2 * most,
        };
        // SAFETY: the device was opened with timestamps.
        let set = unsafe { shared.device.create_query_set(&descriptor) };
        let set = set.map_err(|error| shared.fail_with(&error)).ok()?;
        let usage = BufferUses::MAP_READ | BufferUses::COPY_DST;
        match Mapped::new(shared, 2 * u64::from(most) * STAMP_BYTES, usage) {
            Some(memory) => {
                let names = Vec::with_capacity(most as usize);
                Some(Self { set, memory, names, handed_over: Instant::now() })
            }
            None => {
                // SAFETY: nothing uses it yet.
                unsafe { shared.device.destroy_query_set(set) };
                None
            }
        }
    }

    /// Whether another kernel can be timed, of so many.
    fn has_room(&self, most: u32) -> bool {
        self.names.len() < most as usize
    }

    /// Destroys the queries and their memory.
    ///
    /// # Safety
    /// The device does not use them any more.
    pub(super) unsafe fn destroy(self, shared: &Shared) {
        // SAFETY: the caller's promise.
        unsafe {
            shared.device.destroy_query_set(self.set);
            self.memory.destroy(shared);
        }
    }
}

/// What is known of how a device's clock stands to the host's. Times are nanoseconds, the device's since its
/// first timestamp, the host's since the first submission with timestamps was handed over.
#[derive(Clone, Copy, Debug)]
struct Tie {
    origin: u64,
    epoch: Instant,
    /// Between these is what the host's clock shows more than the device's.
    low: f64,
    high: f64,
    /// When that was last narrowed.
    at: f64,
}

impl Tie {
    fn new(origin: u64, epoch: Instant) -> Self {
        Self { origin, epoch, low: f64::NEG_INFINITY, high: f64::INFINITY, at: 0.0 }
    }

    fn since_origin(&self, ticks: u64, period: f64) -> f64 {
        ticks.wrapping_sub(self.origin).cast_signed() as f64 * period
    }

    /// Takes into account that what the device began and ended at `first` and `last` was handed over and seen to
    /// be done at these times.
    fn narrow(&mut self, first: f64, last: f64, handed_over: Instant, seen: Instant) {
        let since_epoch =
            |time: Instant| time.saturating_duration_since(self.epoch).as_nanos() as f64;
        let (low, high) = (since_epoch(handed_over) - first, since_epoch(seen) - last);
        let drift = DRIFT * (since_epoch(seen) - self.at);
        self.at = since_epoch(seen);
        (self.low, self.high) = (low.max(self.low - drift), high.min(self.high + drift));
        // A clock jumped: what was known is worth nothing.
        if self.low > self.high {
            (self.low, self.high) = (low, high.max(low));
        }
    }

    fn on_host(&self, time: f64) -> Instant {
        // Casts of floats saturate; nothing happened before the epoch.
        self.epoch + Duration::from_nanos((time + self.offset()) as u64)
    }

    fn uncertainty_ns(&self) -> u64 {
        (self.high - self.offset()).ceil() as u64
    }

    fn offset(&self) -> f64 {
        self.low.midpoint(self.high).min(self.low + LATENCY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_submission_narrows_the_tie_and_a_jump_begins_anew() {
        let epoch = Instant::now();
        let at = |ns: u64| epoch + Duration::from_nanos(ns);
        let mut tie = Tie::new(1000, epoch);
        assert_eq!(tie.since_origin(1100, 2.0), 200.0);
        assert_eq!(tie.since_origin(900, 2.0), -200.0);
        // The truth: the host's clock shows 500 more.
        tie.narrow(0.0, 100.0, at(0), at(1600));
        assert_eq!((tie.low, tie.high), (0.0, 1500.0));
        assert_eq!(tie.uncertainty_ns(), 750);
        tie.narrow(2000.0, 2100.0, at(2480), at(2630));
        let is_near = |a: f64, b: f64| (a - b).abs() < 1.0;
        assert!(is_near(tie.low, 480.0) && is_near(tie.high, 530.0), "{tie:?}");
        assert_eq!(tie.uncertainty_ns(), 25);
        // A worse one tells nothing new, but clocks drift meanwhile.
        tie.narrow(1e7, 1e7, at(9_000_000), at(12_000_000));
        assert!(tie.low < 480.0 && tie.high > 530.0, "{tie:?}");
        assert!(tie.uncertainty_ns() < 2000, "{tie:?}");
        tie.narrow(0.0, 10.0, at(20_000_000), at(20_000_100));
        assert_eq!((tie.low, tie.high), (20_000_000.0, 20_000_090.0));
        assert_eq!(tie.on_host(0.0), at(20_000_045));
        // Where the host saw it late, that does not make the work late.
        let mut tie = Tie::new(0, epoch);
        tie.narrow(0.0, 0.0, at(0), at(1_000_000));
        assert_eq!((tie.on_host(0.0), tie.uncertainty_ns()), (at(50_000), 950_000));
    }
}
