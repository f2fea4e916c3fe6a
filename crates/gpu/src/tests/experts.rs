//! Routed experts: the same outputs and bits wherever they are held and whoever chooses and groups them.

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::{
    Backend, Cpu, CpuOptions, ExpertUses, ExpertWeights, HeldMoe, LoadedExpert, Matrix, MoeOutputs,
    NextNorm, Reference, RouteAhead, RouterSpec, Routing, SharedExpert,
};

use crate::gpu::Gpu;
use crate::host::Costs;
use crate::testing::{
    Random, assert_close, devices, download, experts, from_host, hold, host, make_room, matrix,
    name, upload,
};

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
        let exact = outputs(&mut Reference::new(), &x, &loaded, &uses);
        let mut cpu = Cpu::new(CpuOptions::default()).expect("threads");
        let in_eight_bits = outputs(&mut cpu, &x, &loaded, &uses);
        // Room for none, for some, and for all of the experts, in one buffer and in several.
        let rooms = [(0, 6), (2, 6), (6, 6), (5, 2), (6, 4), (6, 1)];
        // Where a last digit of an inner activation differs, so may the whole number that it is rounded to.
        let cases = [(true, &exact, &rooms[..], 1e-5), (false, &in_eight_bits, &rooms[1..4], 2e-3)];
        // Places are the affair of the host: the second device, which only adds otherwise, has the last case.
        let devices = devices().into_iter().enumerate();
        for (device, (is_precise, expected, rooms, tolerance)) in
            devices.flat_map(|(index, device)| {
                cases[index..].iter().map(move |&case| (device.clone(), case))
            })
        {
            let scale = expected.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
            let mut all = Vec::new();
            for &(room, per_buffer) in rooms {
                let mut gpu = Gpu::new(device.clone()).with_precision(is_precise);
                make_room(&mut gpu, &loaded, room, per_buffer);
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
                    assert_close(&values, expected, tolerance * scale, &what);
                    all.push(values);
                }
            }
            assert!(all.iter().all(|one| *one == all[0]), "where an expert is leaves no trace");
        }
    }
}

/// What a backend on the host makes of the uses.
fn outputs<B: Backend>(
    backend: &mut B,
    x: &[f32],
    experts: &[LoadedExpert],
    uses: &ExpertUses,
) -> Vec<f32> {
    let n_uses: usize = uses.distinct().iter().map(|&expert| uses.of(expert).len()).sum();
    let x = host(backend, x, 256);
    let mut out = backend.buffer(n_uses, 256);
    backend.set_rows(&mut out, n_uses);
    backend.experts(0, &x, experts, uses, &mut out);
    from_host(backend, &out)
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
            hold(&mut gpu, &loaded, room, per_buffer);
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
            let is_held = |&&expert: &&u32| (expert as usize) < room;
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
        let expected = [&sum, &normed].map(|values| from_host(&mut reference, values));

        for device in devices() {
            let mut gpu = Gpu::new(device.clone()).with_precision(true);
            hold(&mut gpu, &loaded, n_experts as usize, per_buffer);
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
            hold(&mut gpu, &loaded, n_experts as usize, per_buffer);
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
    let expected = outputs(&mut reference, &x, &loaded, &uses);
    let scale = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    for device in devices() {
        let cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() });
        let mut gpu = Gpu::new(device.clone()).beside(cpu.expect("threads"));
        hold(&mut gpu, &loaded, room, n_experts as usize);
        assert!(gpu.placement().is_some(), "it was measured");
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
