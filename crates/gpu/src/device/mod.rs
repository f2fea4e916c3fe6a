//! A device: its adapter, its memory, and the recording of work for it.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]
#![cfg_attr(
    not(any(target_os = "linux", windows)),
    expect(dead_code, reason = "barriers and uploads of its own are Vulkan's")
)]

mod adapter;
mod adapter_memory;
mod buffer;
mod clock;
mod compile;
#[cfg(any(target_os = "linux", windows))]
mod copy_queue;
mod error;
mod hazards;
mod import;
mod kernel_cache;
mod mapped;
mod meeting;
mod open;
#[cfg(any(target_os = "linux", windows))]
mod pinned;
mod reading;
mod recording;
#[cfg(test)]
mod tests;
mod upload;
#[cfg(any(target_os = "linux", windows))]
mod vulkan;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use compute::Handoffs;
use trace::Recorder;
use wgpu::BufferUses;
use wgpu::hal;

pub use adapter::{Adapter, adapters};
pub(crate) use buffer::Buffer;
use buffer::Grave;
use clock::Clock;
pub(crate) use compile::Kernel;
use compile::Layout;
pub use error::GpuError;
use kernel_cache::KernelCache;
pub(crate) use kernel_cache::replace_file;
use mapped::Readback;
use open::{Opened, Special};
use reading::Landing;
pub(crate) use reading::Reading;
use recording::Recording;
use upload::Uploads;
pub(crate) use upload::{Part, Upload};

/// Bytes that a kernel can be told besides its bindings; what every desktop API offers.
pub(crate) const IMMEDIATE_BYTES: u32 = 128;
/// Most bindings of a kernel.
const MAX_BINDINGS: usize = 11;
/// How long a meeting is waited for by asking again and again before the thread sleeps: being woken takes
/// longer than most work between two meetings of a token.
const SPIN: Duration = Duration::from_micros(200);
/// What kernels with cooperative matrices need.
const MATRICES: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Whether sums of eight lanes may go through subgroup operations where there are some.
    pub subgroups: bool,
    /// Whether kernels check each access: for tests.
    pub checked: bool,
    /// Whether kernels use cooperative matrices and floats of 16 bits: for a baseline.
    pub matrices: bool,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { subgroups: true, checked: cfg!(debug_assertions), matrices: false }
    }
}

/// An open device. Clones are handles on the same one.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

/// All that was recorded until a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

/// What handles share, and buffers and kernels keep alive.
struct Shared {
    name: String,
    api: String,
    driver: String,
    is_software: bool,
    shares_memory: bool,
    limits: wgpu::Limits,
    memory_bytes: Option<u64>,
    /// Whether eight neighbouring lanes can be added by subgroup operations.
    subgroups: bool,
    checked: bool,
    special: Special,
    layouts: Mutex<Vec<Arc<Layout>>>,
    kernel_cache: OnceLock<KernelCache>,
    readback: Mutex<Readback>,
    landing: Mutex<Landing>,
    recording: Mutex<Recording>,
    uploads: Uploads,
    /// What was let go of since the last submission.
    graves: Mutex<Vec<Grave>>,
    /// The first thing that went wrong on the device.
    failure: Mutex<Option<String>>,
    has_failed: AtomicBool,
    /// Has the number of the last submission that is done. `None` only while it is destroyed.
    fence: Option<Box<dyn hal::DynFence>>,
    /// The last submission that is known to be done.
    done: AtomicU64,
    /// How long a meeting is waited for without sleeping, in nanoseconds.
    spin_ns: AtomicU64,
    // The device goes before the queue, which keeps what they share.
    device: Box<dyn hal::DynDevice>,
    queue: Box<dyn hal::DynQueue>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.shared.name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Opens an adapter.
    pub fn open(adapter: &Adapter, options: DeviceOptions) -> Result<Self, GpuError> {
        Self::open_with(adapter, options, None)
    }

    /// Opens an adapter that has timestamps, and tells a recorder when each kernel runs.
    pub fn open_traced(
        adapter: &Adapter,
        options: DeviceOptions,
        recorder: Recorder,
    ) -> Result<Self, GpuError> {
        if !adapter.has_timestamps() {
            return Err(GpuError::NoTimestamps { adapter: adapter.name() });
        }
        Self::open_with(adapter, options, Some(recorder))
    }

