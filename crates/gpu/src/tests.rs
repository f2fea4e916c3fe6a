//! Kernels on whatever GPU there is, software too, held to the meaning of formats and formulas.

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::{
    Backend, Cpu, CpuOptions, ExpertShape, ExpertUses, ExpertWeights, HeldMoe, LoadedExpert,
    Matrix, MoeOutputs, NextNorm, Reference, RouteAhead, RouterSpec, Routing, SharedExpert,
};

use crate::buffers::Activations;
use crate::gemm::{self, Tile};
use crate::gpu::Gpu;
use crate::host::Costs;
use crate::product::{Form, Of, Operand, Products, Tuning, with_embed, with_source};
use crate::testing::{
    Random, assert_close, devices, download, host, matrix, name, translate, upload,
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

#[test]
fn products_of_every_format_are_those_of_their_values() {
    for device in devices() {
        let mut gpu = Gpu::new(device.clone());
        gpu.products = Products::new(Tuning { few_workgroups: 0, ..Tuning::of(&device) });
        for (rows, cols) in [(5, 36), (35, 768)] {
            for format in formats(cols) {
                let mut random = Random::new(7);
                let weights = matrix(&mut random, format, rows, cols);
                let x = random.numbers(27 * cols);
                let on_device = gpu.put(&weights).expect("the format is known");
                let buffer = upload(&device, &x, cols);
                let mut out = Activations::new(&device, 27, rows);
                gpu.project(&buffer, &[&on_device], &mut [&mut out]);
                let together = download(&device, &out);
                let what = format!("{format} {rows} x {cols}");
                let scale = expected(&x, &weights).iter().fold(1.0_f32, |a, b| a.max(b.abs()));
                assert_close(&together, &expected(&x, &weights), 2e-6 * scale, &what);
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

/// Few rows are multiplied with several matrices a dispatch, many with one.
#[test]
fn several_matrices_are_multiplied_at_once_with_the_same_bits() {
    let affine = |bits| Format::Affine(Affine { bits, group: 32, scales: FloatType::Bf16 });
    multiply_at_once(Format::Block(BlockType::Q8_0), Format::Float(FloatType::F32));
    // Codes of unlike widths stand at unlike places.
    multiply_at_once(affine(8), affine(4));
}

fn multiply_at_once(one: Format, other: Format) {
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
            assert_eq!((n_together, n_apart), (2, 7), "dispatches");
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
            let [one, two, four] = [(1, 64), (6, 128), (12, 64)].map(|(ahead, held)| {
                let tuning = Tuning { ahead, held, rows: 1, ..Tuning::default() };
                let mut gpu = Gpu::new(device.clone());
                gpu.products = Products::new(tuning);
                let weights = stored.each_ref().map(|m| gpu.put(m).expect("the format is known"));
                let mut outs = [5, 70].map(|rows| gpu.buffer(1, rows));
                let x = upload(&device, &x, cols);
                gpu.project(&x, &weights.each_ref(), &mut outs.each_mut());
                outs.map(|out| download(&device, &out))
            });
            assert_eq!(one, two, "{format} of {cols}, {}", name(&device));
            assert_eq!(one, four, "{format} of {cols}, {}", name(&device));
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
            let mut products = Products::new(Tuning::default()).with_tile(tile);
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
    for device in devices() {
        let mut gpu = Gpu::new(device.clone());
        for format in formats(256) {
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
                assert!((value - expected).abs() <= 1e-6 * expected.abs(), "{format} {column}");
            }
        }
    }
}

#[test]
fn kernels_translate_to_every_language() {
    crate::expert_kernels::with_gated(translate);
    crate::expert_kernels::with_place(translate);
    crate::groups::with_source(16, translate);
    let q8 = Format::Block(BlockType::Q8_0);
    for format in formats(256) {
        with_embed(format, translate);
        for (is_fused, is_grouped) in [(false, false), (true, false), (true, true)] {
            let form = gemm::Form { format, is_fused, is_grouped };
            gemm::with_source(form, Tile { workgroup: 64, rows: 4, columns: 16 }, translate);
        }
        for n_x in [1, 8] {
            let choice = Of::Choice(RouterSpec { top_k: 10, normalise: n_x == 1 });
            for (is_fused, of) in [Of::One, Of::Each(None), Of::Experts, choice]
                .into_iter()
                .flat_map(|of| [(false, of), (true, of)])
            {
                for (team_rows, ahead, held) in
                    [(1, 1, 64), (2, if n_x == 1 { 4 } else { 1 }, 64), (1, 2, 16 * n_x as u32)]
                {
                    let form = Form { format, n_x, is_fused, of, team_rows, ahead, held };
                    with_source(form, Tuning::default(), translate);
                }
            }
            // Every format by its other names, beside another and beside itself: names must not meet.
            let of = Of::Each(Some(format));
            for first in [q8, format] {
                let (format, team_rows, ahead, held) = (first, 1, 1, 64);
                let form = Form { format, n_x, is_fused: true, of, team_rows, ahead, held };
                with_source(form, Tuning::default(), translate);
            }
        }
    }
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

#[test]
fn experts_agree_wherever_they_are() {
    let affine = |bits| Format::Affine(Affine { bits, group: 64, scales: FloatType::Bf16 });
    let block = Format::Block;
    let mixtures = [
        [affine(4); 3],
        [block(BlockType::Q4K), block(BlockType::Q4K), block(BlockType::Q8_0)],
        [affine(4), affine(2), affine(3)],
    ];
    for formats in mixtures {
        let mut random = Random::new(5);
        let loaded = experts(&mut random, 6, formats);
        let (rows, top_k) = (11, 3);
        let x: Vec<f32> = random.numbers(rows * 256).iter().map(|x| 0.1 * x).collect();
        let chosen = (0..rows as u32).flat_map(|row| [row % 4, 4, 5]);
        let weights = vec![0.5; rows * top_k];
        let routing = Routing { top_k, experts: chosen.collect(), weights };
        let mut uses = ExpertUses::new(6);
        uses.group(&routing);
        let mut reference = Reference::new();
        let on_host = host(&mut reference, &x, 256);
        let mut out = reference.buffer(rows * top_k, 256);
        reference.set_rows(&mut out, rows * top_k);
        reference.experts(0, &on_host, &loaded, &uses, &mut out);
        let mut expected = Vec::new();
        reference.download(&out, &mut expected);
        let scale = expected.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
        for device in devices() {
            // Room for none, for some, and for all of the experts, in one buffer and in several.
            let mut all = Vec::new();
            for (room, per_buffer) in [(0, 6), (2, 6), (6, 6), (5, 2), (6, 4), (6, 1)] {
                let mut gpu = Gpu::new(device.clone());
                let matrices = crate::experts::shapes(&loaded[0].weights);
                let slot =
                    crate::experts::ExpertLayout::new(matrices).expect("known formats").bytes;
                let shape = ExpertShape { n_experts: 6, matrices };
                gpu.slot_buffer_bytes = per_buffer * slot;
                let held = gpu.reserve_experts(&[Some(shape)], room * slot).expect("memory");
                assert_eq!(held, [room as usize]);
                let on_device = upload(&device, &x, 256);
                // The second time some or all are there.
                for pass in 0..3 {
                    let mut uses = uses.clone();
                    let mut out = gpu.buffer(rows * top_k, 256);
                    gpu.set_rows(&mut out, rows * top_k);
                    let n_held = gpu.take_held(0, &on_device, &mut uses, &mut out);
                    let is_left = |expert: &&LoadedExpert| uses.distinct().contains(&expert.index);
                    let left: Vec<_> = loaded.iter().filter(is_left).cloned().collect();
                    assert_eq!(n_held == 0, pass == 0 || room == 0, "pass {pass}, room {room}");
                    assert_eq!(gpu.holds_all(0), room == 6 && pass > 0);
                    gpu.experts(0, &on_device, &left, &uses, &mut out);
                    let what = format!("{}, room {room}, {per_buffer} each, {pass}", name(&device));
                    let values = download(&device, &out);
                    assert_close(&values, &expected, 1e-5 * scale, &what);
                    all.push(values);
                }
            }
            assert!(all.iter().all(|one| *one == all[0]), "where an expert is leaves no trace");
        }
    }
}

/// Few rows: experts are looked up on the device before the host knows who was chosen.
#[test]
fn experts_chosen_on_the_device_are_computed_at_once() {
    let (rows, top_k, n_experts) = (3, 4, 8);
    let mut random = Random::new(9);
    let format = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
    let loaded = experts(&mut random, n_experts, [format; 3]);
    let x: Vec<f32> = random.numbers(rows * 256).iter().map(|x| 0.1 * x).collect();
    let [logits, later] = [0; 2].map(|_| random.numbers(rows * n_experts as usize));
    let spec = RouterSpec { top_k, normalise: true };
    let mut reference = Reference::new();
    let mut expected = [Routing::default(), Routing::default()];
    for (values, routing) in [&logits, &later].into_iter().zip(&mut expected) {
        let logits = host(&mut reference, values, n_experts as usize);
        reference.route(&logits, spec, routing);
    }
    for device in devices() {
        let mut all: Vec<Vec<f32>> = Vec::new();
        for (room, per_buffer) in [(0, 8), (3, 8), (5, 2), (8, 3), (8, 8)] {
            let mut gpu = Gpu::new(device.clone());
            let matrices = crate::experts::shapes(&loaded[0].weights);
            let slot = crate::experts::ExpertLayout::new(matrices).expect("known formats").bytes;
            gpu.slot_buffer_bytes = per_buffer * slot;
            let shape = ExpertShape { n_experts: n_experts as usize, matrices };
            gpu.reserve_experts(&[Some(shape)], room * slot).expect("memory");
            for expert in &loaded[..room as usize] {
                gpu.hold_expert(0, expert).expect("there is room");
            }
            let x = upload(&device, &x, 256);
            let [here, next] = [&logits, &later].map(|l| upload(&device, l, n_experts as usize));
            let mut out = gpu.buffer(rows * top_k, 256);
            gpu.set_rows(&mut out, rows * top_k);
            let waits = gpu.handoffs().waits;
            let [mut routing, mut predicted] = [Routing::default(), Routing::default()];
            let next = Some((&next, spec));
            let route =
                RouteAhead { layer: 0, logits: (&here, spec), next, x: &x, routed: &mut out };
            let mut n_meanwhile = 0;
            let mut meanwhile = |_: &mut Gpu| n_meanwhile += 1;
            gpu.route_ahead(route, &mut meanwhile, [&mut routing, &mut predicted]);
            assert_eq!((gpu.handoffs().waits - waits, n_meanwhile), (1, 1));
            for (ours, expected) in [&routing, &predicted].into_iter().zip(&expected) {
                assert_eq!(ours.experts, expected.experts);
                assert_close(&ours.weights, &expected.weights, 1e-6, "weights");
            }
            let mut uses = ExpertUses::new(n_experts as usize);
            uses.group(&routing);
            let is_held = |&&expert: &&u32| (expert as usize) < room as usize;
            let held = uses.distinct().iter().filter(is_held);
            let held: usize = held.map(|&expert| uses.of(expert).len()).sum();
            assert_eq!(gpu.take_held(0, &x, &mut uses, &mut out), held, "room {room}");
            let left: Vec<_> =
                uses.distinct().iter().map(|&expert| loaded[expert as usize].clone()).collect();
            gpu.experts(0, &x, &left, &uses, &mut out);
            all.push(download(&device, &out));
        }
        assert!(all.iter().all(|one| *one == all[0]), "{}: bits", name(&device));
    }
}

/// A layer that is held as a whole: router, shared expert, experts, sum and norm without the host.
#[test]
fn layers_that_are_held_agree() {
    let (top_k, n_experts, hidden) = (3, 6, 256);
    let affine_of = |bits| Format::Affine(Affine { bits, group: 64, scales: FloatType::Bf16 });
    let (affine, affine_8) = (affine_of(4), affine_of(8));
    let q4k = Format::Block(BlockType::Q4K);
    let f32 = Format::Float(FloatType::F32);
    // Gate and up alike or not, in one buffer or in several; the shared expert stored otherwise than the
    // router, or not there.
    let cases = [
        ([q4k, q4k, affine], 6, affine_8, Some((128, affine)), false),
        ([q4k, affine, affine], 4, f32, None, true),
    ];
    for (formats, per_buffer, router_format, shared_expert, normalise) in cases {
        let mut random = Random::new(13);
        let loaded = experts(&mut random, n_experts, formats);
        let mut small = |format, rows, cols| matrix(&mut random, format, rows, cols);
        let router = small(router_format, n_experts as usize, hidden);
        let gate = small(router_format, 1, hidden);
        let shared = shared_expert.map(|(width, format)| ExpertWeights {
            gate: small(format, width, hidden),
            up: small(format, width, hidden),
            down: small(format, hidden, width),
        });
        let [x, residual] = [0; 2]
            .map(|_| -> Vec<f32> { random.numbers(11 * hidden).iter().map(|x| 0.1 * x).collect() });
        let weight = random.numbers(hidden);
        let spec = RouterSpec { top_k, normalise };

        let mut reference = Reference::new();
        let input = host(&mut reference, &x, hidden);
        let mut sum = host(&mut reference, &residual, hidden);
        let [mut normed, mut routed] = [11, 11 * top_k].map(|rows| reference.buffer(rows, hidden));
        let mut outs = [n_experts as usize, hidden, 1].map(|width| reference.buffer(11, width));
        let [logits, shared_out, shared_gate] = &mut outs;
        reference.project(&input, &[&router, &gate], &mut [&mut *logits, &mut *shared_gate]);
        if let Some(shared) = &shared {
            reference.swiglu(&input, shared, shared_out);
        }
        let mut routing = Routing::default();
        reference.route(logits, spec, &mut routing);
        let mut uses = ExpertUses::new(n_experts as usize);
        uses.group(&routing);
        reference.set_rows(&mut routed, 11 * top_k);
        reference.experts(0, &input, &loaded, &uses, &mut routed);
        let both = shared.is_some().then_some([&*shared_out, &*shared_gate]);
        let outputs = MoeOutputs { routing: &routing, routed: &routed, shared: both };
        let norm = NextNorm { weight: &weight, eps: 1e-6, out: &mut normed };
        reference.combine_norm(&mut sum, outputs, norm);
        let mut expected = [Vec::new(), Vec::new()];
        reference.download(&sum, &mut expected[0]);
        reference.download(&normed, &mut expected[1]);

        for device in devices() {
            let mut gpu = Gpu::new(device.clone());
            let matrices = crate::experts::shapes(&loaded[0].weights);
            let slot = crate::experts::ExpertLayout::new(matrices).expect("known formats").bytes;
            gpu.slot_buffer_bytes = per_buffer * slot;
            let shape = ExpertShape { n_experts: n_experts as usize, matrices };
            gpu.reserve_experts(&[Some(shape)], u64::from(n_experts) * slot).expect("memory");
            for expert in &loaded {
                gpu.hold_expert(0, expert).expect("there is room");
            }
            let put = |matrix: &Matrix| gpu.put(matrix).expect("the format is known");
            let (router, gate) = (put(&router), put(&gate));
            let weights = shared.as_ref().map(|ExpertWeights { gate, up, down }| ExpertWeights {
                gate: put(gate),
                up: put(up),
                down: put(down),
            });
            let weight = gpu.vector(&weight);
            let mut of_rows = |n_rows: usize| {
                let values = [&residual, &x].map(|values| &values[..n_rows * hidden]);
                let [mut sum, mut out] = values.map(|values| upload(&device, values, hidden));
                let widths = [n_experts as usize, hidden, 1];
                let [mut logits, mut shared_out, mut shared_gate] =
                    widths.map(|width| gpu.buffer(n_rows, width));
                let mut routed = gpu.buffer(n_rows * top_k, hidden);
                gpu.set_rows(&mut routed, n_rows * top_k);
                let outs = [&mut shared_out, &mut shared_gate];
                let shared = weights.as_ref();
                let moe = HeldMoe {
                    spec,
                    router: &router,
                    logits: &mut logits,
                    shared: shared.map(|weights| SharedExpert { weights, gate: &gate, outs }),
                    routed: &mut routed,
                    norm: NextNorm { weight: &weight, eps: 1e-6, out: &mut out },
                };
                gpu.held_moe(0, moe, &mut sum);
                [sum, out].map(|values| download(&device, &values))
            };
            let all = of_rows(11);
            for (values, expected) in all.iter().zip(&expected) {
                let scale = expected.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
                assert_close(values, expected, 1e-5 * scale, &name(&device));
            }
            // The choice by every workgroup for itself, by a kernel of its own, and that of many rows.
            for n_rows in [1, 2, 3, 8] {
                for (values, all) in of_rows(n_rows).iter().zip(&all) {
                    assert_eq!(values[..], all[..n_rows * hidden], "{n_rows}, {}", name(&device));
                }
            }
        }
    }
}

/// Many rows: uses are grouped by expert on the device, or by the host where experts are in several buffers.
#[test]
fn experts_of_prompts_are_grouped_on_the_device() {
    let (top_k, n_experts) = (3, 8);
    let mut random = Random::new(12);
    let format = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
    let loaded = experts(&mut random, n_experts, [format; 3]);
    let router = matrix(&mut random, Format::Float(FloatType::F32), n_experts as usize, 256);
    let spec = RouterSpec { top_k, normalise: true };
    for (device, rows) in
        devices().into_iter().flat_map(|device| [(device.clone(), 9), (device, 40)])
    {
        let x = upload(&device, &random.numbers(rows * 256), 256);
        let mut all: Vec<Vec<f32>> = Vec::new();
        for (per_buffer, n_waits) in [(8, 0), (3, 1)] {
            let mut gpu = Gpu::new(device.clone());
            let matrices = crate::experts::shapes(&loaded[0].weights);
            let slot = crate::experts::ExpertLayout::new(matrices).expect("known formats").bytes;
            gpu.slot_buffer_bytes = per_buffer * slot;
            let shape = ExpertShape { n_experts: n_experts as usize, matrices };
            gpu.reserve_experts(&[Some(shape)], 8 * slot).expect("memory");
            for expert in &loaded {
                gpu.hold_expert(0, expert).expect("there is room");
            }
            let out = upload(&device, &vec![f32::NAN; rows * top_k * 256], 256);
            let router = gpu.put(&router).expect("the format is known");
            let mut logits = gpu.buffer(rows, n_experts as usize);
            let waits = gpu.handoffs().waits;
            gpu.held_layer(0, (&router, &mut logits, spec), None, &x, &out);
            assert_eq!(gpu.handoffs().waits - waits, n_waits);
            all.push(download(&device, &out));
        }
        assert!(all[0].iter().all(|value| value.is_finite()), "{}: each use", name(&device));
        assert!(all[0] == all[1], "{}: bits of {rows} rows", name(&device));
    }
}

/// The CPU has another arithmetic, so its share shows in the last digits; nothing may be left out.
#[test]
fn experts_that_the_cpu_computes_agree_within_its_rounding() {
    const TOLERANCE: f32 = 2e-2;
    let (rows, top_k, n_experts, room) = (3, 4, 8, 3);
    let mut random = Random::new(10);
    let format = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
    let loaded = experts(&mut random, n_experts, [format; 3]);
    let x: Vec<f32> = random.numbers(rows * 256).iter().map(|x| 0.1 * x).collect();
    let logits = random.numbers(rows * n_experts as usize);
    let spec = RouterSpec { top_k, normalise: true };
    let mut reference = Reference::new();
    let (mut routing, mut uses) = (Routing::default(), ExpertUses::new(n_experts as usize));
    let on_host = host(&mut reference, &logits, n_experts as usize);
    reference.route(&on_host, spec, &mut routing);
    uses.group(&routing);
    let input = host(&mut reference, &x, 256);
    let mut out = reference.buffer(rows * top_k, 256);
    reference.set_rows(&mut out, rows * top_k);
    reference.experts(0, &input, &loaded, &uses, &mut out);
    let mut expected = Vec::new();
    reference.download(&out, &mut expected);
    let scale = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    for device in devices() {
        let cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() });
        let mut gpu = Gpu::new(device.clone()).beside(cpu.expect("threads"));
        let matrices = crate::experts::shapes(&loaded[0].weights);
        let slot = crate::experts::ExpertLayout::new(matrices).expect("known formats").bytes;
        let shape = ExpertShape { n_experts: n_experts as usize, matrices };
        gpu.reserve_experts(&[Some(shape)], room * slot).expect("memory");
        assert!(gpu.placement().is_some(), "it was measured");
        for expert in &loaded[..room as usize] {
            gpu.hold_expert(0, expert).expect("there is room");
        }
        let x = upload(&device, &x, 256);
        let here = upload(&device, &logits, n_experts as usize);
        let mut host_uses = Vec::new();
        // The CPU takes too long, as long as the way to the device, no time.
        for (travel, compute) in [(0.0, 1.0), (2.0, 1.0), (1.0, 0.0)] {
            let costs = Costs { take: 0.0, travel, compute, begin: 0.0 };
            gpu.host.as_mut().expect("it has one").costs = Some(costs);
            let mut out = upload(&device, &vec![f32::NAN; rows * top_k * 256], 256);
            let [mut routing, mut predicted] = [Routing::default(), Routing::default()];
            let route =
                RouteAhead { layer: 0, logits: (&here, spec), next: None, x: &x, routed: &mut out };
            gpu.route_ahead(route, &mut |_| {}, [&mut routing, &mut predicted]);
            let mut uses = uses.clone();
            gpu.take_held(0, &x, &mut uses, &mut out);
            let left: Vec<_> =
                uses.distinct().iter().map(|&expert| loaded[expert as usize].clone()).collect();
            let before = gpu.handoffs().host_uses;
            gpu.experts(0, &x, &left, &uses, &mut out);
            host_uses.push(gpu.handoffs().host_uses - before);
            let what = format!("{}, {costs:?}", name(&device));
            assert_close(&download(&device, &out), &expected, TOLERANCE * scale, &what);
        }
        let [none, some, all] = host_uses[..] else { panic!("three") };
        assert!(none == 0 && 0 < some && some < all, "{host_uses:?}");
    }
}
