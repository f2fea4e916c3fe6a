//! Kernels on whatever GPU there is, software too, held to the meaning of formats and formulas.

#[path = "../../compute/tests/it/support.rs"]
#[expect(dead_code, reason = "shared with the tests of the CPU backend")]
mod support;

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::Matrix;

use crate::buffers::Activations;
use crate::device::{Device, DeviceOptions, adapters};
use crate::gpu::Gpu;
use support::{Random, assert_close, matrix};

/// Backends on the first adapter: with subgroup operations and without.
pub(crate) fn gpus() -> Vec<Gpu> {
    let adapters = adapters();
    let adapter = adapters.first().expect(
        "the tests need a GPU or a software one: install mesa-vulkan-drivers and libvulkan1",
    );
    let forms = [true, false].map(|subgroups| DeviceOptions { subgroups, checked: true });
    let open = |options| Gpu::new(Device::open(adapter, options).expect("the adapter opens"));
    forms.map(open).into()
}

pub(crate) fn upload(gpu: &Gpu, values: &[f32], width: usize) -> Activations {
    let mut buffer = Activations::new(&gpu.device, values.len() / width, width);
    buffer.set_rows(values.len() / width);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    gpu.device.write(&buffer.buffer, 0, &bytes);
    buffer
}

pub(crate) fn download(gpu: &mut Gpu, buffer: &Activations) -> Vec<f32> {
    let mut out = Vec::new();
    gpu.download_values(buffer, &mut out);
    gpu.device.check().expect("the device works");
    out
}

/// Formats that the device knows and whose groups fit `cols`.
fn formats(cols: usize) -> Vec<Format> {
    let floats = [FloatType::F32, FloatType::F16, FloatType::Bf16].map(Format::Float);
    let affine = [(4, 64, FloatType::Bf16), (8, 32, FloatType::F16), (2, 128, FloatType::F32)]
        .into_iter()
        .chain([(3, 64, FloatType::Bf16), (5, 32, FloatType::Bf16), (6, 64, FloatType::F16)])
        .map(|(bits, group, scales)| Format::Affine(Affine { bits, group, scales }));
    let blocks =
        [BlockType::Q8_0, BlockType::Q4K, BlockType::Q5K, BlockType::Q6K, BlockType::Mxfp4];
    let all = floats.into_iter().chain(affine).chain(blocks.map(Format::Block));
    all.filter(|format| cols.is_multiple_of(format.group())).collect()
}

/// `x W^T` in `f64`.
fn expected(x: &[f32], weights: &Matrix) -> Vec<f32> {
    let cols = weights.cols;
    let row_bytes = weights.format.row_bytes(cols);
    let scale_bytes = weights.format.scale_row_bytes(cols);
    let part = |bytes: &[u8], row: usize, len: usize| bytes[row * len..(row + 1) * len].to_vec();
    let rows: Vec<Vec<f32>> = (0..weights.rows)
        .map(|row| {
            let mut out = vec![0.0; cols];
            let scales = part(weights.scales(), row, scale_bytes);
            let biases = part(weights.biases(), row, scale_bytes);
            let data = part(weights.data(), row, row_bytes);
            checkpoint::dequantize_row(weights.format, &data, &scales, &biases, &mut out);
            out
        })
        .collect();
    let dot = |x: &[f32], w: &[f32]| -> f32 {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
    };
    x.chunks_exact(cols).flat_map(|x| rows.iter().map(|w| dot(x, w)).collect::<Vec<_>>()).collect()
}

#[test]
fn products_of_every_format_are_those_of_their_values() {
    for mut gpu in gpus() {
        for (rows, cols) in [(5, 36), (35, 768)] {
            for format in formats(cols) {
                let mut random = Random::new(7);
                let weights = matrix(&mut random, format, rows, cols);
                let x = random.numbers(11 * cols);
                let on_device = gpu.put(&weights).expect("the format is known");
                let buffer = upload(&gpu, &x, cols);
                let mut out = Activations::new(&gpu.device, 11, rows);
                gpu.multiply(&buffer, &on_device, &mut out);
                let together = download(&mut gpu, &out);
                let what = format!("{format} {rows} x {cols}");
                let scale = expected(&x, &weights).iter().fold(1.0_f32, |a, b| a.max(b.abs()));
                assert_close(&together, &expected(&x, &weights), 2e-6 * scale, &what);
                // Fewer rows at a time give the same bits.
                for (begin, len) in [(0, 1), (3, 3), (10, 1)] {
                    let buffer = upload(&gpu, &x[begin * cols..(begin + len) * cols], cols);
                    gpu.multiply(&buffer, &on_device, &mut out);
                    let apart = download(&mut gpu, &out);
                    assert_eq!(apart, together[begin * rows..(begin + len) * rows], "{what}");
                }
            }
        }
    }
}

#[test]
fn rows_of_the_embedding_are_the_stored_ones() {
    for mut gpu in gpus() {
        for format in formats(256) {
            let mut random = Random::new(8);
            let table = matrix(&mut random, format, 9, 256);
            let identity: Vec<f32> = (0..256 * 256).map(|i| f32::from(i % 257 == 0)).collect();
            let values = expected(&identity, &table);
            let on_device = gpu.put(&table).expect("the format is known");
            let mut out = Activations::new(&gpu.device, 2, 256);
            gpu.embed_rows(&on_device, &[8, 3], &mut out);
            let rows = download(&mut gpu, &out);
            for (column, value) in rows.iter().enumerate() {
                let token = if column < 256 { 8 } else { 3 };
                let expected = values[column % 256 * 9 + token];
                assert!((value - expected).abs() <= 1e-6 * expected.abs(), "{format} {column}");
            }
        }
    }
}