    fn open_with(
        adapter: &Adapter,
        options: DeviceOptions,
        recorder: Option<Recorder>,
    ) -> Result<Self, GpuError> {
        let info = adapter.info();
        let offered = adapter.raw().features();
        if !offered.contains(wgpu::Features::IMMEDIATES) {
            return Err(GpuError::Lacks { adapter: info.name, what: "immediate data" });
        }
        let has_subgroups = offered.contains(wgpu::Features::SUBGROUP);
        // A sum of eight lanes must not reach into another subgroup.
        let subgroups = options.subgroups && has_subgroups && info.subgroup_min_size >= 8;
        let matrices = match options.matrices {
            true if !adapter.has_matrices() => {
                return Err(GpuError::Lacks { adapter: info.name, what: "cooperative matrices" });
            }
            true => MATRICES,
            false => wgpu::Features::empty(),
        };
        let wanted = wgpu::Features::SUBGROUP | matrices;
        let features = wgpu::Features::IMMEDIATES | (offered & wanted);
        let timing = if recorder.is_some() { clock::FEATURES } else { wgpu::Features::empty() };
        let features = features | timing;
        let limits = adapter.raw().limits();
        let refused = |reason| GpuError::Refused { adapter: info.name.clone(), reason };
        let opened = open::open(adapter.raw(), features, &limits).ok_or_else(|| {
            refused(format!("{:?} is not an interface for kernels", info.backend))
        })?;
        let Opened { device, queue, special } =
            opened.map_err(|error| refused(error::explain(&error)))?;
        let clock = recorder.map(|recorder| Clock::new(recorder, recording::SUBMIT_AFTER, &*queue));
        let is_software = info.device_type == wgpu::DeviceType::Cpu;
        // SAFETY: fences need nothing.
        let fence = unsafe { device.create_fence() };
        let fence = fence.map_err(|error| refused(error::explain(&error)))?;
        Ok(Self {
            shared: Arc::new(Shared {
                api: format!("{:?}", info.backend),
                driver: adapter.driver(),
                is_software,
                shares_memory: adapter.shares_memory(),
                name: info.name,
                limits,
                memory_bytes: adapter.memory_bytes(),
                subgroups,
                checked: options.checked,
                special,
                layouts: Mutex::default(),
                kernel_cache: OnceLock::new(),
                readback: Mutex::default(),
                landing: Mutex::default(),
                recording: Mutex::new(Recording::new(clock)),
                uploads: Uploads::default(),
                graves: Mutex::default(),
                failure: Mutex::default(),
                has_failed: AtomicBool::new(false),
                fence: Some(fence),
                done: AtomicU64::new(0),
                // A device that is the CPU computes on the cores that would be kept busy by asking.
                spin_ns: AtomicU64::new(if is_software { 0 } else { SPIN.as_nanos() as u64 }),
                device,
                queue,
            }),
        })
    }

    /// Its name, with the interface through which it is reached.
    pub fn name(&self) -> String {
        format!("{} ({})", self.shared.name, self.shared.api)
    }

