//! What is done with Vulkan itself.

#![expect(unsafe_code, reason = "calls of Vulkan")]

use std::sync::Mutex;

use ash::vk;
use wgpu::hal;

use crate::device::copy_queue::{self, CopyQueue};
use crate::device::open::{Opened, Special};
use crate::device::pinned::{self, Pinning};

/// The family of queues that `wgpu` computes with.
const COMPUTE_FAMILY: u32 = 0;

/// A device of Vulkan.
pub(super) struct Vulkan {
    device: ash::Device,
    /// Copies beside what is computed, where the adapter has a queue for it.
    pub(super) copies: Option<CopyQueue>,
    /// Lets that queue reach memory of the host, where the driver can.
    pub(super) pinning: Option<Mutex<Pinning>>,
}

/// Opens an adapter of Vulkan.
pub(super) fn open(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Option<Result<Opened, hal::DeviceError>> {
    // SAFETY: the adapter is only asked to open a device, and not destroyed.
    let adapter = unsafe { adapter.as_hal::<hal::api::Vulkan>() }?;
    // Where this crate tests itself, copies go through the queue that computes, if there is no other.
    let family = copy_family(&adapter).or(cfg!(test).then_some(COMPUTE_FAMILY));
    let pins = adapter.physical_device_capabilities().supports_extension(pinned::EXTENSION);
    let hints = wgpu::MemoryHints::MemoryUsage;
    let callback = Box::new(move |asked: hal::vulkan::CreateDeviceCallbackArgs<'_, '_, '_>| {
        if let Some(family) = family.filter(|family| *family != COMPUTE_FAMILY) {
            let queue = vk::DeviceQueueCreateInfo::default().queue_family_index(family);
            asked.queue_create_infos.push(queue.queue_priorities(&[1.0]));
        }
        if pins && !asked.extensions.contains(&pinned::EXTENSION) {
            asked.extensions.push(pinned::EXTENSION);
        }
    });
    // SAFETY: the adapter offers the features, and the limits are its own; what is added it has.
    let opened = unsafe { adapter.open_with_callback(features, limits, &hints, Some(callback)) };
    Some(opened.map(|opened| {
        let device = opened.device.raw_device().clone();
        let families = family.map(|copy| [copy, opened.device.queue_family_index()]);
        let copies = families.and_then(|families| CopyQueue::new(device.clone(), families).ok());
        let pinning = pins.then(|| Mutex::new(Pinning::new(&adapter, &device)));
        let special = Special::Vulkan(Box::new(Vulkan { device, copies, pinning }));
        Opened { device: Box::new(opened.device), queue: Box::new(opened.queue), special }
    }))
}

/// A family of queues that does nothing but copy, which runs beside the one that computes.
fn copy_family(adapter: &hal::vulkan::Adapter) -> Option<u32> {
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device is one of this instance's, which `adapter` keeps alive.
    let families = unsafe {
        instance.get_physical_device_queue_family_properties(adapter.raw_physical_device())
    };
    let others = vk::QueueFlags::GRAPHICS | vk::QueueFlags::COMPUTE;
    let copies = |family: &vk::QueueFamilyProperties| {
        family.queue_flags.contains(vk::QueueFlags::TRANSFER)
            && !family.queue_flags.intersects(others)
    };
    let mut families = families.iter().zip(0..);
    families
        .find(|(family, index)| *index != COMPUTE_FAMILY && copies(family))
        .map(|(_, index)| index)
}

/// The semaphore that has the number of the last submission that is done; `None` for drivers without such.
pub(super) fn semaphore(fence: &dyn hal::DynFence) -> Option<vk::Semaphore> {
    match fence.as_any().downcast_ref()? {
        hal::vulkan::Fence::TimelineSemaphore(semaphore) => Some(*semaphore),
        hal::vulkan::Fence::FencePool(_) => None,
    }
}

/// The handle of a buffer.
pub(super) fn handle(buffer: &dyn hal::DynBuffer) -> vk::Buffer {
    let buffer = buffer.as_any().downcast_ref::<hal::vulkan::Buffer>();
    // SAFETY: the handle is used, and not destroyed.
    unsafe { buffer.expect("a buffer of this device").raw_handle() }
}

/// What an encoder records.
pub(super) fn commands(encoder: &dyn hal::DynCommandEncoder) -> vk::CommandBuffer {
    let encoder = encoder.as_any().downcast_ref::<hal::vulkan::CommandEncoder>();
    // SAFETY: the handle is used, and not destroyed.
    unsafe { encoder.expect("an encoder of this device").raw_handle() }
}

impl Vulkan {
    /// Makes all that was recorded before be done and seen by all that is recorded after, on the device; for
    /// what the host reads when all is done, `host` is true.
    pub(super) fn barrier(&self, encoder: &dyn hal::DynCommandEncoder, host: bool) {
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
                commands(encoder),
                work,
                stages,
                vk::DependencyFlags::empty(),
                &[barrier],
                &[],
                &[],
            );
        }
    }

    /// Hands commands over: the computing queue begins them after `before`, if there is any, and gives the
    /// semaphore the number when all of it until then is done. `wgpu` would make submissions wait for each
    /// other as a whole; here they only do where a barrier says so.
    ///
    /// # Safety
    /// The commands are complete, of this device, and kept until they are done.
    pub(super) unsafe fn submit(
        &self,
        queue: &dyn hal::DynQueue,
        commands: vk::CommandBuffer,
        before: Option<(vk::Semaphore, u64)>,
        (semaphore, number): (vk::Semaphore, u64),
    ) -> Result<(), hal::DeviceError> {
        let queue = queue.as_any().downcast_ref::<hal::vulkan::Queue>();
        let queue = queue.expect("the queue of this device").as_raw();
        let work = [vk::PipelineStageFlags::COMPUTE_SHADER | vk::PipelineStageFlags::TRANSFER];
        let (waits, wait_for) = before.unzip();
        let (signals, numbers, commands) = ([semaphore], [number], [commands]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(wait_for.as_slice())
            .signal_semaphore_values(&numbers);
        let submission = vk::SubmitInfo::default()
            .wait_semaphores(waits.as_slice())
            .wait_dst_stage_mask(&work[..waits.iter().len()])
            .command_buffers(&commands)
            .signal_semaphores(&signals)
            .push_next(&mut timeline);
        // SAFETY: the caller's promise; whoever calls has the recording, and nobody else submits.
        unsafe { self.device.queue_submit(queue, &[submission], vk::Fence::null()) }
            .map_err(copy_queue::map)
    }

    /// Records that what the copy queue gave up is the computing queue's.
    pub(super) fn acquire(
        &self,
        encoder: &dyn hal::DynCommandEncoder,
        given: &[vk::BufferMemoryBarrier<'_>],
    ) {
        // SAFETY: the encoder is recording, outside of render passes; the buffers live until it is done.
        unsafe {
            self.device.cmd_pipeline_barrier(
                commands(encoder),
                vk::PipelineStageFlags::TOP_OF_PIPE,
                vk::PipelineStageFlags::COMPUTE_SHADER | vk::PipelineStageFlags::TRANSFER,
                vk::DependencyFlags::empty(),
                &[],
                given,
                &[],
            );
        }
    }
}
