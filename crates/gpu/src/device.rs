//! A device: its adapter, its memory, and the recording of work for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compute::Handoffs;

use crate::kernel::{Kernel, KernelSource};

/// Bytes that a kernel can be told besides its bindings; what every desktop API offers.
pub(crate) const IMMEDIATE_BYTES: u32 = 128;
/// Dispatches after which work is handed to the device although nobody waits for it, so that it computes
/// while more is recorded.
const SUBMIT_AFTER: u32 = 48;
/// Most bindings of a kernel.
const MAX_BINDINGS: usize = 11;

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No adapter at all.
    #[error(
        "no GPU was found: there is no driver for Vulkan, Metal or DX12; use `--device cpu`, or install the driver"
    )]
    NoAdapter,
    /// An adapter that is not there was asked for.
    #[error("there is no GPU {index}: `flash-moe devices` lists the {available} that there are")]
    NoSuchAdapter {
        /// What was asked for.
        index: usize,
        /// How many there are.
        available: usize,
    },
    /// The adapter lacks something that the kernels need.
    #[error("{adapter} cannot run the kernels: it has no {what}; use `--device cpu`")]
    Lacks {
        /// Its name.
        adapter: String,
        /// What is missing.
        what: &'static str,
    },
    /// The driver refused.
    #[error("{adapter} could not be opened: {reason}")]
    Refused {
        /// Its name.
        adapter: String,
        /// What the driver said.
        reason: String,
    },
    /// The device failed while it computed.
    #[error("the GPU failed: {0}")]
    Failed(String),
}

/// A graphics adapter that is there.
#[derive(Clone, Debug)]
pub struct Adapter {
    adapter: wgpu::Adapter,
}

/// The adapters of this machine, those with memory of their own first and software last.
pub fn adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Layers that check the program's use of the API belong to its development.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<Adapter> = found.into_iter().map(|adapter| Adapter { adapter }).collect();
    adapters.sort_by_key(|adapter| match adapter.info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

impl Adapter {
    pub(crate) fn raw(&self) -> &wgpu::Adapter {
        &self.adapter
    }

    fn info(&self) -> wgpu::AdapterInfo {
        self.adapter.get_info()
    }

    /// Its name, as the driver gives it.
    pub fn name(&self) -> String {
        self.info().name
    }

    /// What it is for people: `discrete`, `integrated`, `virtual`, `software`, `other`.
    pub fn kind(&self) -> &'static str {
        match self.info().device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        }
    }

    /// Whether it is the CPU in disguise.
    pub fn is_software(&self) -> bool {
        self.info().device_type == wgpu::DeviceType::Cpu
    }

    /// The interface through which it is reached: `Vulkan`, `Metal`, `DX12`.
    pub fn api(&self) -> String {
        format!("{:?}", self.info().backend)
    }

    /// Its driver and the version of it.
    pub fn driver(&self) -> String {
        let info = self.info();
        format!("{} {}", info.driver, info.driver_info).trim().to_owned()
    }

    /// Bytes that a kernel can reach through one binding.
    pub fn max_binding_bytes(&self) -> u64 {
        self.adapter.limits().max_storage_buffer_binding_size
    }

    /// Bytes of the largest buffer.
    pub fn max_buffer_bytes(&self) -> u64 {
        self.adapter.limits().max_buffer_size
    }

    /// Fewest and most lanes of a subgroup; `None` without subgroup operations.
    pub fn subgroup_lanes(&self) -> Option<[u32; 2]> {
        let info = self.info();
        let has = self.adapter.features().contains(wgpu::Features::SUBGROUP);
        has.then_some([info.subgroup_min_size, info.subgroup_max_size])
    }
}

/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Whether sums of eight lanes may go through subgroup operations where there are some.
    pub subgroups: bool,
    /// Whether kernels check each access: for tests.
    pub checked: bool,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { subgroups: true, checked: cfg!(debug_assertions) }
    }
}

/// An open device. Clones are handles on the same one.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    api: String,
    is_software: bool,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    memory_bytes: Option<u64>,
    /// Whether eight neighbouring lanes can be added by subgroup operations.
    subgroups: bool,
    checked: bool,
    layouts: Mutex<HashMap<Vec<bool>, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
    recording: Mutex<Recording>,
    /// The first thing that went wrong on the device.
    failure: Arc<Mutex<Option<String>>>,
    dropped: Arc<Mutex<Vec<u64>>>,
}

/// What was recorded and not handed over yet.
#[derive(Default)]
struct Recording {
    // The pass is declared first: it must end before its encoder does.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    n_dispatches: u32,
    groups: HashMap<[u64; MAX_BINDINGS + 1], wgpu::BindGroup>,
    next_id: u64,
    counts: Handoffs,
}

/// Memory of a device.
pub(crate) struct Buffer {
    pub(crate) raw: wgpu::Buffer,
    id: u64,
    dropped: Arc<Mutex<Vec<u64>>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        lock(&self.dropped).push(self.id);
    }
}

