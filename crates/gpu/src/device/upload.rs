//! Bytes that go to the device beside what it computes.
//!
//! Where the adapter has a queue that only copies, they are taken into pinned memory of the host and copied by
//! that queue, which waits only for the last use of what they overwrite. Elsewhere an upload is a write among
//! what is recorded: right, but not beside it.

#![cfg_attr(
    any(target_os = "linux", windows),
    expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")
)]

use std::sync::Arc;

use compute::memory::Block;

use crate::device::{Buffer, Device, Moment, lock};

#[cfg(any(target_os = "linux", windows))]
pub(super) use beside::Uploads;
#[cfg(not(any(target_os = "linux", windows)))]
pub(super) use never::Uploads;

/// Bytes on their way: the copy after which they are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Upload(u64);

/// A part of an upload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// Where in the buffer it goes.
    pub(crate) at: u64,
    pub(crate) bytes: &'a [u8],
    /// What the bytes are a part of: it keeps them, and as they are.
    pub(crate) block: Option<&'a Arc<Block>>,
}

impl Device {
    /// Whether uploads go beside what is computed.
    pub fn uploads_beside(&self) -> bool {
        self.shared.copies_beside()
    }

    /// Begins to copy bytes to a buffer at a multiple of 4 (with zeros up to one), after the work of `after` is
    /// done and beside all that is recorded later. No such work may use that range before
    /// [`Device::after_upload`]. Returns when the bytes were taken.
    pub(crate) fn upload(&self, to: &Buffer, at: u64, bytes: &[u8], after: Moment) -> Upload {
        self.upload_parts(to, &[Part { at, bytes, block: None }], after)
    }

