//! Products with stored weights, norms, experts.

use checkpoint::Format;
use compute::{
    Backend, Cpu, ExpertUses, ExpertWeights, LoadedExpert, MoeOutputs, Reference, RouterSpec,
    Routing,
};

use crate::support::{Random, assert_close, cpus, download, formats, matrix, on, upload};

/// Relative to sums of some hundred products of numbers below one.
const TOLERANCE: f32 = 2e-5;

#[test]
fn products_agree_in_every_format_and_shape() {
    for (rows, cols) in [(1, 128), (5, 64), (37, 192), (16, 1088), (67, 256), (3, 100)] {
        for format in formats(cols) {
            let random = &mut Random::new(rows as u64);
            let weights = matrix(random, format, rows, cols);
            let other = matrix(random, format, 2 * rows, cols);
            for n_tokens in [1, 2, 3, 4, 17] {
                let x = random.numbers(n_tokens * cols);
                let expected = project(&mut Reference::new(), &x, &weights, &other);
                for cpu in &mut cpus() {
                    let ours = project(cpu, &x, &weights, &other);
                    for (ours, expected) in ours.iter().zip(&expected) {
                        let what = format!("{format} {rows}x{cols} on {}", cpu.name());
                        assert_close(ours, expected, TOLERANCE * (cols as f32).sqrt(), &what);
                    }
                }
            }
        }
    }
}

