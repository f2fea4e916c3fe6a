//! Experts: `(silu(x gate^T) * (x up^T)) down^T`, and the sum of their outputs.
//!
//! All experts that are ready are computed in two parallel regions: one for gate, up and their product,
//! block by block of the intermediate width, and one for down. With low-bit weights a task quantises
//! the block that it made, so the intermediate values never exist in `f32` as a whole.

#![expect(unsafe_code, reason = "tasks write disjoint parts of the output")]

use std::cell::RefCell;

use crate::backend::MoeOutputs;
use crate::cpu::integer::{BLOCK, Kind, QuantizedRows, Rows};
use crate::cpu::matmul::{Product, RowPlaces, multiply, multiply_codes, quantize_rows};
use crate::cpu::pool::Parts;
use crate::cpu::{Cpu, Machine};
use crate::host::{HostBuffer, sigmoid};
use crate::matrix::{ExpertWeights, LoadedExpert};
use crate::uses::{ExpertUse, ExpertUses};

/// Rows that go through an expert at a time in `f32`: enough to decode each weight for many rows, few
/// enough that working memory stays small.
const GROUP_ROWS: usize = 64;
/// Uses of experts that are computed together in eight bits: 3 to 6 MB of quantised activations.
const GROUP_USES: usize = 1024;
/// Rows of the down projection that make a task.
const DOWN_ROWS: usize = 64;

thread_local! {
    /// Gate and up values of a task, and their product.
    static INNER: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Working memory for a group of rows.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// (rows, hidden): the rows that use the expert, together.
    input: Vec<f32>,
    /// (rows, intermediate).
    gate: Vec<f32>,
    /// (rows, intermediate).
    up: Vec<f32>,
    /// (rows, hidden).
    output: Vec<f32>,
    /// (uses, hidden), or one row that all experts share.
    x: QuantizedRows,
    /// (uses, intermediate).
    inner: QuantizedRows,
    jobs: Vec<Job>,
    /// The uses of all jobs, in their order.
    uses: Vec<ExpertUse>,
}

/// Some uses of an expert.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// Place of the expert in the call.
    expert: usize,
    /// First of its uses in the group.
    first: usize,
    n: usize,
}

/// Bytes of the quantised activations of a group, for experts of these widths.
pub(crate) fn scratch_bytes(hidden: usize, intermediate: usize) -> u64 {
    QuantizedRows::bytes(GROUP_USES, hidden) + QuantizedRows::bytes(GROUP_USES, intermediate)
}

/// See [`crate::Backend::experts`].
pub(crate) fn experts(
    machine: &mut Machine,
    scratch: &mut Scratch,
    x: &HostBuffer,
    experts: &[LoadedExpert],
    uses: &ExpertUses,
    out: &mut HostBuffer,
) {
    let (width, top_k) = (out.width(), uses.top_k());
    if !experts.iter().all(|expert| in_codes(machine, &expert.weights)) {
        for LoadedExpert { index, weights } in experts {
            expert_in_floats(machine, scratch, x, weights, uses.of(*index), top_k, out);
        }
        return;
    }
    let out = Parts::new(out.values_mut());
    let give = |use_: ExpertUse, begin: usize, values: &[f32]| {
        let row = use_.row as usize * top_k + use_.rank as usize;
        // SAFETY: each use has its own row, and each task its own columns.
        unsafe { out.part(row * width + begin, values.len()) }.copy_from_slice(values);
    };
    scratch.jobs.clear();
    scratch.uses.clear();
    for (place, LoadedExpert { index, .. }) in experts.iter().enumerate() {
        let is_new = experts[..place].iter().all(|other| other.index != *index);
        assert!(is_new, "each expert comes once: its uses have rows of their own");
        for part in uses.of(*index).chunks(GROUP_USES) {
            if scratch.uses.len() + part.len() > GROUP_USES {
                run_jobs(machine, scratch, x, |place| &experts[place].weights, give);
            }
            let first = scratch.uses.len();
            scratch.uses.extend_from_slice(part);
            scratch.jobs.push(Job { expert: place, first, n: part.len() });
        }
    }
    run_jobs(machine, scratch, x, |place| &experts[place].weights, give);
}