    /// The same with several parts. Bytes of a block are copied from where they lie, if the driver can and
    /// their number is a multiple of 4; the block is kept until they are there.
    pub(crate) fn upload_parts(&self, to: &Buffer, parts: &[Part<'_>], after: Moment) -> Upload {
        for Part { at, bytes, .. } in parts {
            let end = at + (bytes.len() as u64).next_multiple_of(4);
            assert!(at.is_multiple_of(4) && end <= to.bytes(), "the bytes are of the buffer");
        }
        let after = after.max(to.cleared);
        self.begin_upload(to, parts, after).unwrap_or_else(|| {
            for Part { at, bytes, .. } in parts {
                self.write(to, *at, bytes);
            }
            Upload::default()
        })
    }

    /// Lets go of blocks whose bytes are there, and waits until at most so many uploads keep theirs.
    pub(crate) fn let_go(&self, most: usize) {
        self.shared.let_go(most);
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use ash::vk;
    use compute::memory::Block;
    use wgpu::BufferUses;

    use super::{Part, Upload};
    use crate::device::copy_queue::{COPIES, Copy, CopyQueue};
    use crate::device::mapped::Mapped;
    use crate::device::open::Special;
    use crate::device::recording::Recording;
    use crate::device::{Buffer, Device, Moment, Shared, lock, vulkan};

    /// Bytes of a copy: few enough that taking bytes and copying them overlap.
    const PIECE_BYTES: usize = if cfg!(test) { 64 << 10 } else { 2 << 20 };

    /// The semaphore of the computing queue, and the number that it must have before a copy begins.
    type After = Option<(vk::Semaphore, u64)>;

    /// A part of a copy: from which memory, and which of its bytes.
    type Region = (vk::Buffer, vk::BufferCopy);

    /// What is on its way.
    #[derive(Default)]
    pub(in crate::device) struct Uploads {
        /// Number of the last copy that was begun.
        begun: AtomicU64,
        under_way: Mutex<UnderWay>,
    }

    #[derive(Default)]
    struct UnderWay {
        /// Memory that bytes are taken into, made when it is needed.
        pieces: [Option<Mapped>; COPIES],
        /// Of each, and of the commands with its index, the number of the last copy.
        last_uses: [u64; COPIES],
        /// The index that is used next.
        next: usize,
        /// Blocks that are copied from, with the copy's number.
        keepers: Vec<(u64, Arc<Block>)>,
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

        /// See [`Device::let_go`].
        pub(super) fn let_go(&self, most: usize) {
            let Some(copies) = self.copies() else { return };
            let mut under_way = lock(&self.uploads.under_way);
            under_way.release(self);
            // In order of their numbers, several of one upload together.
            let mut numbers: Vec<u64> =
                under_way.keepers.iter().map(|(number, _)| *number).collect();
            numbers.dedup();
            if let Some(&last) = numbers.iter().rev().nth(most) {
                if let Err(error) = copies.wait(last) {
                    self.fail_with(&error);
                }
                under_way.release(self);
            }
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
            for piece in lock(&self.uploads.under_way).pieces.iter_mut().filter_map(Option::take) {
                // SAFETY: no copy is under way.
                unsafe { piece.destroy(self) };
            }
            if let Special::Vulkan(vulkan) = &self.special
                && let Some(pinning) = &vulkan.pinning
            {
                // SAFETY: no copy is under way.
                unsafe { lock(pinning).destroy() };
            }
        }
    }

    impl Device {
        /// See [`Device::upload_parts`]; `None` if uploads do not go beside what is computed.
        pub(super) fn begin_upload(
            &self,
            to: &Buffer,
            parts: &[Part<'_>],
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
            let mut pinned = Vec::new();
            let mut keepers = Vec::new();
            for part in parts.iter().filter(|part| !part.bytes.is_empty()) {
                if let (Some(block), Some(regions)) = (part.block, shared.pinned(part)) {
                    pinned.extend(regions);
                    keepers.push(Arc::clone(block));
                    continue;
                }
                let mut at = part.at;
                for bytes in part.bytes.chunks(PIECE_BYTES) {
                    let (index, from) = under_way.take(shared, copies, bytes)?;
                    let size = (bytes.len() as u64).next_multiple_of(4);
                    let region = vk::BufferCopy { src_offset: 0, dst_offset: at, size };
                    let regions = [(from, region)];
                    under_way.begin(shared, copies, index, (target, &regions, after))?;
                    at += size;
                }
            }
            if !pinned.is_empty() {
                let index = under_way.next(shared, copies)?;
                under_way.begin(shared, copies, index, (target, &pinned, after))?;
            }
            let begun = shared.begun_copies();
            under_way.keepers.extend(keepers.into_iter().map(|keeper| (begun, keeper)));
            under_way.release(shared);
            Some(Upload(begun))
        }
    }

    impl Shared {
        /// Where bytes of a block are for the device; `None` if they must be taken from there first.
        fn pinned(&self, part: &Part<'_>) -> Option<Vec<Region>> {
            let Special::Vulkan(vulkan) = &self.special else { return None };
            let (pinning, block) = (vulkan.pinning.as_ref()?, part.block?);
            let begin =
                (part.bytes.as_ptr() as usize).checked_sub(block.bytes().as_ptr() as usize)?;
            let end = begin + part.bytes.len();
            if end > block.bytes().len() || !part.bytes.len().is_multiple_of(4) {
                return None;
            }
            let mut at = part.at;
            let found = lock(pinning).find(block, begin..end)?.into_iter();
            let regions = found.map(|(buffer, bytes)| {
                let size = bytes.end - bytes.start;
                let region = vk::BufferCopy { src_offset: bytes.start, dst_offset: at, size };
                at += size;
                (buffer, region)
            });
            Some(regions.collect())
        }
    }

    impl UnderWay {
        /// Commands that no copy uses, with the piece of that index: waits for the oldest copy if all are used.
        fn next(&mut self, shared: &Shared, copies: &CopyQueue) -> Option<usize> {
            let index = self.next;
            self.next = (index + 1) % COPIES;
            if let Err(error) = copies.wait(self.last_uses[index]) {
                shared.fail_with(&error);
                return None;
            }
            Some(index)
        }

        /// Takes bytes into memory that no copy uses; gives its index and handle.
        fn take(
            &mut self,
            shared: &Shared,
            copies: &CopyQueue,
            bytes: &[u8],
        ) -> Option<(usize, vk::Buffer)> {
            let index = self.next(shared, copies)?;
            if self.pieces[index].is_none() {
                let usage = BufferUses::MAP_READ | BufferUses::COPY_SRC;
                self.pieces[index] = Some(Mapped::new(shared, PIECE_BYTES as u64, usage)?);
            }
            let piece = self.pieces[index].as_mut()?;
            // SAFETY: the last copy that reads it is done.
            unsafe { piece.put(shared, 0, bytes) };
            Some((index, vulkan::handle(&*piece.raw)))
        }

        /// Begins a copy with the commands of an index.
        fn begin(
            &mut self,
            shared: &Shared,
            copies: &CopyQueue,
            index: usize,
            (to, regions, after): (vk::Buffer, &[Region], After),
        ) -> Option<()> {
            let number = shared.begun_copies() + 1;
            let copy = Copy { to, regions, after, number };
            shared.uploads.begun.store(number, Ordering::Release);
            // SAFETY: pieces and commands are not given to another copy before this one is done, blocks are
            // kept until then, and a buffer is destroyed only after all copies that were begun before it was
            // let go of; ranges were asserted.
            if let Err(error) = unsafe { copies.begin(index, &copy) } {
                shared.fail_with(&error);
                return None;
            }
            self.last_uses[index] = number;
            self.given.extend(copies.handover(&copy).into_iter().map(|barrier| (number, barrier)));
            Some(())
        }

        /// Lets go of blocks whose bytes are there.
        fn release(&mut self, shared: &Shared) {
            if !self.keepers.is_empty() {
                let arrived = shared.arrived();
                self.keepers.retain(|(number, _)| *number > arrived);
            }
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
            under_way.release(shared);
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
    use super::{Part, Upload};
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

        #[expect(clippy::unused_self, reason = "as where there is something")]
        pub(super) fn let_go(&self, _: usize) {}

        #[expect(unsafe_code, clippy::unused_self, reason = "as where there is something")]
        pub(in crate::device) unsafe fn end_uploads(&self) {}
    }

    impl Device {
        #[expect(clippy::unused_self, reason = "as where uploads go beside")]
        pub(super) fn begin_upload(&self, _: &Buffer, _: &[Part<'_>], _: Moment) -> Option<Upload> {
            None
        }
    }

    impl Recording {
        #[expect(clippy::unused_self, reason = "as where uploads go beside")]
        pub(super) fn after_upload(&mut self, _: &Shared, _: u64) {}
    }
}
