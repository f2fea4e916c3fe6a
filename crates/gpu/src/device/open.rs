//! Opening a device below `wgpu`: of the same adapters, with command buffers, fences and memory in our
//! hands. `wgpu` tracks every buffer and makes a meeting of host and device three times as long.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use wgpu::hal::{self, Adapter as _};

/// A device and its queue.
pub(super) struct Opened {
    pub(super) device: Box<dyn hal::DynDevice>,
    pub(super) queue: Box<dyn hal::DynQueue>,
    /// What an interface of its own kind needs besides.
    pub(super) special: Special,
}

/// In what interfaces differ.
pub(super) enum Special {
    /// Barriers are ours, and order all memory at once.
    #[cfg(any(target_os = "linux", windows))]
    Vulkan(Box<super::vulkan::Vulkan>),
    /// Barriers are ours, and change the states of buffers.
    #[cfg(windows)]
    Dx12,
    /// The driver orders what depends on each other.
    #[cfg_attr(any(target_os = "linux", windows), expect(dead_code, reason = "Metal's"))]
    Ordered,
}

impl Special {
    /// Records that the host sees what was recorded before when that is done.
    #[cfg_attr(
        not(any(target_os = "linux", windows)),
        expect(unused_variables, reason = "only Vulkan has to be told")
    )]
    pub(super) fn show_host(&self, encoder: &dyn hal::DynCommandEncoder) {
        match self {
            #[cfg(any(target_os = "linux", windows))]
            Self::Vulkan(vulkan) => vulkan.barrier(encoder, true),
            _ => {}
        }
    }
}

/// Opens an adapter. `None` if there is no way below `wgpu` for its interface.
pub(super) fn open(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Option<Result<Opened, hal::DeviceError>> {
    match adapter.get_info().backend {
        #[cfg(any(target_os = "linux", windows))]
        wgpu::Backend::Vulkan => super::vulkan::open(adapter, features, limits),
        #[cfg(windows)]
        wgpu::Backend::Dx12 => {
            open_plainly::<hal::api::Dx12>(adapter, features, limits, Special::Dx12)
        }
        #[cfg(target_vendor = "apple")]
        wgpu::Backend::Metal => {
            open_plainly::<hal::api::Metal>(adapter, features, limits, Special::Ordered)
        }
        _ => None,
    }
}

#[cfg_attr(
    not(any(windows, target_vendor = "apple")),
    expect(dead_code, reason = "Vulkan has a way of its own")
)]
fn open_plainly<A: hal::Api>(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
    special: Special,
) -> Option<Result<Opened, hal::DeviceError>> {
    // SAFETY: the adapter is only asked to open a device, and not destroyed.
    let adapter = unsafe { adapter.as_hal::<A>() }?;
    // SAFETY: the adapter offers the features, and the limits are its own.
    let opened = unsafe { adapter.open(features, limits, &wgpu::MemoryHints::MemoryUsage) };
    Some(opened.map(|opened| {
        let hal::DynOpenDevice { device, queue } = opened.into();
        Opened { device, queue, special }
    }))
}