fn project<B: Backend>(
    backend: &mut B,
    x: &[f32],
    first: &compute::Matrix,
    second: &compute::Matrix,
) -> [Vec<f32>; 2] {
    let x = upload(backend, x, first.cols);
    let mut outs = [backend.buffer(64, first.rows), backend.buffer(64, second.rows)];
    let [first, second] = [first, second].map(|matrix| on(backend, matrix));
    let [a, b] = &mut outs;
    backend.project(&x, &[&first, &second], &mut [a, b]);
    outs.map(|out| download(backend, &out))
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_threads() {
    let (rows, cols, n_tokens) = (70, 1024 + 128, 65);
    for format in formats(cols) {
        let random = &mut Random::new(7);
        let weights = matrix(random, format, rows, cols);
        let x = random.numbers(n_tokens * cols);
        let mut by_isa: Vec<(String, Vec<f32>)> = Vec::new();
        for cpu in &mut cpus() {
            let isa = cpu.name().split(',').next().expect("a name").to_owned();
            for batch in [1, 2, 7, 32, n_tokens] {
                let mut ours = Vec::new();
                for x in x.chunks(batch * cols) {
                    let x = upload(cpu, x, cols);
                    let mut out = cpu.buffer(batch, rows);
                    cpu.project(&x, &[&weights], &mut [&mut out]);
                    ours.extend(download(cpu, &out));
                }
                match by_isa.iter().find(|(other, _)| *other == isa) {
                    Some((_, first)) => assert!(ours == *first, "{format} {isa} batch {batch}"),
                    None => by_isa.push((isa.clone(), ours)),
                }
            }
        }
    }
}

/// Experts of a batch: each row uses two of three.
fn experts<B: Backend>(
    backend: &mut B,
    x: &[f32],
    weights: &[ExpertWeights],
    shared: &ExpertWeights,
) -> Vec<f32> {
    let hidden = shared.gate.cols;
    let rows = x.len() / hidden;
    let mut residual = upload(backend, x, hidden);
    let normed = upload(backend, x, hidden);
    let router: Vec<f32> = (0..rows * 3).map(|i| ((i * 7) % 5) as f32).collect();
    let logits = upload(backend, &router, 3);
    let mut routing = Routing::default();
    backend.route(&logits, RouterSpec { top_k: 2, normalise: true }, &mut routing);
    let mut routed = backend.buffer(rows * 2, hidden);
    backend.set_rows(&mut routed, rows * 2);
    let mut uses = ExpertUses::new(3);
    uses.group(&routing);
    let loaded: Vec<LoadedExpert> = uses
        .distinct()
        .iter()
        .map(|&index| LoadedExpert { index, weights: weights[index as usize].clone() })
        .collect();
    // In two calls, as experts arrive.
    let (first, rest) = loaded.split_at(1);
    backend.experts(0, &normed, first, &uses, &mut routed);
    backend.experts(0, &normed, rest, &uses, &mut routed);
    let mut shared_out = backend.buffer(rows, hidden);
    let shared = ExpertWeights {
        gate: on(backend, &shared.gate),
        up: on(backend, &shared.up),
        down: on(backend, &shared.down),
    };
    backend.swiglu(&normed, &shared, &mut shared_out);
    let gates: Vec<f32> = (0..rows).map(|row| row as f32 * 0.1 - 1.0).collect();
    let shared_gate = upload(backend, &gates, 1);
    let outputs = MoeOutputs {
        routing: &routing,
        routed: &routed,
        shared: Some([&shared_out, &shared_gate]),
    };
    backend.combine(&mut residual, outputs);
    download(backend, &residual)
}

#[test]
fn experts_and_their_sum_agree() {
    let (hidden, intermediate) = (128, 64);
    for format in formats(64) {
        let random = &mut Random::new(11);
        let mut expert = || ExpertWeights {
            gate: matrix(random, format, intermediate, hidden),
            up: matrix(random, format, intermediate, hidden),
            down: matrix(random, format, hidden, intermediate),
        };
        let weights = [expert(), expert(), expert()];
        let shared = expert();
        let random = &mut Random::new(12);
        for rows in [1, 3, 100] {
            let x: Vec<f32> = random.numbers(rows * hidden).iter().map(|x| x * 0.3).collect();
            let expected = experts(&mut Reference::new(), &x, &weights, &shared);
            for cpu in &mut cpus() {
                let ours = experts(cpu, &x, &weights, &shared);
                let what = format!("{format} {rows} rows on {}", cpu.name());
                assert_close(&ours, &expected, 1e-4, &what);
            }
        }
    }
}

#[test]
fn an_expert_gives_a_row_the_same_in_any_company() {
    let format = formats(64)[3];
    let random = &mut Random::new(3);
    let expert = ExpertWeights {
        gate: matrix(random, format, 64, 128),
        up: matrix(random, format, 64, 128),
        down: matrix(random, format, 128, 64),
    };
    let rows = 150;
    let x = random.numbers(rows * 128);
    for cpu in &mut cpus() {
        let all = apply(cpu, &x, &expert, &(0..rows as u32).collect::<Vec<_>>());
        for some in [vec![0], vec![149, 3], (20..90).collect()] {
            let ours = apply(cpu, &x, &expert, &some);
            for (ours, &row) in ours.chunks_exact(128).zip(&some) {
                assert!(ours == &all[row as usize * 128..][..128], "row {row} on {}", cpu.name());
            }
        }
    }
}

fn apply(cpu: &mut Cpu, x: &[f32], expert: &ExpertWeights, rows: &[u32]) -> Vec<f32> {
    let x_rows = x.len() / 128;
    let x = upload(cpu, x, 128);
    let mut out = cpu.buffer(200, 128);
    cpu.set_rows(&mut out, 200);
    // Expert 0 is used by the given rows, expert 1 by the others.
    let n_rows = x_rows as u32;
    let experts = (0..n_rows).map(|row| u32::from(!rows.contains(&row))).collect();
    let routing = Routing { top_k: 1, experts, weights: vec![1.0; x_rows] };
    let mut uses = ExpertUses::new(2);
    uses.group(&routing);
    let expert = LoadedExpert { index: 0, weights: expert.clone() };
    cpu.experts(0, &x, &[expert], &uses, &mut out);
    let out = download(cpu, &out);
    rows.iter().flat_map(|&row| out[row as usize * 128..][..128].to_vec()).collect()
}

#[test]
fn norms_embeddings_and_gathers_agree() {
    for width in [1, 7, 64, 257] {
        let random = &mut Random::new(width as u64);
        let (x, weight) = (random.numbers(5 * width), random.numbers(width));
        let expected = norm(&mut Reference::new(), &x, &weight);
        for cpu in &mut cpus() {
            assert_close(&norm(cpu, &x, &weight), &expected, 1e-5, &cpu.name());
        }
    }
    let table = matrix(&mut Random::new(1), formats(64)[3], 9, 64);
    assert!(matches!(table.format, Format::Affine(_)), "the table is quantised");
    let expected = embedded(&mut Reference::new(), &table);
    for cpu in &mut cpus() {
        assert_close(&embedded(cpu, &table), &expected, 1e-6, &cpu.name());
    }
}

fn norm<B: Backend>(backend: &mut B, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let x = upload(backend, x, weight.len());
    let weight_vector = backend.vector(weight);
    let mut out = backend.buffer(5, weight.len());
    backend.rms_norm(&x, &weight_vector, 1e-6, &mut out);
    let mut gathered = backend.buffer(2, weight.len());
    backend.gather(&out, &[4, 0], &mut gathered);
    download(backend, &gathered)
}

fn embedded<B: Backend>(backend: &mut B, table: &compute::Matrix) -> Vec<f32> {
    let mut out = backend.buffer(3, table.cols);
    let table = on(backend, table);
    backend.embed(&table, &[8, 0, 8], &mut out);
    download(backend, &out)
}