impl Buffer {
    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.raw.size()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.raw.size())
    }
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
        let info = adapter.info();
        let offered = adapter.adapter.features();
        if !offered.contains(wgpu::Features::IMMEDIATES) {
            return Err(GpuError::Lacks { adapter: info.name, what: "immediate data" });
        }
        let has_subgroups = offered.contains(wgpu::Features::SUBGROUP);
        // A sum of eight lanes must not reach into another subgroup.
        let subgroups = options.subgroups && has_subgroups && info.subgroup_min_size >= 8;
        let wished = wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        let descriptor = wgpu::DeviceDescriptor {
            label: None,
            required_features: wgpu::Features::IMMEDIATES | (offered & wished),
            required_limits: adapter.adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = pollster::block_on(adapter.adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| GpuError::Refused {
            adapter: info.name.clone(),
            reason: error.to_string(),
        })?;
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let told = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&told).get_or_insert_with(|| error.to_string());
        }));
        let told = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lock(&told).get_or_insert_with(|| format!("the device was lost: {message}"));
            }
        });
        Ok(Self {
            shared: Arc::new(Shared {
                api: format!("{:?}", info.backend),
                is_software: info.device_type == wgpu::DeviceType::Cpu,
                name: info.name,
                limits: device.limits(),
                memory_bytes: adapter.memory_bytes(),
                device,
                queue,
                subgroups,
                checked: options.checked,
                layouts: Mutex::default(),
                recording: Mutex::default(),
                failure,
                dropped: Arc::default(),
            }),
        })
    }

    /// Its name, with the interface through which it is reached.
    pub fn name(&self) -> String {
        format!("{} ({})", self.shared.name, self.shared.api)
    }

    /// Whether it is the CPU in disguise.
    pub fn is_software(&self) -> bool {
        self.shared.is_software
    }

    /// Bytes of its own memory, where the driver tells.
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

    /// Makes it known that results are worthless, and why.
    pub(crate) fn fail(&self, reason: impl std::fmt::Display) {
        lock(&self.shared.failure).get_or_insert_with(|| reason.to_string());
    }

    /// Memory of so many bytes, which are zero.
    pub(crate) fn buffer(&self, bytes: u64) -> Buffer {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let size = bytes.next_multiple_of(16).max(16);
        let descriptor =
            wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let raw = self.shared.device.create_buffer(&descriptor);
        let mut recording = lock(&self.shared.recording);
        recording.next_id += 1;
        Buffer { raw, id: recording.next_id, dropped: Arc::clone(&self.shared.dropped) }
    }

    /// Memory with these contents.
    pub(crate) fn buffer_with(&self, bytes: &[u8]) -> Buffer {
        let buffer = self.buffer(bytes.len() as u64);
        self.write(&buffer, 0, bytes);
        buffer
    }

    /// Writes to a buffer, after all that was recorded before and before all that is recorded later.
    /// `at` is a multiple of 4, and the end is padded with zeros to one.
    pub(crate) fn write(&self, buffer: &Buffer, at: u64, bytes: &[u8]) {
        // The queue writes before what is handed over next, so what was recorded goes first.
        self.submit();
        let whole = bytes.len() / 4 * 4;
        self.shared.queue.write_buffer(&buffer.raw, at, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.shared.queue.write_buffer(&buffer.raw, at + whole as u64, &last);
        }
    }

    /// Waits until what was written has left the host, so that the driver's copies of it are freed.
    pub(crate) fn finish_writes(&self) {
        self.submit();
        self.shared.queue.submit([]);
        self.wait();
    }

    /// Compiles a kernel.
    pub(crate) fn kernel(&self, source: &KernelSource<'_>) -> Kernel {
        let Shared { device, checked, .. } = &*self.shared;
        let (layout, pipeline_layout) = self.layouts(source.writes);
        let checks = match checked {
            true => wgpu::ShaderRuntimeChecks::checked(),
            false => wgpu::ShaderRuntimeChecks::unchecked(),
        };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(source.name),
            source: wgpu::ShaderSource::Wgsl(source.text(self.shared.subgroups).into()),
        };
        // SAFETY: the kernels are our own; tests run each of them with checks, and shapes are asserted
        // where they are started.
        #[expect(unsafe_code, reason = "checks of every access cost up to half of the speed")]
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(source.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: None,
        });
        let mut recording = lock(&self.shared.recording);
        recording.next_id += 1;
        Kernel { pipeline, layout, n_bindings: source.writes.len(), id: recording.next_id }
    }

    /// The layouts of kernels whose bindings are written or only read.
    fn layouts(&self, writes: &[bool]) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let device = &self.shared.device;
        let mut layouts = lock(&self.shared.layouts);
        let make = || {
            let entries: Vec<_> = writes
                .iter()
                .zip(0..)
                .map(|(&is_written, binding)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Storage { read_only: !is_written },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                })
                .collect();
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            let layout = device.create_bind_group_layout(&descriptor);
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: IMMEDIATE_BYTES,
            });
            (layout, pipeline)
        };
        layouts.entry(writes.to_vec()).or_insert_with(make).clone()
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
        let mut recording = lock(&self.shared.recording);
        let Recording { pass, encoder, groups, n_dispatches, counts, .. } = &mut *recording;
        let mut key = [0; MAX_BINDINGS + 1];
        key[0] = kernel.id;
        for (key, buffer) in key[1..].iter_mut().zip(buffers) {
            *key = buffer.id;
        }
        let group = groups.entry(key).or_insert_with(|| {
            let entries: Vec<_> = buffers
                .iter()
                .zip(0..)
                .map(|(buffer, binding)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.raw.as_entire_binding(),
                })
                .collect();
            self.shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &kernel.layout,
                entries: &entries,
            })
        });
        let pass = pass.get_or_insert_with(|| {
            let encoder = encoder.get_or_insert_with(|| self.encoder());
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime()
        });
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &*group, &[]);
        let mut bytes = [0; IMMEDIATE_BYTES as usize];
        let used = &mut bytes[..4 * immediates.len()];
        for (bytes, word) in used.as_chunks_mut().0.iter_mut().zip(immediates) {
            *bytes = word.to_ne_bytes();
        }
        pass.set_immediates(0, used);
        let [x, y, z] = workgroups;
        pass.dispatch_workgroups(x, y, z);
        *n_dispatches += 1;
        counts.dispatches += 1;
        if *n_dispatches >= SUBMIT_AFTER {
            self.hand_over(&mut recording);
        }
    }

    /// Records a copy between buffers; all numbers are bytes, multiples of 4.
    pub(crate) fn copy(&self, from: (&Buffer, u64), to: (&Buffer, u64), bytes: u64) {
        let mut recording = lock(&self.shared.recording);
        let Recording { pass, encoder, .. } = &mut *recording;
        *pass = None;
        let encoder = encoder.get_or_insert_with(|| self.encoder());
        encoder.copy_buffer_to_buffer(&from.0.raw, from.1, &to.0.raw, to.1, bytes);
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Hands over what was recorded.
    pub(crate) fn submit(&self) {
        self.hand_over(&mut lock(&self.shared.recording));
    }

    fn hand_over(&self, recording: &mut Recording) -> Option<wgpu::SubmissionIndex> {
        recording.pass = None;
        recording.n_dispatches = 0;
        let encoder = recording.encoder.take();
        let submission = encoder.map(|encoder| {
            recording.counts.submissions += 1;
            self.shared.queue.submit([encoder.finish()])
        });
        let mut dropped = lock(&self.shared.dropped);
        if !dropped.is_empty() {
            recording.groups.retain(|key, _| !dropped.iter().any(|id| key[1..].contains(id)));
            dropped.clear();
        }
        submission
    }

    /// Waits until the device has done everything.
    pub(crate) fn wait(&self) {
        self.submit();
        lock(&self.shared.recording).counts.waits += 1;
        if let Err(error) = self.shared.device.poll(wgpu::PollType::wait_indefinitely()) {
            lock(&self.shared.failure).get_or_insert_with(|| error.to_string());
        }
    }

    /// Copies bytes to the host, replacing what `out` held: waits for the device. Numbers are multiples of
    /// 4. After a failure of the device the bytes are zero, and [`Device::check`] tells why.
    pub(crate) fn read(&self, buffer: &Buffer, at: u64, bytes: u64, out: &mut Vec<u8>) {
        let read = self.begin_read(&[(buffer, at, bytes)]);
        self.finish_read(read, out);
    }

    /// Hands over what was recorded, with copies of parts of buffers to the host: where each begins, and its
    /// bytes. What is recorded afterwards is done while they come.
    pub(crate) fn begin_read(&self, parts: &[(&Buffer, u64, u64)]) -> Reading {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bytes = parts.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: bytes.max(16),
            usage,
            mapped_at_creation: false,
        };
        let staging = self.shared.device.create_buffer(&descriptor);
        let mut recording = lock(&self.shared.recording);
        recording.pass = None;
        let encoder = recording.encoder.get_or_insert_with(|| self.encoder());
        let mut end = 0;
        for &(buffer, at, bytes) in parts {
            encoder.copy_buffer_to_buffer(&buffer.raw, at, &staging, end, bytes);
            end += bytes;
        }
        let submission = self.hand_over(&mut recording);
        staging.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        Reading { staging, bytes, submission }
    }

    /// Waits for a copy to the host, which replaces what `out` held: its parts one after the other.
    pub(crate) fn finish_read(&self, reading: Reading, out: &mut Vec<u8>) {
        let Reading { staging, bytes, submission } = reading;
        lock(&self.shared.recording).counts.waits += 1;
        let poll = wgpu::PollType::Wait { submission_index: submission, timeout: None };
        if let Err(error) = self.shared.device.poll(poll) {
            lock(&self.shared.failure).get_or_insert_with(|| error.to_string());
        }
        out.clear();
        match staging.slice(..bytes).get_mapped_range() {
            Ok(mapped) => out.extend_from_slice(&mapped),
            Err(error) => {
                out.resize(bytes as usize, 0);
                lock(&self.shared.failure).get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// Bytes on their way to the host.
pub(crate) struct Reading {
    staging: wgpu::Buffer,
    bytes: u64,
    submission: Option<wgpu::SubmissionIndex>,
}