/// See [`crate::Backend::swiglu`].
pub(crate) fn swiglu(
    machine: &mut Machine,
    scratch: &mut Scratch,
    x: &HostBuffer,
    weights: &ExpertWeights,
    out: &mut HostBuffer,
) {
    let (hidden, width) = (x.width(), out.width());
    if in_codes(machine, weights) {
        let out = Parts::new(out.values_mut());
        for begin in (0..x.rows()).step_by(GROUP_USES) {
            let n = GROUP_USES.min(x.rows() - begin);
            scratch.jobs.clear();
            scratch.uses.clear();
            let rows = begin..begin + n;
            scratch.uses.extend(rows.map(|row| ExpertUse { row: row as u32, rank: 0 }));
            scratch.jobs.push(Job { expert: 0, first: 0, n });
            run_jobs(
                machine,
                scratch,
                x,
                |_| weights,
                |use_, begin, values| {
                    let at = use_.row as usize * width + begin;
                    // SAFETY: each use has its own row, and each task its own columns.
                    unsafe { out.part(at, values.len()) }.copy_from_slice(values);
                },
            );
        }
        return;
    }
    let groups = x.values().chunks(GROUP_ROWS * hidden);
    for (x, out) in groups.zip(out.values_mut().chunks_mut(GROUP_ROWS * width)) {
        scratch.input.clear();
        scratch.input.extend_from_slice(x);
        apply_in_floats(machine, scratch, x.len() / hidden, weights);
        out.copy_from_slice(&scratch.output);
    }
}

/// Whether an expert is computed on its codes.
fn in_codes(machine: &Machine, ExpertWeights { gate, up, down }: &ExpertWeights) -> bool {
    let low_bit = |format| Kind::of(format).is_some();
    !machine.precise && low_bit(gate.format) && low_bit(up.format) && low_bit(down.format)
}

/// Computes the jobs of the scratch on codes and empties it. `give` takes some columns of the output
/// of a use.
fn run_jobs<'a>(
    machine: &mut Machine,
    scratch: &mut Scratch,
    x: &HostBuffer,
    weights: impl Fn(usize) -> &'a ExpertWeights + Sync,
    give: impl Fn(ExpertUse, usize, &[f32]) + Sync,
) {
    let Machine { kernels, pool, .. } = machine;
    let Scratch { x: quantized, inner, jobs, uses, .. } = scratch;
    let Some(job) = jobs.first() else { return };
    let ExpertWeights { gate, down, .. } = weights(job.expert);
    let (intermediate, hidden) = (gate.rows, down.rows);

    // One row is quantised once for all experts that it uses; rows of many are gathered for each.
    let shared = x.rows() == 1;
    let n_inputs = if shared { 1 } else { uses.len() };
    quantize_rows(kernels, pool, quantized, n_inputs, gate.cols, |index| {
        x.row(uses[index].row as usize)
    });
    let quantized = quantized.tokens();

    inner.reset(uses.len(), intermediate);
    let places = RowPlaces::new(inner);
    let blocks = intermediate / BLOCK;
    pool.run("gate and up", jobs.len() * blocks, |task| {
        let (job, block) = (&jobs[task / blocks], task % blocks);
        let ExpertWeights { gate, up, .. } = weights(job.expert);
        let tokens = if shared { quantized } else { quantized.rows(job.first, job.n) };
        let rows = |matrix| Rows::of(matrix, block * BLOCK, BLOCK).expect("it has codes");
        INNER.with_borrow_mut(|[gates, ups]| {
            gates.resize(job.n * BLOCK, 0.0);
            ups.resize(job.n * BLOCK, 0.0);
            (kernels.multiply)(&rows(gate), &tokens, gates);
            (kernels.multiply)(&rows(up), &tokens, ups);
            (kernels.math.times_silu)(ups, gates);
            for (index, values) in ups.chunks_exact(BLOCK).enumerate() {
                // SAFETY: each task has its own block of its uses.
                let place = unsafe { places.blocks(job.first + index, block, 1) };
                (kernels.quantize)(values, place);
            }
        });
    });

    let inner = inner.tokens();
    let parts = hidden.div_ceil(DOWN_ROWS);
    pool.run("down", jobs.len() * parts, |task| {
        let (job, begin) = (&jobs[task / parts], task % parts * DOWN_ROWS);
        let n_rows = DOWN_ROWS.min(hidden - begin);
        let rows = Rows::of(&weights(job.expert).down, begin, n_rows).expect("it has codes");
        multiply_codes(kernels, &rows, &inner.rows(job.first, job.n), |token, values| {
            give(uses[job.first + token], begin, values);
        });
    });
    jobs.clear();
    uses.clear();
}

