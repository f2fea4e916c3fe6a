//! How much memory an adapter has, which `wgpu` does not tell.

use crate::device::adapter::Adapter;

/// Vulkan's flag of a heap that is near the device.
#[cfg(any(target_os = "linux", windows))]
const DEVICE_LOCAL: u32 = 1;

impl Adapter {
    /// Bytes of the largest heap of memory near the device: of its own, or of the host's where they share
    /// it. `None` where the interface does not tell, which is all but Vulkan.
    pub fn memory_bytes(&self) -> Option<u64> {
        #[cfg(any(target_os = "linux", windows))]
        {
            // SAFETY: the handle is only asked, and not destroyed.
            #[expect(unsafe_code, reason = "reaches the interface below wgpu")]
            let adapter = unsafe { self.raw().as_hal::<wgpu::hal::api::Vulkan>() }?;
            let instance = adapter.shared_instance().raw_instance();
            // SAFETY: the physical device is one of this instance's, which `adapter` keeps alive.
            #[expect(unsafe_code, reason = "a call of Vulkan")]
            let properties = unsafe {
                instance.get_physical_device_memory_properties(adapter.raw_physical_device())
            };
            let heaps = properties.memory_heaps_as_slice().iter();
            let near = heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
            near.map(|heap| heap.size).max()
        }
        #[cfg(not(any(target_os = "linux", windows)))]
        None
    }
}
