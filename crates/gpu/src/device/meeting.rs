//! Meetings of host and device: waiting, and results.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::device::{Buffer, Device, Moment, Shared, lock};

/// Most bytes that come to the host at a time. Few where this crate tests itself.
const READ_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 32 << 20 };

impl Device {
    /// Waits until the device has done everything.
    pub(crate) fn wait(&self) {
        let mut recording = lock(&self.shared.recording);
        recording.hand_over(&self.shared);
        recording.counts.waits += 1;
        let Moment(all) = recording.moment();
        drop(recording);
        self.shared.wait_for(all);
        lock(&self.shared.recording).retire(&self.shared);
    }

    /// Whether the work of a moment is done.
    pub(crate) fn is_done(&self, Moment(submission): Moment) -> bool {
        self.shared.is_done(submission) || self.shared.has_failed()
    }

    /// Waits for the work of a moment.
    pub(crate) fn wait_for(&self, Moment(submission): Moment) {
        let mut recording = lock(&self.shared.recording);
        if !recording.is_handed_over(submission) {
            recording.hand_over(&self.shared);
        }
        drop(recording);
        self.shared.wait_for(submission);
        let mut recording = lock(&self.shared.recording);
        if recording.clock.is_some() {
            recording.retire(&self.shared);
        }
    }

    /// Copies bytes to the host, replacing what `out` held: waits for the device. Numbers are multiples of
    /// 4. After a failure of the device the bytes are zero, and [`Device::check`] tells why.
    pub(crate) fn read(&self, buffer: &Buffer, at: u64, bytes: u64, out: &mut Vec<u8>) {
        assert!(at + bytes <= buffer.bytes(), "the bytes are of the buffer");
        out.clear();
        let mut readback = lock(&self.shared.readback);
        while out.len() < bytes as usize {
            let from = at + out.len() as u64;
            let piece = (bytes - out.len() as u64).min(READ_BYTES);
            let (Some(held), Some(size)) =
                (readback.at_least(&self.shared, piece), NonZeroU64::new(piece))
            else {
                break;
            };
            let mut recording = lock(&self.shared.recording);
            recording.read(&self.shared, (buffer, from), (&*held.raw, 0), size);
            drop(recording);
            self.wait();
            if self.shared.has_failed() {
                break;
            }
            // SAFETY: the device is done, and whoever wants to have something written there needs the lock.
            out.extend_from_slice(unsafe { held.get(&self.shared, piece) });
        }
        out.resize(bytes as usize, 0);
    }
}

impl Shared {
    /// The last submission that is done.
    pub(super) fn done(&self) -> u64 {
        // SAFETY: the fence is this device's.
        match unsafe { self.device.get_fence_value(self.fence()) } {
            Ok(done) => {
                self.done.fetch_max(done, Ordering::AcqRel);
            }
            Err(error) => self.fail_with(&error),
        }
        self.done.load(Ordering::Acquire)
    }

    pub(super) fn is_done(&self, submission: u64) -> bool {
        self.done.load(Ordering::Acquire) >= submission || self.done() >= submission
    }

    /// Waits until a submission is done, or the device has failed.
    pub(super) fn wait_for(&self, submission: u64) {
        let begin = Instant::now();
        let spin = Duration::from_nanos(self.spin_ns.load(Ordering::Relaxed));
        loop {
            if self.is_done(submission) || self.has_failed() {
                return;
            }
            if begin.elapsed() >= spin {
                break;
            }
            std::hint::spin_loop();
        }
        // SAFETY: the fence is this device's, and the submission was handed over.
        match unsafe { self.device.wait(self.fence(), submission, None) } {
            Ok(true) => {}
            Ok(false) => self.fail("it does not answer"),
            Err(error) => self.fail_with(&error),
        }
    }
}
