//! Experts: `(silu(x gate^T) * (x up^T)) down^T`, and the sum of their outputs.

#![expect(unsafe_code, reason = "tasks write disjoint parts of the output")]

use crate::backend::MoeOutputs;
use crate::cpu::matmul::{Product, multiply};
use crate::cpu::pool::Parts;
use crate::cpu::{Cpu, Machine};
use crate::host::{HostBuffer, sigmoid, silu};
use crate::matrix::ExpertWeights;
use crate::uses::ExpertUse;

/// Rows that go through an expert at a time: enough to decode each weight for many rows, few enough
/// that working memory stays small.
const GROUP_ROWS: usize = 64;

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
}

/// See [`crate::Backend::expert`].
pub(crate) fn expert(
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
        apply(machine, scratch, uses.len(), weights);
        let rows = scratch.output.chunks_exact(weights.down.rows);
        for (use_, row) in uses.iter().zip(rows) {
            out.row_mut(use_.row as usize * top_k + use_.rank as usize).copy_from_slice(row);
        }
    }
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
    let groups = x.values().chunks(GROUP_ROWS * hidden);
    for (x, out) in groups.zip(out.values_mut().chunks_mut(GROUP_ROWS * width)) {
        scratch.input.clear();
        scratch.input.extend_from_slice(x);
        apply(machine, scratch, x.len() / hidden, weights);
        out.copy_from_slice(&scratch.output);
    }
}

/// Takes the scratch's input to its output.
fn apply(machine: &mut Machine, scratch: &mut Scratch, n_rows: usize, weights: &ExpertWeights) {
    let ExpertWeights { gate, up, down } = weights;
    let Scratch { input, gate: gates, up: ups, output } = scratch;
    gates.resize(n_rows * gate.rows, 0.0);
    ups.resize(n_rows * up.rows, 0.0);
    output.resize(n_rows * down.rows, 0.0);
    let products = [
        Product { matrix: gate, out: Parts::new(gates) },
        Product { matrix: up, out: Parts::new(ups) },
    ];
    multiply(machine, input, n_rows, &products);
    let width = gate.rows;
    let activated = Parts::new(gates);
    machine.pool.run(n_rows, |row| {
        // SAFETY: each task has its own row.
        let gates = unsafe { activated.part(row * width, width) };
        for (gate, up) in gates.iter_mut().zip(&ups[row * width..]) {
            *gate = silu(*gate) * up;
        }
    });
    let product = Product { matrix: down, out: Parts::new(output) };
    multiply(machine, gates, n_rows, &[product]);
}

/// See [`crate::Backend::combine`].
pub(crate) fn combine(machine: &mut Machine, x: &mut HostBuffer, outputs: &MoeOutputs<'_, Cpu>) {
    let Machine { kernels, pool } = machine;
    let MoeOutputs { routing, routed, shared } = *outputs;
    let (rows, width, top_k) = (x.rows(), x.width(), routing.top_k);
    let x = Parts::new(x.values_mut());
    pool.run(rows, |row| {
        // SAFETY: each task has its own row.
        let x = unsafe { x.part(row * width, width) };
        let ranks = row * top_k..(row + 1) * top_k;
        let outputs = &routed.values()[ranks.start * width..ranks.end * width];
        (kernels.weighted_sum)(&routing.weights[ranks], outputs, x);
        if let Some([shared, gate]) = shared {
            (kernels.weighted_sum)(&[sigmoid(gate.row(row)[0])], shared.row(row), x);
        }
    });
}
