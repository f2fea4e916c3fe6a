//! Memory of the host that the device copies from where it lies.

#![expect(unsafe_code, reason = "calls of Vulkan")]

use std::collections::HashMap;
use std::ops::Range;

use ash::{ext, vk};
use compute::memory::{Block, Pages};
use wgpu::hal;

/// Bytes that are made known to the device at a time: it keeps them where they are from then on, which takes
/// some 0.1 ms for each MiB.
const WINDOW_BYTES: usize = if cfg!(test) { 64 << 10 } else { 64 << 20 };

/// What a device needs to reach memory of the host.
pub(super) struct Pinning {
    device: ash::Device,
    functions: ext::external_memory_host::Device,
    /// Where memory must begin and end.
    pub(super) alignment: u64,
    /// The types of memory, as bits, in which both see what the other wrote without being told.
    coherent: u32,
    /// By where it begins, memory of which at least a part is known to the device.
    arenas: HashMap<usize, Arena>,
}

/// Memory of the host, in windows from its beginning.
struct Arena {
    windows: Vec<Option<Window>>,
    /// Keeps the memory.
    pages: Pages,
}

/// A part of it that the device knows.
pub(super) struct Window {
    pub(super) buffer: vk::Buffer,
    pub(super) memory: vk::DeviceMemory,
}

/// What is asked for when the device is opened.
pub(super) const EXTENSION: &std::ffi::CStr = ext::external_memory_host::NAME;

impl Pinning {
    /// For a device that was opened with [`EXTENSION`].
    pub(super) fn new(adapter: &hal::vulkan::Adapter, device: &ash::Device) -> Self {
        let instance = adapter.shared_instance().raw_instance();
        let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut host);
        // SAFETY: the physical device is one of this instance's and has the extension.
        let memory = unsafe {
            let physical = adapter.raw_physical_device();
            instance.get_physical_device_properties2(physical, &mut properties);
            instance.get_physical_device_memory_properties(physical)
        };
        let types = memory.memory_types_as_slice().iter().zip(0..);
        let is_coherent = |kind: &vk::MemoryType| {
            kind.property_flags.contains(vk::MemoryPropertyFlags::HOST_COHERENT)
        };
        let coherent =
            types.filter(|(kind, _)| is_coherent(kind)).map(|(_, index)| 1 << index).sum();
        let alignment = host.min_imported_host_pointer_alignment;
        let functions = ext::external_memory_host::Device::new(instance, device);
        Self { device: device.clone(), functions, alignment, coherent, arenas: HashMap::new() }
    }

    /// Where bytes of a block are for the device: buffers with the ranges of them, in order. `None` if the
    /// driver refuses.
    pub(super) fn find(
        &mut self,
        block: &Block,
        bytes: Range<usize>,
    ) -> Option<Vec<(vk::Buffer, Range<u64>)>> {
        let pages = block.pages();
        let all = pages.range();
        let begin = block.bytes().as_ptr() as usize - all.start;
        let bytes = begin + bytes.start..begin + bytes.end;
        let n_windows = all.len().div_ceil(WINDOW_BYTES);
        let windows = || (0..n_windows).map(|_| None).collect();
        let arena = self.arenas.entry(all.start);
        let arena = arena.or_insert_with(|| Arena { windows: windows(), pages });
        let mut found = Vec::new();
        for index in bytes.start / WINDOW_BYTES..bytes.end.div_ceil(WINDOW_BYTES) {
            let at = index * WINDOW_BYTES;
            let len = WINDOW_BYTES.min(all.len() - at);
            if arena.windows[index].is_none() {
                let place = (arena.pages.range().start + at, len);
                let usage = vk::BufferUsageFlags::TRANSFER_SRC;
                let how = (&self.functions, self.alignment, u32::MAX);
                arena.windows[index] = Some(import(&self.device, how, place, usage).ok()?);
            }
            let window = arena.windows[index].as_ref()?;
            let part = bytes.start.max(at) - at..bytes.end.min(at + len) - at;
            found.push((window.buffer, part.start as u64..part.end as u64));
        }
        Some(found)
    }

    /// Memory of the host as a buffer that kernels read. Whoever asks keeps it and lets go of the window.
    pub(super) fn import(&self, place: (usize, usize)) -> Result<Window, vk::Result> {
        let how = (&self.functions, self.alignment, self.coherent);
        import(&self.device, how, place, vk::BufferUsageFlags::STORAGE_BUFFER)
    }

    /// Lets the device forget all that it copies from.
    ///
    /// # Safety
    /// No copy from it is under way.
    pub(super) unsafe fn destroy(&mut self) {
        for arena in self.arenas.drain().map(|(_, arena)| arena) {
            for Window { buffer, memory } in arena.windows.into_iter().flatten() {
                // SAFETY: the handles are this device's, and the caller says that nothing uses them.
                unsafe {
                    self.device.destroy_buffer(buffer, None);
                    self.device.free_memory(memory, None);
                }
            }
        }
    }
}

/// Makes memory known to a device, as a buffer: with the functions of the extension, an alignment, and the types
/// of memory that will do.
fn import(
    device: &ash::Device,
    (functions, alignment, types): (&ext::external_memory_host::Device, u64, u32),
    (start, len): (usize, usize),
    usage: vk::BufferUsageFlags,
) -> Result<Window, vk::Result> {
    if !(start as u64).is_multiple_of(alignment) || !(len as u64).is_multiple_of(alignment) {
        return Err(vk::Result::ERROR_INVALID_EXTERNAL_HANDLE);
    }
    let kind = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
    let pointer = std::ptr::with_exposed_provenance_mut(start);
    let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
    let description =
        vk::BufferCreateInfo::default().size(len as u64).usage(usage).push_next(&mut external);
    let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
    // SAFETY: the memory is mapped, aligned, and kept by whoever asks for as long as the window is there; the
    // device only reads it.
    unsafe {
        let ask = functions.fp().get_memory_host_pointer_properties_ext;
        ask(device.handle(), kind, pointer, &mut properties).result()?;
        let buffer = device.create_buffer(&description, None)?;
        let needs = device.get_buffer_memory_requirements(buffer);
        let types = types & needs.memory_type_bits & properties.memory_type_bits;
        if types == 0 || needs.size > len as u64 {
            device.destroy_buffer(buffer, None);
            return Err(vk::Result::ERROR_INVALID_EXTERNAL_HANDLE);
        }
        let mut import =
            vk::ImportMemoryHostPointerInfoEXT::default().handle_type(kind).host_pointer(pointer);
        let description = vk::MemoryAllocateInfo::default()
            .allocation_size(len as u64)
            .memory_type_index(types.trailing_zeros())
            .push_next(&mut import);
        let memory = device.allocate_memory(&description, None);
        let memory = memory.inspect_err(|_| device.destroy_buffer(buffer, None))?;
        device.bind_buffer_memory(buffer, memory, 0).inspect_err(|_| {
            device.destroy_buffer(buffer, None);
            device.free_memory(memory, None);
        })?;
        Ok(Window { buffer, memory })
    }
}
