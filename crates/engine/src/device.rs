//! Which device computes: the one that the options ask for, or the one that a measurement finds faster.

use std::time::Duration;

use compute::{Backend, Cpu, CpuOptions, Isa, KvType, Reference};

use crate::error::Error;
use crate::inventory::Inventory;
use crate::options::{Device, EngineOptions};

/// What is to be done on a device, whatever its backend is.
pub(crate) trait OnDevice {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run<B: Backend + Send + 'static>(self, backend: B) -> Result<Self::Output, Error>;
}

/// Does something on the device of the options, which is not [`Device::Auto`].
pub(crate) fn on_device<T: OnDevice>(options: &EngineOptions, task: T) -> Result<T::Output, Error> {
    match options.device {
        Device::Reference => task.run(Reference::new()),
        Device::Auto | Device::Cpu => task.run(cpu(options, None)?),
        Device::CpuIsa(isa) => task.run(cpu(options, Some(isa))?),
        Device::Gpu(_) if options.kv_type.is_some_and(|kv_type| kv_type != KvType::F16) => {
            let reason = "a GPU keeps keys and values as f16: leave --kv-type out".to_owned();
            Err(Error::Gpu(reason))
        }
        Device::Gpu(index) => gpus::on_gpu(options, index, task),
    }
}

/// The CPU backend that the options ask for.
fn cpu(options: &EngineOptions, isa: Option<Isa>) -> Result<Cpu, Error> {
    let EngineOptions { threads, precise, kv_type, .. } = *options;
    let recorder = options.recorder.clone();
    Ok(Cpu::new(CpuOptions { threads, isa, precise, kv_type, recorder })?)
}

/// Puts the faster device in the place of [`Device::Auto`], and tells why it is that one. Other devices stay,
/// and there is nothing to tell.
///
/// Decoding reads all weights that it uses once a token, so the faster device is the one that reads its
/// memory faster, if all weights fit into that: experts that must be moved to a device for every use are
/// sooner computed where they are.
pub(crate) fn settle(options: &mut EngineOptions, inventory: &Inventory) -> Option<String> {
    if options.device != Device::Auto {
        return None;
    }
    if options.twin.is_some() {
        options.device = Device::Cpu;
        return Some(NO_TWINS.to_owned());
    }
    match gpus::faster_gpu(options, inventory) {
        Ok((index, reason)) => {
            options.device = Device::Gpu(Some(index));
            Some(reason)
        }
        Err(reason) => {
            options.device = Device::Cpu;
            Some(reason)
        }
    }
}

/// Why a GPU is none for a model with a twin: the slots of a layer on the device hold experts of one shape.
const NO_TWINS: &str = "only the CPU uses twins of experts";

/// A device that could compute, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// What it is: `discrete`, `integrated`, `virtual`, `software`, `other`.
    pub kind: &'static str,
    /// The interface through which it is reached: `Vulkan`, `Metal`, `DX12`.
    pub api: String,
    /// Its driver.
    pub driver: String,
    /// Whether it is the CPU in disguise.
    pub is_software: bool,
    /// Bytes of its memory, where that is known.
    pub memory_bytes: Option<u64>,
    /// Whether that is the host's memory.
    pub shares_memory: bool,
    /// Whether kernels can read what the host has there without a copy, or why not.
    pub imports: Result<(), String>,
    /// Bytes that a kernel can reach through one binding.
    pub max_binding_bytes: u64,
    /// Bytes of the largest buffer.
    pub max_buffer_bytes: u64,
    /// Fewest and most lanes of a subgroup; `None` without subgroup operations.
    pub subgroup_lanes: Option<[u32; 2]>,
    /// Bytes a second that it reads from its memory, or why that could not be measured.
    pub read_bandwidth: Result<f64, String>,
}

