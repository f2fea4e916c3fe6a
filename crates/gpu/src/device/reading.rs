//! Bytes that come to the host while the device goes on: a read in two steps.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::num::NonZeroU64;

use crate::device::mapped::Readback;
use crate::device::{Buffer, Device, Moment, lock};

/// Bytes on their way to the host.
#[derive(Debug)]
pub(crate) struct Reading {
    after: Moment,
    bytes: u64,
}

/// Memory that they come through, and the last submission that writes to it.
#[derive(Default)]
pub(super) struct Landing {
    pub(super) memory: Readback,
    last_use: u64,
}

impl Device {
    /// Hands over what was recorded, with copies of parts of buffers to the host: where each begins, and its
    /// bytes, multiples of 4. What is recorded afterwards is done while they come. One at a time: what was
    /// begun before and not finished is lost.
    pub(crate) fn begin_read(&self, parts: &[(&Buffer, u64, u64)]) -> Reading {
        let shared = &*self.shared;
        let bytes = parts.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        let mut landing = lock(&shared.landing);
        let Landing { memory, last_use } = &mut *landing;
        shared.wait_for(*last_use);
        let mut recording = lock(&shared.recording);
        if let Some(memory) = memory.at_least(shared, bytes) {
            let mut end = 0;
            for &(buffer, at, bytes) in parts {
                assert!(at + bytes <= buffer.bytes(), "the bytes are of the buffer");
                if let Some(size) = NonZeroU64::new(bytes) {
                    recording.read(shared, (buffer, at), (&*memory.raw, end), size);
                }
                end += bytes;
            }
        }
        recording.hand_over(shared);
        let after = recording.moment();
        *last_use = after.0;
        Reading { after, bytes }
    }

    /// Waits for bytes that a read was begun of, which replace what `out` held: its parts one after the
    /// other. After a failure of the device they are zero, and [`Device::check`] tells why.
    pub(crate) fn finish_read(&self, Reading { after, bytes }: Reading, out: &mut Vec<u8>) {
        let shared = &*self.shared;
        shared.wait_for(after.0);
        let mut recording = lock(&shared.recording);
        recording.counts.waits += 1;
        recording.retire(shared);
        drop(recording);
        out.clear();
        let mut landing = lock(&shared.landing);
        if !shared.has_failed()
            && let Some(memory) = landing.memory.at_least(shared, bytes)
        {
            // SAFETY: the device is done with what was begun, and begins nothing there without the lock.
            out.extend_from_slice(unsafe { memory.get(shared, bytes) });
        }
        out.resize(bytes as usize, 0);
    }
}
