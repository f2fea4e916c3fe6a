//! Memory of the host that kernels read where it lies, on devices whose memory is the host's.
//!
//! Vulkan imports it (`VK_EXT_external_memory_host`), Metal makes a buffer of it without a copy. DX12 has no
//! such way for memory that it did not allocate as a heap of its own, so there it is copied.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::ops::Range;

use compute::memory::Pages;
use wgpu::hal;

#[cfg(any(target_os = "linux", windows))]
use crate::device::lock;
#[cfg(any(target_os = "linux", windows))]
use crate::device::open::Special;
use crate::device::{Buffer, Device, Shared};

impl Device {
    /// Whether kernels can read memory of the host where it lies, or why not.
    pub fn imports(&self) -> Result<(), String> {
        self.shared.import_alignment().map(|_| ())
    }

    /// A buffer of at least these bytes of an arena, with the byte of the arena at which it begins; or why the
    /// device cannot read them there. What is written there while the device reads is up to the caller: see
    /// [`Device::moment`].
    pub(crate) fn import(
        &self,
        pages: Pages,
        bytes: Range<usize>,
    ) -> Result<(Buffer, usize), String> {
        let alignment = self.shared.import_alignment()?;
        let all = pages.range();
        let begin = bytes.start - bytes.start % alignment;
        let end = bytes.end.next_multiple_of(alignment).min(all.len());
        let (start, len) = (all.start + begin, end - begin);
        if !start.is_multiple_of(alignment) || !len.is_multiple_of(alignment) {
            return Err(format!("it takes memory in pieces of {alignment} bytes only"));
        }
        let most = self.shared.limits.max_buffer_size;
        if len as u64 > most {
            return Err(format!("{len} bytes are more than the {most} of its largest buffer"));
        }
        // SAFETY: the memory is mapped and aligned, and the buffer keeps it.
        let raw = unsafe { self.shared.import(start, len) }?;
        Ok((self.foreign_buffer(raw, len as u64, pages), begin))
    }
}

#[cfg(any(target_os = "linux", windows))]
impl Shared {
    /// Where imported memory must begin and end.
    fn import_alignment(&self) -> Result<usize, String> {
        match &self.special {
            Special::Vulkan(vulkan) => match &vulkan.pinning {
                Some(pinning) => Ok(lock(pinning).alignment as usize),
                None => Err("its driver lacks VK_EXT_external_memory_host".to_owned()),
            },
            #[cfg(windows)]
            Special::Dx12 => Err("DX12 reads only memory that it allocated".to_owned()),
            Special::Ordered => Err("its interface has no way to".to_owned()),
        }
    }

    /// # Safety
    /// The memory is mapped for as long as the buffer is there.
    unsafe fn import(&self, start: usize, len: usize) -> Result<Box<dyn hal::DynBuffer>, String> {
        let Special::Vulkan(vulkan) = &self.special else {
            return Err("its interface has no way to".to_owned());
        };
        let pinning = vulkan.pinning.as_ref().ok_or("its driver has no way to")?;
        let window = lock(pinning).import((start, len)).map_err(|error| error.to_string())?;
        // SAFETY: both are new, and nobody else has them; the buffer is the whole of the memory.
        let buffer = unsafe {
            let (memory, len) = (window.memory, len as u64);
            hal::vulkan::Buffer::from_raw_managed(window.buffer, memory, 0, len)
        };
        Ok(Box::new(buffer))
    }
}

#[cfg(target_vendor = "apple")]
impl Shared {
    /// Where imported memory must begin and end.
    fn import_alignment(&self) -> Result<usize, String> {
        // Whole pages.
        Ok(if cfg!(target_arch = "aarch64") { 16 << 10 } else { 4 << 10 })
    }

    /// # Safety
    /// The memory is mapped for as long as the buffer is there.
    unsafe fn import(&self, start: usize, len: usize) -> Result<Box<dyn hal::DynBuffer>, String> {
        use objc2_metal::{MTLDevice, MTLResourceOptions};

        let device = self.device.as_any().downcast_ref::<hal::metal::Device>();
        let device = device.ok_or("its interface has no way to")?;
        let start = std::ptr::with_exposed_provenance_mut::<std::ffi::c_void>(start);
        let start = std::ptr::NonNull::new(start).ok_or("there is no memory")?;
        let options = MTLResourceOptions::StorageModeShared;
        // SAFETY: whole pages, as the caller says; nobody is told when they are let go of, because whoever has
        // the buffer keeps them.
        unsafe {
            let raw = device
                .raw_device()
                .newBufferWithBytesNoCopy_length_options_deallocator(start, len, options, None)
                .ok_or("Metal refuses the memory")?;
            Ok(Box::new(hal::metal::Device::buffer_from_raw(raw, len as u64)))
        }
    }
}

#[cfg(not(any(target_os = "linux", windows, target_vendor = "apple")))]
impl Shared {
    fn import_alignment(&self) -> Result<usize, String> {
        Err("its interface has no way to".to_owned())
    }

    /// # Safety
    /// None is needed.
    unsafe fn import(&self, _: usize, _: usize) -> Result<Box<dyn hal::DynBuffer>, String> {
        Err("its interface has no way to".to_owned())
    }
}
