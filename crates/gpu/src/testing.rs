//! What tests of kernels share: devices, random numbers, the reference, translation.

use std::sync::Arc;

use checkpoint::{FloatType, Format, encode_floats};
use compute::memory::Arena;
use compute::{Backend, HostBuffer, Matrix, Reference};

use crate::buffers::Activations;
use crate::device::{Device, DeviceOptions, adapters};
use crate::kernel::KernelSource;

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
        let options = DeviceOptions { subgroups, checked: true };
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

/// A small generator of reproducible numbers (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Numbers in [-1, 1).
    pub(crate) fn numbers(&mut self, len: usize) -> Vec<f32> {
        let numbers = (0..len).map(|_| {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
            bits as f32 / (1 << 23) as f32 - 1.0
        });
        numbers.collect()
    }
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

/// The rows of activations.
pub(crate) fn download(device: &Device, activations: &Activations) -> Vec<f32> {
    let mut bytes = Vec::new();
    device.read(&activations.buffer, 0, activations.bytes(), &mut bytes);
    device.check().expect("the device did not fail");
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A buffer of the reference with the given rows: rows of a plain matrix are the way into it.
pub(crate) fn host(reference: &mut Reference, values: &[f32], width: usize) -> HostBuffer {
    let rows = values.len() / width;
    let mut bytes = Vec::new();
    encode_floats(FloatType::F32, values, &mut bytes);
    let mut arena = Arena::new(bytes.len()).expect("memory");
    let mut block = arena.take(bytes.len()).expect("it was sized for it");
    block.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
    let format = Format::Float(FloatType::F32);
    let table = Matrix::new(format, (rows, width), Arc::new(block), [0; 3]);
    let mut buffer = reference.buffer(rows, width);
    let tokens: Vec<u32> = (0..rows as u32).collect();
    reference.embed(&table, &tokens, &mut buffer);
    buffer
}

#[track_caller]
pub(crate) fn assert_close(ours: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}: lengths");
    for (index, (a, b)) in ours.iter().zip(expected).enumerate() {
        let allowed = tolerance * b.abs().max(1.0);
        assert!((a - b).abs() <= allowed, "{what}: {a} instead of {b} at {index}");
    }
}

/// Checks a kernel in both forms of its sums and translates it to the languages of all interfaces.
#[track_caller]
pub(crate) fn translate(source: &KernelSource<'_>) {
    for subgroups in [true, false] {
        let text = source.text(subgroups);
        let what = format!("{} (subgroups: {subgroups})", source.name);
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(&text)));
        let capabilities = naga::valid::Capabilities::IMMEDIATES
            | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | naga::valid::Capabilities::SUBGROUP
            | naga::valid::Capabilities::SUBGROUP_BARRIER;
        let mut validator =
            naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
        validator
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all());
        let info = validator
            .validate(&module)
            .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(&text)));
        to_spirv(&module, &info).unwrap_or_else(|error| panic!("{what}, SPIR-V: {error}"));
        to_msl(&module, &info).unwrap_or_else(|error| panic!("{what}, MSL: {error}"));
        to_hlsl(&module, &info).unwrap_or_else(|error| panic!("{what}, HLSL: {error}"));
    }
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