/// Whether the device of the options can compute a model at all.
pub(crate) fn check(options: &EngineOptions, inventory: &Inventory) -> Result<(), Error> {
    match options.device {
        Device::Gpu(_) if options.twin.is_some() => Err(Error::Gpu(NO_TWINS.to_owned())),
        Device::Gpu(_) => gpus::problem(inventory).map_or(Ok(()), |why| Err(Error::Gpu(why))),
        Device::Auto | Device::Cpu | Device::CpuIsa(_) | Device::Reference => Ok(()),
    }
}

/// Bytes a second that a device reads from a memory of its own; `None` where it is the host's, or a GPU is software.
pub fn own_memory_bandwidth(device: Device, duration: Duration) -> Option<Result<f64, String>> {
    match device {
        Device::Gpu(index) => gpus::own_memory_bandwidth(index.unwrap_or(0), duration),
        Device::Auto | Device::Cpu | Device::CpuIsa(_) | Device::Reference => None,
    }
}

pub use gpus::{HAS_GPUS, gpus, tune_gpus};

/// GPUs, where the program was built with them.
#[cfg(feature = "gpu")]
mod gpus {
    use std::path::Path;
    use std::time::Duration;

    use checkpoint::ExpertTable;
    use compute::{KvType, memory_bandwidth};
    use gpu::{Adapter, DeviceOptions, ModelNeeds};

    use super::{DeviceInfo, OnDevice};
    use crate::budget::format_bytes;
    use crate::error::Error;
    use crate::inventory::{Inventory, TrunkLocation};
    use crate::options::EngineOptions;

    /// Whether the program was built with the GPU backend.
    pub const HAS_GPUS: bool = true;
    /// Bytes that measurements of a device read: more than its caches hold.
    const MEASURED_BYTES: u64 = 1 << 30;
    /// The same for the CPU, and for devices that are one.
    const MEASURED_HOST_BYTES: u64 = 256 << 20;
    /// How long a choice measures each device.
    const CHOICE_TIME: Duration = Duration::from_millis(60);

    /// The GPUs in the order of their numbers, each measured for so long.
    pub fn gpus(duration: Duration) -> Vec<DeviceInfo> {
        let adapters = gpu::adapters().into_iter();
        let infos = adapters.map(|adapter| {
            let (imports, read_bandwidth) = probe(&adapter, duration);
            DeviceInfo {
                name: adapter.name(),
                kind: adapter.kind(),
                api: adapter.api(),
                driver: adapter.driver(),
                is_software: adapter.is_software(),
                memory_bytes: adapter.memory_bytes(),
                max_binding_bytes: adapter.max_binding_bytes(),
                max_buffer_bytes: adapter.max_buffer_bytes(),
                subgroup_lanes: adapter.subgroup_lanes(),
                shares_memory: adapter.shares_memory(),
                imports,
                read_bandwidth,
            }
        });
        infos.collect()
    }

    /// Finds how products are cut best on each GPU, and keeps it in a directory for later starts; `told` hears of all
    /// that is found. A GPU that is software is left as it is.
    pub fn tune_gpus(directory: &Path, told: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let options = DeviceOptions { checked: false, ..DeviceOptions::default() };
        for (index, adapter) in gpu::adapters().iter().enumerate() {
            told(&format!("gpu:{index} {}", adapter.name()));
            if adapter.is_software() {
                told("  is the CPU, through a driver in software, and left as it is");
                continue;
            }
            let tuned = gpu::Device::open(adapter, options).and_then(|device| {
                let mut gain = 1.0;
                let found = gpu::tune(&device, &mut |compared: &gpu::Compared| {
                    gain *= compared.gain;
                    let gpu::Compared { best, among, .. } = compared;
                    told(&format!("  {best}: best of {among}, {gain:.2} x as fast as usual"));
                })?;
                Ok((device, found))
            });
            let (device, found) = tuned.map_err(|error| Error::Gpu(error.to_string()))?;
            let path = found.keep(&device, directory).map_err(|error| {
                Error::Gpu(format!("{} cannot be written: {error}", directory.display()))
            })?;
            told(&format!("  kept in {}; remove it to go back", path.display()));
        }
        Ok(())
    }

