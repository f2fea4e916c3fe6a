//! The trunk's tensors as the copy has them: those of the source, in the order of Hugging Face.
//!
//! The converter of llama.cpp stores delta nets in other orders than the checkpoints that it reads. Of
//! Qwen3.5 it lays value heads so that neighbours have different key heads; of Qwen3-Next it takes the
//! projection apart whose rows are grouped by key head. Here both are undone.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use checkpoint::{DeltaNetConfig, Family, MatrixLocation, Projections, VectorLocation};
use engine::{Inventory, TrunkLocation};

/// Neighbouring rows, columns or values of the source, in the order in which the copy has them. Empty where
/// that is the order of the source.
pub(crate) type Order = Vec<Range<usize>>;

/// A matrix of the copy, made of rows of matrices of the source.
#[derive(Clone, Debug)]
pub(crate) struct Arranged {
    /// Rows in order, all equally wide. The first matrix says how they are stored.
    pub(crate) rows: Vec<(MatrixLocation, Range<usize>)>,
    pub(crate) columns: Order,
}

/// A tensor of the copy's trunk.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// Canonical name.
    pub(crate) name: String,
    pub(crate) part: Part,
}

/// What it is made of.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// The values of a tensor of the source.
    Vector(VectorLocation, Order),
    Matrix(Arc<Arranged>),
}

impl Arranged {
    fn new(matrix: MatrixLocation, rows: Order, columns: Order) -> Self {
        let all = 0..matrix.rows;
        let rows = if rows.is_empty() { vec![all] } else { rows };
        Self { rows: rows.into_iter().map(|rows| (matrix, rows)).collect(), columns }
    }

    /// The matrix that says how rows are stored.
    pub(crate) fn stored(&self) -> &MatrixLocation {
        &self.rows[0].0
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.rows.iter().map(|(_, rows)| rows.len()).sum()
    }

    /// The matrix of the source, if this is one as it is stored.
    pub(crate) fn whole(&self) -> Option<&MatrixLocation> {
        match self.rows.as_slice() {
            [(matrix, rows)] if *rows == (0..matrix.rows) && self.columns.is_empty() => {
                Some(matrix)
            }
            _ => None,
        }
    }
}

/// The tensors of the copy's trunk. A matrix whose parts are used apart is stored as one.
pub(crate) fn trunk(inventory: &Inventory) -> Vec<Tensor> {
    let config = inventory.checkpoint.config();
    let joins = config.delta_net.filter(|delta_net| {
        config.family == Family::Qwen3Next && delta_net.projections != Projections::Interleaved
    });
    let tiled = config.delta_net.filter(|delta_net| delta_net.tiled_values);
    let matrix_of = |name: &str| {
        let tensor = inventory.trunk.iter().find(|tensor| tensor.name == name)?;
        match tensor.location {
            TrunkLocation::Matrix(matrix) => Some(matrix),
            TrunkLocation::Vector(_) => None,
        }
    };
    let mut seen = HashSet::new();
    let mut tensors = Vec::new();
    for tensor in &inventory.trunk {
        if !seen.insert(tensor.name.as_str()) {
            continue;
        }
        let mut name = tensor.name.clone();
        let delta_net = name.split_once(".linear_attn.");
        let [rows, columns] = match (&tiled, delta_net) {
            (Some(config), Some((_, part))) => grouped_heads(config, part),
            _ => Default::default(),
        };
        let part = match tensor.location {
            TrunkLocation::Vector(vector) => Part::Vector(vector, rows),
            TrunkLocation::Matrix(matrix) => {
                let mut arranged = Arranged::new(matrix, rows, columns);
                if let (Some(config), Some((layer, part))) = (&joins, delta_net) {
                    if part == "in_proj_z.weight" {
                        continue;
                    }
                    let z = matrix_of(&format!("{layer}.linear_attn.in_proj_z.weight"));
                    if let (Some(z), "in_proj_qkv.weight") = (z, part) {
                        arranged.rows = interleaved(config, matrix, z);
                        name = format!("{layer}.linear_attn.in_proj_qkvz.weight");
                    }
                }
                Part::Matrix(Arc::new(arranged))
            }
        };
        tensors.push(Tensor { name, part });
    }
    tensors
}

/// The orders of rows (or values) and of columns that lay the value heads of each key head together again.
fn grouped_heads(config: &DeltaNetConfig, tensor: &str) -> [Order; 2] {
    let DeltaNetConfig { n_key_heads, n_value_heads, key_dim, value_dim, conv_kernel, .. } =
        *config;
    let per_key = n_value_heads / n_key_heads;
    // Value heads of a width, behind so much that keeps its order.
    let heads = |begin: usize, width: usize| {
        let stored = (0..n_value_heads).map(|head| {
            let stored = head % per_key * n_key_heads + head / per_key;
            begin + stored * width..begin + (stored + 1) * width
        });
        joined(std::iter::once(0..begin).chain(stored))
    };
    let keys = 2 * n_key_heads * key_dim;
    match tensor {
        "in_proj_qkv.weight" => [heads(keys, value_dim), Vec::new()],
        "in_proj_z.weight" => [heads(0, value_dim), Vec::new()],
        "in_proj_b.weight" | "in_proj_a.weight" | "A_log" | "dt_bias" => [heads(0, 1), Vec::new()],
        "conv1d.weight" => [heads(keys * conv_kernel, value_dim * conv_kernel), Vec::new()],
        "out_proj.weight" => [Vec::new(), heads(0, value_dim)],
        _ => Default::default(),
    }
}

/// The rows of each key head: its query, its key, the values of its value heads, and their gates.
fn interleaved(
    config: &DeltaNetConfig,
    qkv: MatrixLocation,
    z: MatrixLocation,
) -> Vec<(MatrixLocation, Range<usize>)> {
    let DeltaNetConfig { n_key_heads, n_value_heads, key_dim, value_dim, .. } = *config;
    let (keys, values) = (n_key_heads * key_dim, n_value_heads / n_key_heads * value_dim);
    let rows = |begin: usize, head: usize, len: usize| begin + head * len..begin + (head + 1) * len;
    let of_head = |head| {
        [
            (qkv, rows(0, head, key_dim)),
            (qkv, rows(keys, head, key_dim)),
            (qkv, rows(2 * keys, head, values)),
            (z, rows(0, head, values)),
        ]
    };
    (0..n_key_heads).flat_map(of_head).collect()
}

/// Ranges with neighbours made one; none if all is in order.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Order {
    let mut order: Order = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        match order.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => order.push(range),
        }
    }
    if order.len() == 1 { Vec::new() } else { order }
}

/// Some values in another order.
pub(crate) fn in_order(values: &[f32], order: &Order) -> Vec<f32> {
    order.iter().flat_map(|range| &values[range.clone()]).copied().collect()
}