/// One expert with weights decoded to `f32`.
fn expert_in_floats(
    machine: &mut Machine,
    scratch: &mut Scratch,
    x: &HostBuffer,
    weights: &ExpertWeights,
    uses: &[ExpertUse],
    top_k: usize,
    out: &mut HostBuffer,
) {
    for uses in uses.chunks(GROUP_ROWS) {
        scratch.input.clear();
        for use_ in uses {
            scratch.input.extend_from_slice(x.row(use_.row as usize));
        }
        apply_in_floats(machine, scratch, uses.len(), weights);
        let rows = scratch.output.chunks_exact(weights.down.rows);
        for (use_, row) in uses.iter().zip(rows) {
            out.row_mut(use_.row as usize * top_k + use_.rank as usize).copy_from_slice(row);
        }
    }
}

/// Takes the scratch's input to its output.
fn apply_in_floats(
    machine: &mut Machine,
    scratch: &mut Scratch,
    n_rows: usize,
    weights: &ExpertWeights,
) {
    let ExpertWeights { gate, up, down } = weights;
    let Scratch { input, gate: gates, up: ups, output, .. } = scratch;
    gates.resize(n_rows * gate.rows, 0.0);
    ups.resize(n_rows * up.rows, 0.0);
    output.resize(n_rows * down.rows, 0.0);
    let products = [
        Some(Product { matrix: gate, out: Parts::new(gates) }),
        Some(Product { matrix: up, out: Parts::new(ups) }),
    ];
    multiply(machine, input, n_rows, &products);
    let width = gate.rows;
    let kernels = machine.kernels;
    let activated = Parts::new(ups);
    machine.pool.run("silu", n_rows, |row| {
        // SAFETY: each task has its own row.
        let ups = unsafe { activated.part(row * width, width) };
        (kernels.math.times_silu)(ups, &gates[row * width..][..width]);
    });
    let product = Product { matrix: down, out: Parts::new(output) };
    multiply(machine, ups, n_rows, &[Some(product)]);
}

/// See [`crate::Backend::combine`].
pub(crate) fn combine(machine: &mut Machine, x: &mut HostBuffer, outputs: &MoeOutputs<'_, Cpu>) {
    let Machine { kernels, pool, .. } = machine;
    let MoeOutputs { routing, routed, shared } = *outputs;
    let (rows, width, top_k) = (x.rows(), x.width(), routing.top_k);
    let x = Parts::new(x.values_mut());
    pool.run("combine", rows, |row| {
        // SAFETY: each task has its own row.
        let x = unsafe { x.part(row * width, width) };
        let ranks = row * top_k..row * top_k + routing.n_used(row);
        let outputs = &routed.values()[ranks.start * width..ranks.end * width];
        kernels.weighted_sum(&routing.weights[ranks], outputs, x);
        if let Some([shared, gate]) = shared {
            kernels.weighted_sum(&[sigmoid(gate.row(row)[0])], shared.row(row), x);
        }
    });
}
