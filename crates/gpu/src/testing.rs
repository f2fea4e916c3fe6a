//! What tests of kernels share: devices, random numbers, the reference, translation.

#[path = "../../compute/tests/it/support.rs"]
#[expect(dead_code, reason = "shared with the tests of the CPU backend")]
mod support;

#[path = "../../compute/tests/it/mixers.rs"]
pub(crate) mod mixers;

pub(crate) use support::{Random, assert_close, download as from_host, matrix, upload as host};

use checkpoint::Format;
use compute::{Backend, ExpertShape, ExpertWeights, LoadedExpert};

use crate::buffers::Activations;
use crate::device::{Device, DeviceOptions, adapters};
use crate::experts::{ExpertLayout, shapes};
use crate::gpu::Gpu;
use crate::kernel::KernelSource;

// Widths are multiples of four on a device, except of what is neither multiplied, normed nor added: outputs of
// products.
impl support::Upload for Gpu {
    fn upload(&mut self, values: &[f32], width: usize) -> Activations {
        upload(&self.device, values, width)
    }
}

/// Every form of the best device of this machine: with subgroup operations if it has them, and without.
///
/// Without any device the tests fail, unless the environment says that there is none.
pub(crate) fn devices() -> Vec<Device> {
    if std::env::var_os("FLASH_MOE_NO_GPU_TESTS").is_some() {
        return Vec::new();
    }
    let adapters = adapters();
    let adapter = adapters.first().expect(
        "a GPU, or Mesa's software Vulkan; set FLASH_MOE_NO_GPU_TESTS to leave these tests out",
    );
    let open = |subgroups| {
        let options = DeviceOptions { subgroups, checked: true, ..DeviceOptions::default() };
        Device::open(adapter, options).expect("the device opens")
    };
    let mut devices = vec![open(true), open(false)];
    if !devices[0].has_subgroups() {
        devices.pop();
    }
    devices
}

/// A device's name, with the form of its sums.
pub(crate) fn name(device: &Device) -> String {
    let form = if device.has_subgroups() { "subgroups" } else { "shared memory" };
    format!("{}, {form}", device.name())
}

/// A backend on each of the devices; a test that fails shows on which one it was.
pub(crate) fn gpus() -> impl Iterator<Item = Gpu> {
    devices().into_iter().map(|device| {
        println!("on {}", name(&device));
        Gpu::new(device)
    })
}

/// Activations on a device with the given rows.
pub(crate) fn upload(device: &Device, values: &[f32], width: usize) -> Activations {
    let rows = values.len() / width;
    let mut activations = Activations::new(device, rows, width);
    activations.set_rows(rows);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    device.write(&activations.buffer, 0, &bytes);
    activations
}

/// Experts with these formats of gate, up and down.
pub(crate) fn experts(random: &mut Random, n: u32, formats: [Format; 3]) -> Vec<LoadedExpert> {
    let [gate, up, down] = formats;
    let one = |index| LoadedExpert {
        index,
        weights: ExpertWeights {
            gate: matrix(random, gate, 64, 256),
            up: matrix(random, up, 64, 256),
            down: matrix(random, down, 256, 64),
        },
    };
    (0..n).map(one).collect()
}

/// Makes room for so many of some experts in layer 0, in buffers of at most `per_buffer` of them.
pub(crate) fn make_room(gpu: &mut Gpu, experts: &[LoadedExpert], room: usize, per_buffer: usize) {
    let matrices = shapes(&experts[0].weights);
    let slot = ExpertLayout::new(matrices).expect("known formats").bytes;
    gpu.slot_buffer_bytes = per_buffer as u64 * slot;
    let shape = ExpertShape { n_experts: experts.len(), matrices };
    let held = gpu.reserve_experts(&[Some(shape)], room as u64 * slot).expect("memory");
    assert_eq!(held, [room]);
}

/// The same, and lets the first of them be there.
pub(crate) fn hold(gpu: &mut Gpu, experts: &[LoadedExpert], room: usize, per_buffer: usize) {
    make_room(gpu, experts, room, per_buffer);
    for expert in &experts[..room] {
        gpu.hold_expert(0, expert).expect("there is room");
    }
}

/// The rows of activations.
pub(crate) fn download(device: &Device, activations: &Activations) -> Vec<f32> {
    let mut bytes = Vec::new();
    device.read(&activations.buffer, 0, activations.bytes(), &mut bytes);
    device.check().expect("the device did not fail");
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Checks a kernel in both forms of its sums and translates it to the languages of all interfaces.
#[track_caller]
pub(crate) fn translate(source: &KernelSource<'_>) {
    for subgroups in [true, false] {
        let text = source.text(subgroups);
        let what = format!("{} (subgroups: {subgroups})", source.name);
        let capabilities = naga::valid::Capabilities::IMMEDIATES
            | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | naga::valid::Capabilities::SUBGROUP
            | naga::valid::Capabilities::SUBGROUP_BARRIER;
        let (module, info) = checked(&text, &what, capabilities);
        to_spirv(&module, &info).unwrap_or_else(|error| panic!("{what}, SPIR-V: {error}"));
        to_msl(&module, &info).unwrap_or_else(|error| panic!("{what}, MSL: {error}"));
        to_hlsl(&module, &info).unwrap_or_else(|error| panic!("{what}, HLSL: {error}"));
    }
}

/// The same of a kernel with cooperative matrices, to the languages that have them.
#[track_caller]
pub(crate) fn translate_matrices(source: &KernelSource<'_>) {
    let what = source.name;
    let text = source.text(true);
    let (module, info) = checked(&text, what, naga::valid::Capabilities::all());
    to_spirv(&module, &info).unwrap_or_else(|error| panic!("{what}, SPIR-V: {error}"));
    to_msl(&module, &info).unwrap_or_else(|error| panic!("{what}, MSL: {error}"));
}

#[track_caller]
fn checked(
    text: &str,
    what: &str,
    capabilities: naga::valid::Capabilities,
) -> (naga::Module, Info) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(text)));
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(text)));
    (module, info)
}

type Info = naga::valid::ModuleInfo;

fn to_spirv(module: &naga::Module, info: &Info) -> Result<(), naga::back::spv::Error> {
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(module, info, &options, None).map(|_| ())
}

fn to_msl(module: &naga::Module, info: &Info) -> Result<(), naga::back::msl::Error> {
    let options = naga::back::msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        ..Default::default()
    };
    let pipeline = naga::back::msl::PipelineOptions::default();
    naga::back::msl::write_string(module, info, &options, &pipeline).map(|_| ())
}

fn to_hlsl(module: &naga::Module, info: &Info) -> Result<(), naga::back::hlsl::Error> {
    let options = naga::back::hlsl::Options {
        shader_model: naga::back::hlsl::ShaderModel::V6_2,
        fake_missing_bindings: true,
        // Without a place for immediates the writer panics.
        immediates_target: Some(naga::back::hlsl::BindTarget::default()),
        ..Default::default()
    };
    let pipeline = naga::back::hlsl::PipelineOptions::default();
    let mut text = String::new();
    naga::back::hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map(|_| ())
}