    /// A name of the adapter with its driver, by which files about it are found.
    pub(crate) fn identity(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.shared.name, &self.shared.api, &self.shared.driver] {
            hasher.update(part.as_bytes()).update(b"\0");
        }
        hasher.finalize()
    }

    /// Whether it is the CPU in disguise.
    pub fn is_software(&self) -> bool {
        self.shared.is_software
    }

    /// Sets how long a thread that waits for the device asks again and again before it sleeps.
    pub fn set_spin(&self, spin: Duration) {
        self.shared.spin_ns.store(spin.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether its memory is the host's.
    pub fn shares_memory(&self) -> bool {
        self.shared.shares_memory
    }

    /// Bytes of its memory, where the driver tells.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.shared.memory_bytes
    }

    /// Whether eight lanes are added by subgroup operations.
    pub fn has_subgroups(&self) -> bool {
        self.shared.subgroups
    }

    /// Bytes that a kernel can reach through one binding, a multiple of 256.
    pub fn max_binding_bytes(&self) -> u64 {
        let limits = &self.shared.limits;
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 256 * 256
    }

    /// Bytes of memory that a workgroup can have.
    pub(crate) fn workgroup_bytes(&self) -> u32 {
        self.shared.limits.max_compute_workgroup_storage_size
    }

    /// Most bindings that a kernel can have here.
    pub(crate) fn max_bindings(&self) -> usize {
        MAX_BINDINGS.min(self.shared.limits.max_storage_buffers_per_shader_stage as usize)
    }

    /// What was said so far.
    pub fn counts(&self) -> Handoffs {
        lock(&self.shared.recording).counts
    }

    /// The first thing that went wrong on the device, if anything did: results since then are worthless.
    pub fn check(&self) -> Result<(), GpuError> {
        match &*lock(&self.shared.failure) {
            Some(message) => Err(GpuError::Failed(message.clone())),
            None => Ok(()),
        }
    }

    /// Makes it known that results are worthless, and why. Nothing is computed any more.
    pub(crate) fn fail(&self, reason: impl std::fmt::Display) {
        self.shared.fail(reason);
    }

    /// Records the start of a kernel on buffers, in the order of its bindings. `immediates` are the words
    /// of its `Params`.
    pub(crate) fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&Buffer],
        immediates: &[u32],
        workgroups: [u32; 3],
    ) {
        if workgroups.contains(&0) {
            return;
        }
        assert_eq!(buffers.len(), kernel.n_bindings, "a buffer for each binding");
        assert!(immediates.len() <= IMMEDIATE_BYTES as usize / 4, "no more words than there are");
        let mut recording = lock(&self.shared.recording);
        recording.dispatch(&self.shared, kernel, buffers, immediates, workgroups);
    }

    /// Records a copy between buffers; all numbers are bytes, multiples of 4.
    pub(crate) fn copy(&self, from: (&Buffer, u64), to: (&Buffer, u64), bytes: u64) {
        for (buffer, at) in [from, to] {
            assert!(at + bytes <= buffer.bytes(), "the bytes are of the buffer");
        }
        lock(&self.shared.recording).copy(&self.shared, from, to, bytes);
    }

    /// Hands over what was recorded.
    pub(crate) fn submit(&self) {
        lock(&self.shared.recording).hand_over(&self.shared);
    }

    /// Hands over what was written. Little of it is ever under way: see [`mapped::Ring`].
    pub(crate) fn finish_writes(&self) {
        self.submit();
    }

    /// What was recorded so far.
    pub(crate) fn moment(&self) -> Moment {
        lock(&self.shared.recording).moment()
    }
}

impl Shared {
    fn fence(&self) -> &dyn hal::DynFence {
        self.fence.as_deref().expect("it is there until the device goes")
    }

    fn fail(&self, reason: impl std::fmt::Display) {
        lock(&self.failure).get_or_insert_with(|| reason.to_string());
        self.has_failed.store(true, Ordering::Release);
    }

    fn fail_with(&self, error: &hal::DeviceError) {
        self.fail(error::explain(error));
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// How bytes on their way to the device are used.
    fn staging_usage(&self) -> BufferUses {
        match self.special {
            // Memory for reading is the host's own and cached; memory for writing may be the device's, behind
            // a window that is slow to write through.
            #[cfg(any(target_os = "linux", windows))]
            Special::Vulkan(_) => BufferUses::MAP_READ | BufferUses::COPY_SRC,
            _ => BufferUses::MAP_WRITE | BufferUses::COPY_SRC,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end_kernel_cache();
        // SAFETY: no handle, buffer or kernel is left that could use any of this, and the device is idle; one
        // that was lost does nothing any more.
        unsafe {
            let _ = self.queue.wait_for_idle();
            self.end_uploads();
            let mut recording = std::mem::take(&mut *lock(&self.recording));
            recording.destroy(self);
            drop(recording);
            lock(&self.readback).destroy(self);
            lock(&self.landing).memory.destroy(self);
            for layout in std::mem::take(&mut *lock(&self.layouts)) {
                if let Some(Layout { group, pipeline, .. }) = Arc::into_inner(layout) {
                    self.device.destroy_pipeline_layout(pipeline);
                    self.device.destroy_bind_group_layout(group);
                }
            }
            if let Some(fence) = self.fence.take() {
                self.device.destroy_fence(fence);
            }
        }
    }
}
