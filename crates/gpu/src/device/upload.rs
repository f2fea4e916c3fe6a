//! Bytes that go to the device beside what it computes.
//!
//! Where the adapter has a queue that only copies, they are taken into pinned memory of the host and copied by
//! that queue, which waits only for the last use of what they overwrite. Elsewhere an upload is a write among
//! what is recorded: right, but not beside it.

#![cfg_attr(
    any(target_os = "linux", windows),
    expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")
)]

use crate::device::{Buffer, Device, Moment, lock};

#[cfg(any(target_os = "linux", windows))]
pub(super) use beside::Uploads;
#[cfg(not(any(target_os = "linux", windows)))]
pub(super) use never::Uploads;

/// Bytes on their way: the copy after which they are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Upload(u64);

impl Device {
    /// Whether uploads go beside what is computed.
    pub fn uploads_beside(&self) -> bool {
        self.shared.copies_beside()
    }

    /// Begins to copy bytes to a buffer at a multiple of 4 (with zeros up to one), after the work of `after` is
    /// done and beside all that is recorded later. No such work may use that range before
    /// [`Device::after_upload`]. Returns when the bytes were taken.
    pub(crate) fn upload(&self, to: &Buffer, at: u64, bytes: &[u8], after: Moment) -> Upload {
        let end = at + (bytes.len() as u64).next_multiple_of(4);
        assert!(at.is_multiple_of(4) && end <= to.bytes(), "the bytes are of the buffer");
        let after = after.max(to.cleared);
        match self.begin_upload(to, at, bytes, after) {
            Some(upload) => upload,
            None => {
                self.write(to, at, bytes);
                Upload::default()
            }
        }
    }

    /// Whether an upload is there.
    pub(crate) fn has_arrived(&self, Upload(number): Upload) -> bool {
        number == 0 || self.shared.arrived() >= number || self.shared.has_failed()
    }

    /// Lets all that is recorded from now on begin after an upload is there: the device waits, the host does
    /// not.
    pub(crate) fn after_upload(&self, Upload(number): Upload) {
        if number > 0 {
            lock(&self.shared.recording).after_upload(&self.shared, number);
        }
    }
}

#[cfg(any(target_os = "linux", windows))]
mod beside {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use ash::vk;
    use wgpu::BufferUses;

    use super::Upload;
    use crate::device::copy_queue::{COPIES, Copy, CopyQueue};
    use crate::device::mapped::Mapped;
    use crate::device::open::Special;
    use crate::device::recording::Recording;
    use crate::device::{Buffer, Device, Moment, Shared, lock, vulkan};

    /// Bytes of a copy: few enough that taking bytes and copying them overlap.
    const PIECE_BYTES: usize = if cfg!(test) { 64 << 10 } else { 2 << 20 };

    /// What is on its way.
    #[derive(Default)]
    pub(in crate::device) struct Uploads {
        /// Number of the last copy that was begun.
        begun: AtomicU64,
        under_way: Mutex<UnderWay>,
    }

    #[derive(Default)]
    struct UnderWay {
        /// Pinned memory, and the number of its last copy.
        pieces: Vec<(Mapped, u64)>,
        /// The piece that is used next.
        next: usize,
        /// What the copy queue gave up and the computing queue has not taken over, with the copy's number.
        given: Vec<(u64, vk::BufferMemoryBarrier<'static>)>,
    }

    // SAFETY: barriers name a buffer by its handle and own no pointer that is used.
    unsafe impl Send for UnderWay {}

    impl Shared {
        fn copies(&self) -> Option<&CopyQueue> {
            match &self.special {
                Special::Vulkan(vulkan) => vulkan.copies.as_ref(),
                _ => None,
            }
        }

        pub(in crate::device) fn copies_beside(&self) -> bool {
            self.copies().is_some() && vulkan::semaphore(self.fence()).is_some()
        }

        /// Number of the last copy that was begun.
        pub(in crate::device) fn begun_copies(&self) -> u64 {
            self.uploads.begun.load(Ordering::Acquire)
        }

        /// Number of the last copy that is done.
        pub(in crate::device) fn arrived(&self) -> u64 {
            let Some(copies) = self.copies() else { return 0 };
            copies.done().unwrap_or_else(|error| {
                self.fail_with(&error);
                0
            })
        }

        /// Gives everything back.
        ///
        /// # Safety
        /// Nothing is begun any more.
        pub(in crate::device) unsafe fn end_uploads(&self) {
            if let Some(copies) = self.copies() {
                // SAFETY: the caller's promise; after that no copy is under way.
                unsafe { copies.destroy() };
            }
            for (piece, _) in lock(&self.uploads.under_way).pieces.drain(..) {
                // SAFETY: no copy is under way.
                unsafe { piece.destroy(self) };
            }
        }
    }

