//! Kernels on whatever GPU there is, software too, held to the meaning of formats and formulas.

mod experts;

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::{Backend, Cpu, CpuOptions, ExpertWeights, Matrix, RouterSpec};

use crate::buffers::Activations;
use crate::gemm::{self, Tile};
use crate::gpu::Gpu;
use crate::product::{Form, Items, Of, Operand, Products, Tuning, with_embed, with_source};
use crate::testing::{
    Random, assert_close, devices, download, from_host, host, matrix, name, translate, upload,
};

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

/// The same to be tested on one of [`devices`]: decoding does not depend on how teams add and exchange, so on the second, which does that
/// otherwise, one format of each way to hold activations is enough.
fn formats_on(device: usize, cols: usize) -> Vec<Format> {
    let affine = |bits, group, scales| Format::Affine(Affine { bits, group, scales });
    let few = [
        Format::Float(FloatType::F32),
        affine(4, 64, FloatType::Bf16),
        affine(2, 128, FloatType::F32),
        Format::Block(BlockType::Q8_0),
    ];
    let mut all = formats(cols);
    all.retain(|format| device == 0 || few.contains(format));
    all
}

/// `x W^T` in `f64`.
pub(crate) fn expected(x: &[f32], weights: &Matrix) -> Vec<f32> {
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

/// The same with activations in eight bits, as the CPU has it.
fn expected_in_eight_bits(x: &[f32], weights: &Matrix) -> Vec<f32> {
    let mut cpu = Cpu::new(CpuOptions::default()).expect("threads");
    let mut out = cpu.buffer(x.len() / weights.cols, weights.rows);
    let x = host(&mut cpu, x, weights.cols);
    cpu.project(&x, &[weights], &mut [&mut out]);
    from_host(&mut cpu, &out)
}

#[test]
fn products_of_every_format_are_those_of_their_values() {
    products_are_those(true, expected);
}

#[test]
fn products_in_eight_bits_are_those_of_the_cpu() {
    products_are_those(false, expected_in_eight_bits);
}

fn products_are_those(is_precise: bool, expected: fn(&[f32], &Matrix) -> Vec<f32>) {
    for (index, device) in devices().into_iter().enumerate() {
        let mut gpu = Gpu::new(device.clone());
        let tuning = Tuning { few_workgroups: 0, ..Tuning::of(&device) };
        gpu.products = Products::new(tuning).with_precision(is_precise);
        for (rows, cols) in [(5, 36), (35, 768)] {
            for format in formats_on(index, cols) {
                let mut random = Random::new(7);
                let weights = matrix(&mut random, format, rows, cols);
                let x = random.numbers(27 * cols);
                let on_device = gpu.put(&weights).expect("the format is known");
                let buffer = upload(&device, &x, cols);
                let mut out = Activations::new(&device, 27, rows);
                gpu.project(&buffer, &[&on_device], &mut [&mut out]);
                let together = download(&device, &out);
                let what = format!("{format} {rows} x {cols}");
                let expected = expected(&x, &weights);
                let scale = expected.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
                assert_close(&together, &expected, 2e-6 * scale, &what);
                // Fewer rows at a time give the same bits, by other kernels.
                for (begin, len) in [(0, 1), (3, 3), (5, 8), (26, 1)] {
                    let buffer = upload(&device, &x[begin * cols..(begin + len) * cols], cols);
                    gpu.project(&buffer, &[&on_device], &mut [&mut out]);
                    let apart = download(&device, &out);
                    assert_eq!(apart, together[begin * rows..(begin + len) * rows], "{what}");
                }
            }
        }
    }
}

/// A value that is no number, or infinite, shows in all products of its row, and in no other row.
#[test]
fn values_that_are_not_finite_show() {
    let (rows, cols, n_x) = (5, 96, 20);
    let mut random = Random::new(31);
    let weights = matrix(&mut random, Format::Block(BlockType::Q8_0), rows, cols);
    let mut x = random.numbers(n_x * cols);
    x[3 * cols + 40] = f32::NAN;
    x[7 * cols + 95] = f32::NEG_INFINITY;
    for device in devices() {
        let mut gpu = Gpu::new(device.clone());
        let weights = gpu.put(&weights).expect("the format is known");
        let mut of = |first: usize, n: usize| {
            let x = upload(&device, &x[first * cols..(first + n) * cols], cols);
            let mut out = gpu.buffer(n, rows);
            gpu.project(&x, &[&weights], &mut [&mut out]);
            download(&device, &out)
        };
        let together = of(0, n_x);
        for (row, out) in together.chunks_exact(rows).enumerate() {
            let is_odd = [3, 7].contains(&row);
            assert!(out.iter().all(|y| y.is_finite() != is_odd), "row {row}: {out:?}");
            assert!(of(row, 1).iter().all(|y| y.is_finite() != is_odd), "row {row} alone");
        }
    }
}

/// Few rows are multiplied with several matrices a dispatch, many with one.
#[test]
fn several_matrices_are_multiplied_at_once_with_the_same_bits() {
    let affine = |bits| Format::Affine(Affine { bits, group: 32, scales: FloatType::Bf16 });
    let [q8, mxfp4] = [BlockType::Q8_0, BlockType::Mxfp4].map(Format::Block);
    let f32 = Format::Float(FloatType::F32);
    multiply_at_once(q8, f32, [3, 8]);
    multiply_at_once(f32, affine(4), [3, 8]);
    multiply_at_once(mxfp4, q8, [2, 8]);
    // Floats and bytes have no input in common, nor have bytes in unlike orders.
    multiply_at_once(affine(8), affine(4), [3, 12]);
}

fn multiply_at_once(one: Format, other: Format, [of_few, of_many]: [u64; 2]) {
    // More of a format than a dispatch takes, a row alone, and others between them.
    let shapes = [(one, 70), (other, 33), (one, 1), (one, 64), (other, 1), (one, 35), (one, 8)];
    let cols = 96;
    let mut random = Random::new(11);
    let stored = shapes.map(|(format, rows)| matrix(&mut random, format, rows, cols));
    let [gate, up] = [0; 2].map(|_| matrix(&mut random, one, 64, cols));
    let down = matrix(&mut random, one, cols, 64);
    let x = random.numbers(11 * cols);
    for device in devices() {
        let mut gpu = Gpu::new(device.clone());
        gpu.products = Products::new(Tuning { few_workgroups: 0, ..Tuning::of(&device) });
        let put = |matrix: &Matrix| gpu.put(matrix).expect("the format is known");
        let weights = stored.each_ref().map(put);
        let shared = ExpertWeights { gate: put(&gate), up: put(&up), down: put(&down) };
        let all: Vec<_> = weights.iter().collect();
        let mut of_rows = |n_rows: usize| {
            let x = upload(&device, &x[..n_rows * cols], cols);
            let mut outs = shapes.map(|(_, rows)| gpu.buffer(n_rows, rows));
            let before = gpu.handoffs().dispatches;
            gpu.project(&x, &all, &mut outs.each_mut());
            let n_dispatches = gpu.handoffs().dispatches - before;
            let mut out = gpu.buffer(n_rows, cols);
            gpu.swiglu(&x, &shared, &mut out);
            let mut values: Vec<_> = outs.iter().map(|out| download(&device, out)).collect();
            values.push(download(&device, &out));
            (values, n_dispatches)
        };
        let (apart, n_apart) = of_rows(11);
        for n_rows in [1, 3, 4] {
            let (together, n_together) = of_rows(n_rows);
            assert_eq!((n_together, n_apart), (of_few, of_many), "dispatches");
            for (together, apart) in together.iter().zip(&apart) {
                let what = format!("{one} and {other}, {}", name(&device));
                assert_eq!(*together, apart[..together.len()], "{what}");
            }
        }
    }
}

/// Units that are read at once are added as they are one after the other, even where not all are there.
#[test]
fn units_that_are_read_ahead_leave_no_trace() {
    let formats = [
        Format::Block(BlockType::Q8_0),
        Format::Affine(Affine { bits: 4, group: 32, scales: FloatType::F16 }),
    ];
    // Some more units than the lanes have; more than a tile.
    let widths = [1312, 3104];
    for (format, cols) in formats.into_iter().flat_map(|f| widths.map(|cols| (f, cols))) {
        let mut random = Random::new(14);
        let stored = [5, 70].map(|rows| matrix(&mut random, format, rows, cols));
        let x = random.numbers(cols);
        for device in devices() {
            let all = [(1, 64, u32::MAX), (6, 128, 1), (12, 64, u32::MAX), (12, 64, 2)];
            let [one, two, four, looped] = all.map(|(ahead, held, most_workgroups)| {
                let tuning = Tuning { ahead, held, rows: 1, most_workgroups, ..Tuning::default() };
                let mut gpu = Gpu::new(device.clone());
                gpu.products = Products::new(tuning);
                let weights = stored.each_ref().map(|m| gpu.put(m).expect("the format is known"));
                let mut outs = [5, 70].map(|rows| gpu.buffer(1, rows));
                let x = upload(&device, &x, cols);
                for (weights, out) in weights.iter().zip(&mut outs) {
                    gpu.project(&x, &[weights], &mut [out]);
                }
                let loops = gpu.products.kernels.keys().any(|form| form.loops);
                let is_asked = most_workgroups < 5 && cols <= 32 * held as usize;
                assert_eq!(loops, is_asked, "workgroups that go on");
                outs.map(|out| download(&device, &out))
            });
            assert_eq!(one, two, "{format} of {cols}, {}", name(&device));
            assert_eq!(one, four, "{format} of {cols}, {}", name(&device));
            assert_eq!(one, looped, "{format} of {cols}, {}", name(&device));
        }
    }
}

/// Products of single rows with one matrix, with pairs, and with experts, cut in every way that `tune.rs` may find best.
#[test]
fn every_cut_gives_the_same_bits() {
    let (rows, cols) = (40, 1056);
    let affine = Format::Affine(Affine { bits: 4, group: 32, scales: FloatType::F16 });
    // How units are cut is one thing, how teams add another: the second device tells whether they meet.
    let formats = [Format::Block(BlockType::Q8_0), affine];
    for (device, formats) in devices().into_iter().zip([&formats[..], &formats[1..]]) {
        for &format in formats {
            let mut random = Random::new(21);
            // Gate above up, in one buffer.
            let both = matrix(&mut random, format, 2 * rows, cols);
            let gpu = Gpu::new(device.clone());
            let both = gpu.put(&both).expect("the format is known");
            let [codes, scales, biases] =
                crate::formats::part_bytes(format, rows, cols).map(|bytes| (bytes / 4) as u32);
            let [first, second, third] = both.parts;
            let all = Operand::of(&both);
            let up = [first + codes, second + scales, third + biases];
            let pair = Operand { rows, up: Some(up), ..all };
            let x = upload(&device, &random.numbers(cols), cols);
            let table = [0, 1, 0].map(u32::to_le_bytes).concat();
            let table = device.buffer_with(&table);
            let of = |tuning: Tuning| {
                let mut products = Products::new(tuning);
                let [mut one, mut gated] =
                    [2 * rows, rows].map(|width| Activations::new(&device, 1, width));
                products.multiply(&device, &x, &mut [(all, &mut one)]);
                let mut values = download(&device, &one);
                // Both of a dispatch, one of them a pair.
                products.multiply(&device, &x, &mut [(all, &mut one), (pair, &mut gated)]);
                values.extend(download(&device, &one));
                values.extend(download(&device, &gated));
                products.multiply(&device, &x, &mut [(pair, &mut gated)]);
                values.extend(download(&device, &gated));
                let items = Items { table: &table, begin: 0, len: 1, n_x: 1 };
                products.multiply_experts(&device, [(pair, items, &gated)], 1, &x);
                values.extend(download(&device, &gated));
                values
            };
            let usual = Tuning { few_workgroups: 0, ..Tuning::of(&device) };
            let expected = of(usual);
            let (apart, together) = expected[..4 * rows].split_at(2 * rows);
            assert_eq!(apart, together, "{format}, {}", name(&device));
            for tuning in [
                Tuning { workgroup: 64, rows: 4, fused_rows: 2, ahead: 24, ..usual },
                Tuning { workgroup: 256, fused_rows: 2, ahead: 24, most_workgroups: 1, ..usual },
                Tuning { rows: 1, ahead: 12, most_workgroups: 2, ..usual },
                Tuning { ahead: 6, held: 128, most_workgroups: 1, ..usual },
            ] {
                assert_eq!(of(tuning), expected, "{format}, {tuning}, {}", name(&device));
            }
        }
    }
}

#[test]
fn tiles_of_every_size_give_the_bits_of_single_rows() {
    let tile = |workgroup, rows, columns| Tile { workgroup, rows, columns };
    let affine = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
    let (n_x, rows, cols) = (45, 70, 512);
    for device in devices() {
        for (format, tile) in [
            (Format::Block(BlockType::Q4K), tile(128, 4, 16)),
            (Format::Block(BlockType::Q6K), tile(64, 2, 24)),
            (affine, tile(256, 4, 16)),
        ] {
            let mut random = Random::new(9);
            let gpu = Gpu::new(device.clone());
            let weights = matrix(&mut random, format, rows, cols);
            let weights = gpu.put(&weights).expect("the format is known");
            let x = random.numbers(n_x * cols);
            let many = upload(&device, &x, cols);
            let mut out = Activations::new(&device, n_x, rows);
            let mut products = Products::new(Tuning::of(&device)).with_tile(tile);
            products.multiply(&device, &many, &mut [(Operand::of(&weights), &mut out)]);
            let together = download(&device, &out);
            for row in [0, 15, 16, 23, 24, 44] {
                let one = upload(&device, &x[row * cols..][..cols], cols);
                products.multiply(&device, &one, &mut [(Operand::of(&weights), &mut out)]);
                let expected = &together[row * rows..][..rows];
                assert_eq!(download(&device, &out), expected, "{format}, {tile:?}, row {row}");
            }
        }
    }
}

#[test]
fn models_that_kernels_cannot_compute_are_told_apart() {
    let needs = |format, cols, n_experts| {
        let matrices = vec![(Format::Float(FloatType::Bf16), 64), (format, cols)];
        crate::weights::ModelNeeds { matrices, n_experts, attention: None, delta_net: None }
    };
    assert_eq!(needs(Format::Block(BlockType::Q4K), 512, 512).problem(), None);
    let unknown = needs(Format::Block(BlockType::Iq2Xxs), 512, 512).problem();
    assert!(unknown.is_some_and(|why| why.contains("IQ2_XXS")), "a format without kernels");
    let odd = needs(Format::Float(FloatType::F32), 30, 8).problem();
    assert!(odd.is_some_and(|why| why.contains("30")), "a width that is no whole number of words");
    assert!(needs(Format::Block(BlockType::Q4K), 512, 4096).problem().is_some(), "many experts");
}

#[test]
fn rows_of_the_embedding_are_the_stored_ones() {
    for (index, device) in devices().into_iter().enumerate() {
        let mut gpu = Gpu::new(device.clone());
        for format in formats_on(index, 256) {
            let mut random = Random::new(8);
            let table = matrix(&mut random, format, 9, 256);
            let identity: Vec<f32> = (0..256 * 256).map(|i| f32::from(i % 257 == 0)).collect();
            let values = expected(&identity, &table);
            let on_device = gpu.put(&table).expect("the format is known");
            let mut out = Activations::new(&device, 2, 256);
            gpu.embed_rows(&on_device, &[8, 3], &mut out);
            let rows = download(&device, &out);
            for (column, value) in rows.iter().enumerate() {
                let token = if column < 256 { 8 } else { 3 };
                let expected = values[column % 256 * 9 + token];
                let what = format!("{format} {column}, {}", name(&device));
                // A device may take a scale that is no normal number as zero.
                let tolerance = (1e-6 * expected.abs()).max(4.0 * f32::MIN_POSITIVE);
                assert!((value - expected).abs() <= tolerance, "{what}: {value}, not {expected}");
            }
        }
    }
}

#[test]
fn kernels_translate_to_every_language() {
    crate::expert_kernels::with_gated(translate);
    crate::expert_kernels::with_place(translate);
    crate::groups::with_source(16, translate);
    for order in [1, 2, 4] {
        gemm::with_quantize(order, translate);
    }
    let q8 = Format::Block(BlockType::Q8_0);
    for format in formats(256) {
        with_embed(format, translate);
        for (is_fused, is_grouped) in [(false, false), (true, false), (true, true)] {
            for is_precise in [false, true] {
                let form = gemm::Form { format, is_precise, is_fused, is_grouped };
                gemm::with_source(form, Tile { workgroup: 64, rows: 4, columns: 16 }, translate);
            }
        }
        for n_x in [1, 8] {
            let usual = Form {
                format,
                is_precise: false,
                n_x,
                is_fused: true,
                of: Of::Experts,
                team_rows: 1,
                ahead: 1,
                held: 64,
                loops: false,
            };
            let choice = Of::Choice(RouterSpec { top_k: 10, normalise: n_x == 1 });
            for of in [Of::One, Of::Each(None), Of::Experts, choice] {
                let ahead = if n_x == 1 { 4 } else { 1 };
                let looping = Form { ahead: 2, held: 16 * n_x as u32, loops: true, ..usual };
                for form in [usual, Form { team_rows: 2, ahead, ..usual }, looping] {
                    for (is_fused, is_precise) in [(false, false), (true, false), (true, true)] {
                        with_source(
                            Form { of, is_fused, is_precise, ..form },
                            Tuning::default(),
                            translate,
                        );
                    }
                }
            }
            for workgroup in [64, 256] {
                let tuning = Tuning { workgroup, ..Tuning::default() };
                with_source(Form { team_rows: 4, ..usual }, tuning, translate);
            }
            // Every format by its other names, beside another and beside itself: names must not meet.
            let of = Of::Each(Some(format));
            for (first, is_precise) in [(q8, false), (format, false), (q8, true)] {
                let form = Form { format: first, is_precise, of, ..usual };
                with_source(form, Tuning::default(), translate);
            }
        }
    }
}
