//! From the text of a kernel to what a device runs.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::borrow::Cow;
use std::sync::Arc;

use wgpu::hal;
use wgpu::naga::{front::wgsl, valid};

use crate::device::{Device, Grave, IMMEDIATE_BYTES, Shared, lock};
use crate::kernel::KernelSource;

/// A compiled kernel.
pub(crate) struct Kernel {
    /// `None` after a failure: the device then computes nothing any more.
    pub(super) pipeline: Option<Box<dyn hal::DynComputePipeline>>,
    pub(super) layout: Option<Arc<Layout>>,
    pub(super) n_bindings: usize,
    pub(super) id: u64,
    /// A name for people, where somebody wants to know when it runs.
    pub(super) name: &'static str,
    owner: Arc<Shared>,
}

/// What kernels with the same bindings share.
pub(super) struct Layout {
    /// For each binding whether it is written.
    pub(super) writes: Vec<bool>,
    pub(super) group: Box<dyn hal::DynBindGroupLayout>,
    pub(super) pipeline: Box<dyn hal::DynPipelineLayout>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            lock(&self.owner.graves).push(Grave::Pipeline(self.id, pipeline));
        }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.id)
    }
}

impl Device {
    /// Compiles a kernel. One that does not compile is a failure of the device.
    pub(crate) fn kernel(&self, source: &KernelSource<'_>) -> Kernel {
        let made = self.shared.layout(source.writes).and_then(|layout| {
            let pipeline = self.shared.pipeline(source, &layout)?;
            Ok((pipeline, layout))
        });
        let (pipeline, layout) = made
            .map_err(|reason| self.fail(format_args!("kernel {}: {reason}", source.name)))
            .ok()
            .unzip();
        let mut recording = lock(&self.shared.recording);
        let id = recording.new_id();
        let name = if recording.clock.is_some() { trace::intern(source.name) } else { "" };
        drop(recording);
        let (n_bindings, owner) = (source.writes.len(), Arc::clone(&self.shared));
        Kernel { pipeline, layout, n_bindings, id, name, owner }
    }
}

impl Shared {
    fn pipeline(
        &self,
        source: &KernelSource<'_>,
        layout: &Layout,
    ) -> Result<Box<dyn hal::DynComputePipeline>, String> {
        let text = source.text(self.subgroups);
        let module = wgsl::parse_str(&text).map_err(|error| error.emit_to_string(&text))?;
        // The tests hold the kernels to what each interface knows; a driver tells what it lacks.
        let all = valid::Capabilities::all();
        let info = valid::Validator::new(valid::ValidationFlags::all(), all)
            .subgroup_stages(valid::ShaderStages::COMPUTE)
            .subgroup_operations(valid::SubgroupOperationSet::all())
            .validate(&module)
            .map_err(|error| error.emit_to_string(&text))?;
        let runtime_checks = match self.checked {
            true => wgpu::ShaderRuntimeChecks::checked(),
            false => wgpu::ShaderRuntimeChecks::unchecked(),
        };
        let label = Some(source.name);
        let shader = hal::NagaShader { module: Cow::Owned(module), info, debug_source: None };
        let descriptor = hal::ShaderModuleDescriptor { label, runtime_checks };
        // SAFETY: the module is valid. Where accesses are not checked: the kernels are our own, tests run
        // each of them with checks, and shapes are asserted where they are started.
        let module = unsafe {
            self.device.create_shader_module(&descriptor, hal::ShaderInput::Naga(shader))
        };
        let module = module.map_err(|error| error.to_string())?;
        let descriptor = hal::ComputePipelineDescriptor {
            label,
            layout: &*layout.pipeline,
            stage: hal::ProgrammableStage {
                module: &*module,
                entry_point: "main",
                constants: &Default::default(),
                zero_initialize_workgroup_memory: false,
            },
            cache: self.known_kernels(),
        };
        // SAFETY: layout and module are of this device, and the layout is that of the module's bindings.
        let pipeline = unsafe { self.device.create_compute_pipeline(&descriptor) };
        // SAFETY: pipelines do not need their modules once they are made.
        unsafe { self.device.destroy_shader_module(module) };
        pipeline.map_err(|error| error.to_string())
    }

    /// The layout of kernels whose bindings are written or only read.
    fn layout(&self, writes: &[bool]) -> Result<Arc<Layout>, String> {
        let mut layouts = lock(&self.layouts);
        if let Some(layout) = layouts.iter().find(|layout| layout.writes == writes) {
            return Ok(Arc::clone(layout));
        }
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
        let flags = hal::BindGroupLayoutFlags::empty();
        let descriptor = hal::BindGroupLayoutDescriptor { label: None, flags, entries: &entries };
        // SAFETY: the entries are sorted by binding and no more than the device takes.
        let group = unsafe { self.device.create_bind_group_layout(&descriptor) };
        let group = group.map_err(|error| error.to_string())?;
        let descriptor = hal::PipelineLayoutDescriptor {
            label: None,
            flags: hal::PipelineLayoutFlags::NUM_WORK_GROUPS,
            bind_group_layouts: &[Some(&*group)],
            immediate_size: IMMEDIATE_BYTES,
        };
        // SAFETY: the layout is of this device, and the device offers so many bytes.
        let pipeline = match unsafe { self.device.create_pipeline_layout(&descriptor) } {
            Ok(pipeline) => pipeline,
            Err(error) => {
                // SAFETY: nothing uses it.
                unsafe { self.device.destroy_bind_group_layout(group) };
                return Err(error.to_string());
            }
        };
        let layout = Arc::new(Layout { writes: writes.to_vec(), group, pipeline });
        layouts.push(Arc::clone(&layout));
        Ok(layout)
    }
}
