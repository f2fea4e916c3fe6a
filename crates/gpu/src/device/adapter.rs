//! The graphics adapters of this machine.

use crate::device::clock;

/// A graphics adapter that is there.
#[derive(Clone, Debug)]
pub struct Adapter {
    raw: wgpu::Adapter,
}

/// The adapters of this machine, those with memory of their own first and software last.
pub fn adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Layers that check the program's use of the API belong to its development.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<Adapter> = found.into_iter().map(|raw| Adapter { raw }).collect();
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
    pub(super) fn raw(&self) -> &wgpu::Adapter {
        &self.raw
    }

    pub(super) fn info(&self) -> wgpu::AdapterInfo {
        self.raw.get_info()
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

    /// Whether its memory is the host's: what lies there once need not lie there twice.
    pub fn shares_memory(&self) -> bool {
        let kinds = [wgpu::DeviceType::IntegratedGpu, wgpu::DeviceType::Cpu];
        kinds.contains(&self.info().device_type)
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

    /// Whether it tells when each kernel begins and ends.
    pub fn has_timestamps(&self) -> bool {
        self.raw.features().contains(clock::FEATURES)
    }

    /// Whether it multiplies matrices of 16 x 16 floats of 16 bits, and adds in 32.
    pub fn has_matrices(&self) -> bool {
        use wgpu::CooperativeScalarType::{F16, F32};
        let offered = self.raw.features().contains(super::MATRICES);
        let mut kinds = self.raw.cooperative_matrix_properties().into_iter();
        offered
            && kinds.any(|kind| {
                let sizes = [kind.m_size, kind.n_size, kind.k_size];
                sizes == [16; 3] && (kind.ab_type, kind.cr_type) == (F16, F32)
            })
    }

    /// Bytes that a kernel can reach through one binding.
    pub fn max_binding_bytes(&self) -> u64 {
        self.raw.limits().max_storage_buffer_binding_size
    }

    /// Bytes of the largest buffer.
    pub fn max_buffer_bytes(&self) -> u64 {
        self.raw.limits().max_buffer_size
    }

    /// Fewest and most lanes of a subgroup; `None` without subgroup operations.
    pub fn subgroup_lanes(&self) -> Option<[u32; 2]> {
        let info = self.info();
        let has = self.raw.features().contains(wgpu::Features::SUBGROUP);
        has.then_some([info.subgroup_min_size, info.subgroup_max_size])
    }
}