    pub(super) fn own_memory_bandwidth(
        index: usize,
        duration: Duration,
    ) -> Option<Result<f64, String>> {
        let adapters = gpu::adapters();
        let adapter = adapters.get(index)?;
        let is_own = !adapter.is_software() && !adapter.shares_memory();
        is_own.then(|| read_bandwidth(adapter, duration))
    }

    fn read_bandwidth(adapter: &Adapter, duration: Duration) -> Result<f64, String> {
        probe(adapter, duration).1
    }

    /// Whether a device reads the host's memory where it lies, and how fast it reads its own.
    fn probe(adapter: &Adapter, duration: Duration) -> (Result<(), String>, Result<f64, String>) {
        let options = DeviceOptions { checked: false, ..DeviceOptions::default() };
        let bytes = if adapter.is_software() { MEASURED_HOST_BYTES } else { MEASURED_BYTES };
        let device = gpu::Device::open(adapter, options).map_err(|error| error.to_string());
        let imports = device.as_ref().map_err(Clone::clone).and_then(gpu::Device::imports);
        let speed = device.and_then(|device| {
            gpu::read_bandwidth(&device, bytes, duration).map_err(|error| error.to_string())
        });
        (imports, speed)
    }

    /// The number of a GPU that reads its memory faster than the CPU does, and that in words; or why it is
    /// the CPU.
    pub(super) fn faster_gpu(
        options: &EngineOptions,
        inventory: &Inventory,
    ) -> Result<(usize, String), String> {
        if options.kv_type.is_some_and(|kv_type| kv_type != KvType::F16) {
            return Err("only the CPU has other types of keys and values than f16".to_owned());
        }
        if !may_have_gpus() {
            return Err("there is no GPU".to_owned());
        }
        let adapters = gpu::adapters();
        let mut numbered = adapters.iter().enumerate();
        let Some((index, adapter)) = numbered.find(|(_, adapter)| !adapter.is_software()) else {
            return Err("there is no GPU".to_owned());
        };
        let name = adapter.name();
        let memory = match (adapter.memory_bytes(), options.vram) {
            (Some(bytes), Some(asked)) => bytes.min(asked),
            (Some(bytes), None) | (None, Some(bytes)) => bytes,
            (None, None) => {
                return Err(format!("how much memory {name} has is not known without --vram"));
            }
        };
        let weights = crate::trunk::resident_bytes(inventory) + inventory.expert_bytes();
        if weights > memory {
            let [weights, memory] = [weights, memory].map(format_bytes);
            return Err(format!("weights of {weights} do not fit into {memory} of {name}"));
        }
        if let Some(why) = problem(inventory) {
            return Err(why);
        }
        let gpu = read_bandwidth(adapter, CHOICE_TIME)?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or_else(cores);
        let cpu = memory_bandwidth(threads, MEASURED_HOST_BYTES as usize, CHOICE_TIME);
        let cpu = cpu.map_err(|error| format!("memory for a measurement: {error}"))?;
        let [gpu_speed, cpu_speed] = [gpu, cpu].map(|speed| format!("{:.0} GB/s", speed / 1e9));
        let reason = format!("{name} reads {gpu_speed} of its memory, the CPU {cpu_speed}");
        if gpu > cpu { Ok((index, reason)) } else { Err(reason) }
    }

    /// Why no GPU can compute a model, if none can.
    pub(super) fn problem(inventory: &Inventory) -> Option<String> {
        let trunk = inventory.trunk.iter().filter_map(|tensor| match &tensor.location {
            TrunkLocation::Matrix(matrix) => Some((matrix.format, matrix.cols)),
            TrunkLocation::Vector(_) => None,
        });
        let experts =
            inventory.experts.iter().filter(|table| !table.is_empty()).flat_map(|table| {
                table.get(0).matrices().map(|matrix| (matrix.format, matrix.cols))
            });
        let needs = ModelNeeds {
            matrices: trunk.chain(experts).collect(),
            n_experts: inventory.experts.iter().map(ExpertTable::len).max().unwrap_or(0),
            attention: inventory.outline.attention_spec(),
            delta_net: inventory.outline.delta_net_spec(),
        };
        needs.problem()
    }

