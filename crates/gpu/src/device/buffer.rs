//! Memory of a device.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::sync::Arc;

use compute::memory::Pages;
use wgpu::BufferUses;
use wgpu::hal;

use crate::device::{Device, Moment, Shared, lock};

/// Memory of a device.
pub(crate) struct Buffer {
    /// `None` after a failure: the device then computes nothing any more.
    pub(super) raw: Option<Box<dyn hal::DynBuffer>>,
    pub(super) id: u64,
    bytes: u64,
    /// When it was cleared.
    pub(super) cleared: Moment,
    /// The host's memory that it is, if it is not the device's own.
    pages: Option<Pages>,
    owner: Arc<Shared>,
}

/// What was let go of, and is destroyed when the device is done with it.
pub(super) enum Grave {
    Buffer(u64, Box<dyn hal::DynBuffer>, Option<Pages>),
    Pipeline(u64, Box<dyn hal::DynComputePipeline>),
    Group(Box<dyn hal::DynBindGroup>),
}

impl Grave {
    /// What bind groups may still name.
    pub(super) fn id(&self) -> Option<u64> {
        match self {
            Self::Buffer(id, ..) | Self::Pipeline(id, _) => Some(*id),
            Self::Group(_) => None,
        }
    }

    /// Destroys what is in it.
    ///
    /// # Safety
    /// The device has done all work that uses it.
    pub(super) unsafe fn destroy(self, device: &dyn hal::DynDevice) {
        // SAFETY: the caller says that nothing uses them, and they are owned.
        unsafe {
            match self {
                Self::Buffer(_, buffer, pages) => {
                    device.destroy_buffer(buffer);
                    drop(pages);
                }
                Self::Pipeline(_, pipeline) => device.destroy_compute_pipeline(pipeline),
                Self::Group(group) => device.destroy_bind_group(group),
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            lock(&self.owner.graves).push(Grave::Buffer(self.id, raw, self.pages.take()));
        }
    }
}

impl Buffer {
    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

impl Device {
    /// Memory of so many bytes, which are zero.
    pub(crate) fn buffer(&self, bytes: u64) -> Buffer {
        let bytes = bytes.next_multiple_of(16).max(16);
        let usage = BufferUses::STORAGE_READ_ONLY
            | BufferUses::STORAGE_READ_WRITE
            | BufferUses::COPY_SRC
            | BufferUses::COPY_DST;
        let raw = if bytes <= self.shared.limits.max_buffer_size {
            self.shared.raw_buffer(bytes, usage)
        } else {
            let most = self.shared.limits.max_buffer_size;
            self.fail(format_args!("a buffer of {bytes} bytes is more than its {most}"));
            None
        };
        let mut recording = lock(&self.shared.recording);
        let id = recording.new_id();
        let owner = Arc::clone(&self.shared);
        let mut buffer = Buffer { raw, id, bytes, cleared: Moment::default(), pages: None, owner };
        recording.clear(&self.shared, &buffer);
        buffer.cleared = recording.moment();
        buffer
    }

    /// Memory of the host, kept for as long as the device may read it.
    pub(super) fn foreign_buffer(
        &self,
        raw: Box<dyn hal::DynBuffer>,
        bytes: u64,
        pages: Pages,
    ) -> Buffer {
        let id = lock(&self.shared.recording).new_id();
        let (pages, owner) = (Some(pages), Arc::clone(&self.shared));
        Buffer { raw: Some(raw), id, bytes, cleared: Moment::default(), pages, owner }
    }

    /// Memory with these contents.
    pub(crate) fn buffer_with(&self, bytes: &[u8]) -> Buffer {
        let buffer = self.buffer(bytes.len() as u64);
        self.write(&buffer, 0, bytes);
        buffer
    }
}

impl Shared {
    /// Memory for uses; `None` if the device has none left, or has failed.
    pub(super) fn raw_buffer(
        &self,
        size: u64,
        usage: BufferUses,
    ) -> Option<Box<dyn hal::DynBuffer>> {
        let memory_flags = hal::MemoryFlags::empty();
        let descriptor = hal::BufferDescriptor { label: None, size, usage, memory_flags };
        // SAFETY: the size is not zero and no more than the device allows.
        let made = unsafe { self.device.create_buffer(&descriptor) };
        made.map_err(|error| self.fail_with(&error)).ok()
    }
}
