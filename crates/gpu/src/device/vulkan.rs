//! What is done with Vulkan itself.

#![expect(unsafe_code, reason = "calls of Vulkan")]

use ash::vk;
use wgpu::hal;

use crate::device::open::{Opened, Special};

/// A device of Vulkan.
pub(super) struct Vulkan {
    device: ash::Device,
}

/// Opens an adapter of Vulkan.
pub(super) fn open(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Option<Result<Opened, hal::DeviceError>> {
    // SAFETY: the adapter is only asked to open a device, and not destroyed.
    let adapter = unsafe { adapter.as_hal::<hal::api::Vulkan>() }?;
    let hints = wgpu::MemoryHints::MemoryUsage;
    // SAFETY: the adapter offers the features, and the limits are its own.
    let opened = unsafe { adapter.open_with_callback(features, limits, &hints, None) };
    Some(opened.map(|opened| {
        let special = Special::Vulkan(Vulkan { device: opened.device.raw_device().clone() });
        Opened { device: Box::new(opened.device), queue: Box::new(opened.queue), special }
    }))
}

impl Vulkan {
    /// Makes all that was recorded before be done and seen by all that is recorded after, on the device; for
    /// what the host reads when all is done, `host` is true.
    pub(super) fn barrier(&self, encoder: &mut dyn hal::DynCommandEncoder, host: bool) {
        let encoder = encoder.as_any().downcast_ref::<hal::vulkan::CommandEncoder>();
        let encoder = encoder.expect("an encoder of this device");
        let work = vk::PipelineStageFlags::COMPUTE_SHADER | vk::PipelineStageFlags::TRANSFER;
        let written = vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE;
        let (stages, access) = if host {
            (vk::PipelineStageFlags::HOST, vk::AccessFlags::HOST_READ)
        } else {
            let read = vk::AccessFlags::SHADER_READ | vk::AccessFlags::TRANSFER_READ;
            (work, read | written)
        };
        let barrier = vk::MemoryBarrier::default().src_access_mask(written).dst_access_mask(access);
        // SAFETY: the encoder is recording, outside of render passes, on a queue that can do both stages.
        unsafe {
            self.device.cmd_pipeline_barrier(
                encoder.raw_handle(),
                work,
                stages,
                vk::DependencyFlags::empty(),
                &[barrier],
                &[],
                &[],
            );
        }
    }
}
