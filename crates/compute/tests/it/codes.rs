//! Products of low-bit codes with activations in eight bits.

use compute::{Backend, Cpu, ExpertUses, ExpertWeights, LoadedExpert, Matrix, Reference, Routing};

use crate::support::{Random, code_formats, download, fast_cpus, matrix, on, upload};

/// Largest error of the products of a token against exact arithmetic, relative to their norm. Half a step
/// of 1/127 a value gives 0.003; random bytes of some formats are weights of one sign, whose products
/// cancel, so that the products of magnitudes count too.
const TOLERANCE: f64 = 0.02;

fn project<B: Backend>(backend: &mut B, x: &[f32], weights: &Matrix, batch: usize) -> Vec<f32> {
    let mut all = Vec::new();
    let (rows, cols) = (weights.rows, weights.cols);
    let weights = on(backend, weights);
    for x in x.chunks(batch * cols) {
        let x = upload(backend, x, cols);
        let mut out = backend.buffer(batch, rows);
        backend.project(&x, &[&weights], &mut [&mut out]);
        all.extend(download(backend, &out));
    }
    all
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn products_are_near_and_the_same_bits_everywhere() {
    let n_tokens = 21;
    for (rows, cols) in [(37, 64), (5, 256), (70, 1024 + 256), (16, 512), (9, 1088)] {
        for format in code_formats(cols) {
            let random = &mut Random::new(rows as u64);
            let weights = matrix(random, format, rows, cols);
            let x = random.numbers(n_tokens * cols);
            let magnitudes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
            let exact =
                [&x, &magnitudes].map(|x| project(&mut Reference::new(), x, &weights, n_tokens));
            let mut first: Option<Vec<f32>> = None;
            for cpu in &mut fast_cpus() {
                for batch in [1, 2, 3, 5, 8, n_tokens] {
                    let what = format!("{format} {rows}x{cols} on {} by {batch}", cpu.name());
                    let ours = project(cpu, &x, &weights, batch);
                    match &first {
                        Some(first) => assert!(ours == *first, "{what}"),
                        None => {
                            check(&ours, &exact, rows, &what);
                            first = Some(ours);
                        }
                    }
                }
            }
        }
    }
}

#[track_caller]
fn check(ours: &[f32], [exact, magnitudes]: &[Vec<f32>; 2], rows: usize, what: &str) {
    for (token, ours) in ours.chunks_exact(rows).enumerate() {
        let of_token = |all: &'_ [f32]| all[token * rows..][..rows].to_vec();
        let (exact, magnitudes) = (of_token(exact), of_token(magnitudes));
        let errors: Vec<f32> = ours.iter().zip(&exact).map(|(ours, exact)| ours - exact).collect();
        let allowed = TOLERANCE * (norm(&exact) + norm(&magnitudes));
        assert!(norm(&errors) <= allowed, "{what}: token {token}, {} > {allowed}", norm(&errors));
    }
}

fn apply(cpu: &mut Cpu, x: &[f32], experts: &[LoadedExpert], routing: &Routing) -> Vec<f32> {
    let hidden = experts[0].weights.gate.cols;
    let rows = x.len() / hidden;
    let x = upload(cpu, x, hidden);
    let mut uses = ExpertUses::new(experts.len());
    uses.group(routing);
    let mut out = cpu.buffer(rows * routing.top_k, hidden);
    cpu.set_rows(&mut out, rows * routing.top_k);
    cpu.experts(0, &x, experts, &uses, &mut out);
    download(cpu, &out)
}

#[test]
fn experts_give_a_row_the_same_in_any_company() {
    let (hidden, intermediate, rows) = (256, 64 + 256, 40);
    for format in code_formats(intermediate) {
        let random = &mut Random::new(5);
        let mut expert = |index| LoadedExpert {
            index,
            weights: ExpertWeights {
                gate: matrix(random, format, intermediate, hidden),
                up: matrix(random, format, intermediate, hidden),
                down: matrix(random, format, hidden, intermediate),
            },
        };
        let experts = [expert(0), expert(1), expert(2)];
        let x: Vec<f32> = Random::new(6).numbers(rows * hidden).iter().map(|x| x * 0.05).collect();
        let chosen: Vec<u32> =
            (0..rows as u32).flat_map(|row| [row % 3, (row + 1 + row % 2) % 3]).collect();
        let routing = |range: std::ops::Range<usize>| Routing {
            top_k: 2,
            experts: chosen[2 * range.start..2 * range.end].to_vec(),
            weights: vec![0.5; 2 * range.len()],
        };
        let mut first: Option<Vec<f32>> = None;
        for cpu in &mut fast_cpus() {
            let all = apply(cpu, &x, &experts, &routing(0..rows));
            assert!(all.iter().all(|value| value.is_finite()), "{format}");
            match &first {
                Some(first) => assert!(all == *first, "{format} on {}", cpu.name()),
                None => first = Some(all.clone()),
            }
            for range in [0..1, 7..8, 3..6, 10..30] {
                let some = &x[range.start * hidden..range.end * hidden];
                let ours = apply(cpu, some, &experts, &routing(range.clone()));
                let expected = &all[2 * range.start * hidden..2 * range.end * hidden];
                assert!(ours == expected, "{format} rows {range:?} on {}", cpu.name());
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_show() {
    let format = code_formats(256)[4];
    let weights = matrix(&mut Random::new(1), format, 3, 256);
    let mut x = Random::new(2).numbers(256);
    x[100] = f32::INFINITY;
    for cpu in &mut fast_cpus() {
        let out = project(cpu, &x, &weights, 1);
        assert!(out.iter().all(|value| value.is_nan()), "{}", cpu.name());
    }
}