    impl Device {
        /// See [`Device::upload`]; `None` if uploads do not go beside what is computed.
        pub(super) fn begin_upload(
            &self,
            to: &Buffer,
            at: u64,
            bytes: &[u8],
            Moment(after): Moment,
        ) -> Option<Upload> {
            let shared = &*self.shared;
            let copies = shared.copies()?;
            let semaphore = vulkan::semaphore(shared.fence())?;
            let target = vulkan::handle(to.raw.as_deref()?);
            if !lock(&shared.recording).is_handed_over(after) {
                self.submit();
            }
            if shared.has_failed() {
                return None;
            }
            let after = (!shared.is_done(after)).then_some((semaphore, after));
            let mut under_way = lock(&shared.uploads.under_way);
            let mut at = at;
            for bytes in bytes.chunks(PIECE_BYTES) {
                let (index, from) = under_way.take(shared, copies, bytes)?;
                let number = shared.begun_copies() + 1;
                let size = (bytes.len() as u64).next_multiple_of(4);
                let region = vk::BufferCopy { src_offset: 0, dst_offset: at, size };
                let copy = Copy { from, to: target, region, after, number };
                shared.uploads.begun.store(number, Ordering::Release);
                // SAFETY: the piece is not given to another copy before this one is done, and a buffer is
                // destroyed only after all copies that were begun before it was let go of; the caller
                // asserted the range.
                if let Err(error) = unsafe { copies.begin(index, &copy) } {
                    shared.fail_with(&error);
                    return None;
                }
                under_way.pieces[index].1 = number;
                under_way.given.push((number, copies.handover(&copy)));
                at += size;
            }
            Some(Upload(shared.begun_copies()))
        }
    }

    impl UnderWay {
        /// Takes bytes into pinned memory that no copy uses; gives its index and handle.
        fn take(
            &mut self,
            shared: &Shared,
            copies: &CopyQueue,
            bytes: &[u8],
        ) -> Option<(usize, vk::Buffer)> {
            if self.pieces.len() < COPIES {
                let usage = BufferUses::MAP_READ | BufferUses::COPY_SRC;
                let piece = Mapped::new(shared, PIECE_BYTES as u64, usage)?;
                self.next = self.pieces.len();
                self.pieces.push((piece, 0));
            }
            let index = self.next;
            self.next = (index + 1) % COPIES;
            let (piece, last_use) = &mut self.pieces[index];
            if let Err(error) = copies.wait(*last_use) {
                shared.fail_with(&error);
                return None;
            }
            // SAFETY: the last copy that reads it is done.
            unsafe { piece.put(shared, 0, bytes) };
            Some((index, vulkan::handle(&*piece.raw)))
        }
    }

    impl Recording {
        /// Lets what is recorded from now on begin after a copy.
        pub(super) fn after_upload(&mut self, shared: &Shared, number: u64) {
            let (Some(copies), Special::Vulkan(vulkan)) = (shared.copies(), &shared.special) else {
                return;
            };
            let mut under_way = lock(&shared.uploads.under_way);
            let given = under_way.given.extract_if(.., |(copy, _)| *copy <= number);
            let given: Vec<_> = given.map(|(_, barrier)| barrier).collect();
            drop(under_way);
            if given.is_empty() {
                return;
            }
            if shared.arrived() < number {
                // What was recorded before need not wait.
                self.hand_over(shared);
                self.before_next = Some((copies.arrived, number));
            }
            if let Some(encoder) = self.outside_of_passes(shared) {
                vulkan.acquire(&**encoder, &given);
            }
        }
    }
}

#[cfg(not(any(target_os = "linux", windows)))]
mod never {
    use super::Upload;
    use crate::device::recording::Recording;
    use crate::device::{Buffer, Device, Moment, Shared};

    /// Nothing is ever on its way.
    #[derive(Default)]
    pub(in crate::device) struct Uploads;

    impl Shared {
        pub(in crate::device) fn copies_beside(&self) -> bool {
            false
        }

        pub(in crate::device) fn begun_copies(&self) -> u64 {
            0
        }

        pub(in crate::device) fn arrived(&self) -> u64 {
            0
        }

        #[expect(unsafe_code, clippy::unused_self, reason = "as where there is something")]
        pub(in crate::device) unsafe fn end_uploads(&self) {}
    }

    impl Device {
        #[expect(clippy::unused_self, reason = "as where uploads go beside")]
        pub(super) fn begin_upload(
            &self,
            _: &Buffer,
            _: u64,
            _: &[u8],
            _: Moment,
        ) -> Option<Upload> {
            None
        }
    }

    impl Recording {
        #[expect(clippy::unused_self, reason = "as where uploads go beside")]
        pub(super) fn after_upload(&mut self, _: &Shared, _: u64) {}
    }
}