    /// Whether it is worth to ask the drivers, which takes memory and some 0.1 s: on Linux a GPU that can
    /// compute has a file in `/dev`, of the kernel's own graphics, NVIDIA's or Windows's host.
    fn may_have_gpus() -> bool {
        let files = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg"];
        !cfg!(target_os = "linux") || files.iter().any(|file| Path::new(file).exists())
    }

    /// Opens a GPU, which tells the recorder of the options when kernels run, if there is one and it can.
    fn open(adapter: &Adapter, options: &EngineOptions) -> Result<gpu::Device, gpu::GpuError> {
        let Some(recorder) = &options.recorder else {
            return gpu::Device::open(adapter, DeviceOptions::default());
        };
        match gpu::Device::open_traced(adapter, DeviceOptions::default(), recorder.clone()) {
            Err(error @ gpu::GpuError::NoTimestamps { .. }) => {
                recorder.note(error.to_string());
                gpu::Device::open(adapter, DeviceOptions::default())
            }
            opened => opened,
        }
    }

    /// Does something on a GPU: the one of a number, or the best.
    pub(super) fn on_gpu<T: OnDevice>(
        options: &EngineOptions,
        index: Option<usize>,
        task: T,
    ) -> Result<T::Output, Error> {
        let adapters = gpu::adapters();
        let (available, index) = (adapters.len(), index.unwrap_or(0));
        let device = match adapters.get(index) {
            Some(adapter) => open(adapter, options),
            None if available == 0 => Err(gpu::GpuError::NoAdapter),
            None => Err(gpu::GpuError::NoSuchAdapter { index, available }),
        };
        let device = device.map_err(|error| Error::Gpu(error.to_string()))?;
        // Mesa's drivers for CPUs keep what they compile themselves.
        if let Some(directory) = options.kernel_cache.as_deref().filter(|_| !device.is_software()) {
            device.keep_kernels(directory);
        }
        let gpu = gpu::Gpu::new(device).with_precision(options.precise);
        let gpu = match options.kernel_cache.as_deref() {
            Some(directory) => gpu.tuned(directory),
            None => gpu,
        };
        let gpu = if options.copy_experts { gpu.copying() } else { gpu };
        match options.lossy.device_split {
            true => task.run(gpu.beside(super::cpu(options, None)?)),
            false => task.run(gpu),
        }
    }
}

/// GPUs, where the program was built without them.
#[cfg(not(feature = "gpu"))]
mod gpus {
    use std::path::Path;
    use std::time::Duration;

    use super::{DeviceInfo, OnDevice};
    use crate::error::Error;
    use crate::inventory::Inventory;
    use crate::options::EngineOptions;

    /// Whether the program was built with the GPU backend.
    pub const HAS_GPUS: bool = false;

    const WITHOUT: &str = "this program was built without its GPU backend";

    /// No GPUs.
    pub fn gpus(_: Duration) -> Vec<DeviceInfo> {
        Vec::new()
    }

    /// No GPUs.
    pub fn tune_gpus(_: &Path, _: &mut dyn FnMut(&str)) -> Result<(), Error> {
        Err(Error::Gpu(WITHOUT.to_owned()))
    }

    pub(super) fn own_memory_bandwidth(_: usize, _: Duration) -> Option<Result<f64, String>> {
        None
    }

    pub(super) fn faster_gpu(_: &EngineOptions, _: &Inventory) -> Result<(usize, String), String> {
        Err(WITHOUT.to_owned())
    }

    pub(super) fn problem(_: &Inventory) -> Option<String> {
        Some(WITHOUT.to_owned())
    }

    pub(super) fn on_gpu<T: OnDevice>(
        _: &EngineOptions,
        _: Option<usize>,
        _: T,
    ) -> Result<T::Output, Error> {
        Err(Error::Gpu(WITHOUT.to_owned()))
    }
}
