//! The queue of a device of Vulkan that copies beside the one that computes.

#![expect(unsafe_code, reason = "calls of Vulkan")]

use ash::vk;
use wgpu::hal;

/// Copies that can be under way: each needs commands of its own.
pub(super) const COPIES: usize = 8;

/// A queue that only copies.
pub(super) struct CopyQueue {
    device: ash::Device,
    queue: vk::Queue,
    /// Families of this queue and of the one that computes.
    families: [u32; 2],
    /// Has the number of the last copy that is done.
    pub(super) arrived: vk::Semaphore,
    pool: vk::CommandPool,
    commands: Vec<vk::CommandBuffer>,
}

/// A copy of host memory to a buffer.
pub(super) struct Copy<'a> {
    pub(super) to: vk::Buffer,
    /// Where bytes come from, and which ranges go where.
    pub(super) regions: &'a [(vk::Buffer, vk::BufferCopy)],
    /// The semaphore of the computing queue, and the number that it must have first.
    pub(super) after: Option<(vk::Semaphore, u64)>,
    /// The copy's own number.
    pub(super) number: u64,
}

/// What an error of Vulkan means.
pub(super) fn map(error: vk::Result) -> hal::DeviceError {
    match error {
        vk::Result::ERROR_OUT_OF_HOST_MEMORY | vk::Result::ERROR_OUT_OF_DEVICE_MEMORY => {
            hal::DeviceError::OutOfMemory
        }
        vk::Result::ERROR_DEVICE_LOST => hal::DeviceError::Lost,
        _ => hal::DeviceError::Unexpected,
    }
}

impl CopyQueue {
    /// The first queue of a family that the device was opened with; `families` are that and the one of the
    /// queue that computes.
    pub(super) fn new(device: ash::Device, families: [u32; 2]) -> Result<Self, vk::Result> {
        let [copy, _] = families;
        let mut kind =
            vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let semaphore = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        let flags = vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER;
        let pool = vk::CommandPoolCreateInfo::default().queue_family_index(copy).flags(flags);
        // SAFETY: the device has a queue of the family and knows timelines: it is opened with 1.2 or their
        // extension, or these calls fail.
        unsafe {
            let queue = device.get_device_queue(copy, 0);
            let arrived = device.create_semaphore(&semaphore, None)?;
            let pool = device.create_command_pool(&pool, None).inspect_err(|_| {
                device.destroy_semaphore(arrived, None);
            })?;
            let commands = vk::CommandBufferAllocateInfo::default()
                .command_pool(pool)
                .command_buffer_count(COPIES as u32);
            let commands = device.allocate_command_buffers(&commands).inspect_err(|_| {
                device.destroy_command_pool(pool, None);
                device.destroy_semaphore(arrived, None);
            })?;
            Ok(Self { device, queue, families, arrived, pool, commands })
        }
    }

    /// The number of the last copy that is done.
    pub(super) fn done(&self) -> Result<u64, hal::DeviceError> {
        // SAFETY: the semaphore is this device's.
        unsafe { self.device.get_semaphore_counter_value(self.arrived) }.map_err(map)
    }

    /// Waits until a copy is done.
    pub(super) fn wait(&self, number: u64) -> Result<(), hal::DeviceError> {
        let (semaphores, values) = ([self.arrived], [number]);
        let wait = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: the semaphore is this device's, and the copy was handed over.
        unsafe { self.device.wait_semaphores(&wait, u64::MAX) }.map_err(map)
    }

    /// How what is copied goes from this queue to the one that computes: recorded on both.
    pub(super) fn handover(&self, copy: &Copy<'_>) -> Vec<vk::BufferMemoryBarrier<'static>> {
        let [from, to] = match self.families {
            [copy, compute] if copy == compute => [vk::QUEUE_FAMILY_IGNORED; 2],
            families => families,
        };
        let read = vk::AccessFlags::SHADER_READ | vk::AccessFlags::TRANSFER_READ;
        let written = vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE;
        let barrier = vk::BufferMemoryBarrier::default()
            .src_queue_family_index(from)
            .dst_queue_family_index(to)
            .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(read | written)
            .buffer(copy.to);
        let ranges = copy.regions.iter().map(|(_, region)| (region.dst_offset, region.size));
        ranges.map(|(at, size)| barrier.offset(at).size(size)).collect()
    }

    /// Begins a copy, with the commands of an index whose last copy is done.
    ///
    /// # Safety
    /// The buffers and the memory of the host live until the copy is done, and the ranges are theirs.
    pub(super) unsafe fn begin(
        &self,
        index: usize,
        copy: &Copy<'_>,
    ) -> Result<(), hal::DeviceError> {
        let commands = self.commands[index];
        let once = vk::CommandBufferBeginInfo::default()
            .flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        let (waits, stages, wait_for) = match copy.after {
            Some((semaphore, number)) => {
                (vec![semaphore], vec![vk::PipelineStageFlags::TRANSFER], vec![number])
            }
            None => (vec![], vec![], vec![]),
        };
        let (signals, numbers) = ([self.arrived], [copy.number]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&wait_for)
            .signal_semaphore_values(&numbers);
        let buffers = [commands];
        let submission = vk::SubmitInfo::default()
            .wait_semaphores(&waits)
            .wait_dst_stage_mask(&stages)
            .command_buffers(&buffers)
            .signal_semaphores(&signals)
            .push_next(&mut timeline);
        // SAFETY: the commands are not in use; the caller keeps what they name.
        unsafe {
            self.device.begin_command_buffer(commands, &once).map_err(map)?;
            for (from, region) in copy.regions {
                self.device.cmd_copy_buffer(commands, *from, copy.to, &[*region]);
            }
            self.device.cmd_pipeline_barrier(
                commands,
                vk::PipelineStageFlags::TRANSFER,
                vk::PipelineStageFlags::BOTTOM_OF_PIPE,
                vk::DependencyFlags::empty(),
                &[],
                &self.handover(copy),
                &[],
            );
            self.device.end_command_buffer(commands).map_err(map)?;
            self.device.queue_submit(self.queue, &[submission], vk::Fence::null()).map_err(map)
        }
    }

    /// Waits for all copies and destroys what belongs to the queue.
    ///
    /// # Safety
    /// Nothing is begun any more.
    pub(super) unsafe fn destroy(&self) {
        // SAFETY: the handles are this device's, and after the wait not in use.
        unsafe {
            let _ = self.device.queue_wait_idle(self.queue);
            self.device.destroy_command_pool(self.pool, None);
            self.device.destroy_semaphore(self.arrived, None);
        }
    }
}
