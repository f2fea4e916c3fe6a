//! Rows that enter the experts of a layer, and which of them an expert is quantised by.

use engine::Routing;
use half::f16;

use crate::expert::Inputs;

/// Rows of an expert that are used at most; of more, evenly many are left out.
const MAX_ROWS: usize = 8192;
/// Rows of the whole layer that stand in for what an expert was not seen to be given.
const PRIOR_ROWS: usize = 256;
/// As many uses as they count for together.
const PRIOR_USES: f32 = 16.0;

/// Recorded rows of a layer.
#[derive(Debug)]
pub(crate) struct LayerRows {
    top_k: usize,
    hidden: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
    x: Vec<f16>,
}

impl LayerRows {
    /// No rows yet.
    pub(crate) fn new(top_k: usize, hidden: usize) -> Self {
        Self { top_k, hidden, experts: Vec::new(), weights: Vec::new(), x: Vec::new() }
    }

    /// Rows from the file of a layer.
    pub(crate) fn read(bytes: &[u8], top_k: usize, hidden: usize) -> Self {
        let mut rows = Self::new(top_k, hidden);
        for row in bytes.chunks_exact(row_bytes(top_k, hidden)) {
            let (experts, rest) = row.split_at(4 * top_k);
            let (weights, x) = rest.split_at(4 * top_k);
            rows.experts.extend(experts.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)));
            rows.weights.extend(weights.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            rows.x.extend(x.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)));
        }
        rows
    }

    /// Adds rows (rows, hidden) and their routing.
    pub(crate) fn append(&mut self, x: &[f32], routing: &Routing) {
        self.experts.extend_from_slice(&routing.experts);
        self.weights.extend_from_slice(&routing.weights);
        self.x.extend(x.iter().map(|&x| narrow(x)));
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.experts.len() / self.top_k.max(1)
    }

    /// How many rows chose each expert.
    pub(crate) fn uses(&self, n_experts: usize) -> Vec<usize> {
        let mut uses = vec![0; n_experts];
        for &expert in &self.experts {
            if let Some(uses) = uses.get_mut(expert as usize) {
                *uses += 1;
            }
        }
        uses
    }

    /// Inputs to quantise an expert by: the rows that chose it, each counting as the square of its weight,
    /// and besides them rows of all the layer that count for a few uses together. An expert that was hardly
    /// chosen goes by those: by the average of the layer. `unchanged` has the same rows as they are where
    /// nothing is quantised.
    pub(crate) fn inputs(&self, expert: usize, unchanged: Option<&Self>) -> Inputs {
        let mut inputs = self.own_inputs(expert, MAX_ROWS, unchanged);
        let n = self.len();
        let step = n.div_ceil(PRIOR_ROWS).max(1);
        let prior: Vec<usize> = (0..n).step_by(step).collect();
        let squares: f32 = self.weights.iter().map(|weight| weight * weight).sum();
        let mean = squares / self.weights.len().max(1) as f32;
        for &row in &prior {
            inputs.weights.push(mean * PRIOR_USES / prior.len() as f32);
            self.push_row(row, unchanged, &mut inputs);
        }
        inputs
    }

    /// The rows that chose an expert, at most so many.
    pub(crate) fn own_inputs(
        &self,
        expert: usize,
        most: usize,
        unchanged: Option<&Self>,
    ) -> Inputs {
        let uses: Vec<usize> = self.uses_of(expert).collect();
        let step = uses.len().div_ceil(most).max(1);
        let mut inputs = Inputs { unchanged: unchanged.map(|_| Vec::new()), ..Inputs::default() };
        for &index in uses.iter().step_by(step) {
            // Those that are left out are stood for by those that are not.
            inputs.weights.push(self.weights[index].powi(2) * step as f32);
            self.push_row(index / self.top_k, unchanged, &mut inputs);
        }
        inputs
    }

    /// All uses of an expert: the rows, their weights, and the inputs, (rows, hidden).
    pub(crate) fn all_uses(&self, expert: usize) -> (Vec<usize>, Vec<f32>, Vec<f32>) {
        let (mut rows, mut weights, mut x) = (Vec::new(), Vec::new(), Vec::new());
        for index in self.uses_of(expert) {
            rows.push(index / self.top_k);
            weights.push(self.weights[index]);
            self.decode_row(index / self.top_k, &mut x);
        }
        (rows, weights, x)
    }

    /// The uses of an expert: places in the routing.
    fn uses_of(&self, expert: usize) -> impl Iterator<Item = usize> {
        let uses = self.experts.iter().enumerate();
        uses.filter(move |&(_, &chosen)| chosen as usize == expert).map(|(index, _)| index)
    }

    /// The share of rows that are nearly those of another and chose the same experts.
    #[cfg(test)]
    pub(crate) fn share_near(&self, other: &Self, tolerance: f32) -> f64 {
        assert_eq!((self.x.len(), self.experts.len()), (other.x.len(), other.experts.len()));
        let is_near = |&row: &usize| {
            let x = row * self.hidden..(row + 1) * self.hidden;
            let mut pairs = self.x[x.clone()].iter().zip(&other.x[x]);
            let uses = row * self.top_k..(row + 1) * self.top_k;
            pairs.all(|(a, b)| (a.to_f32() - b.to_f32()).abs() <= tolerance)
                && self.experts[uses.clone()] == other.experts[uses]
        };
        (0..self.len()).filter(is_near).count() as f64 / self.len() as f64
    }

    fn push_row(&self, row: usize, unchanged: Option<&Self>, inputs: &mut Inputs) {
        self.decode_row(row, &mut inputs.x);
        if let (Some(rows), Some(out)) = (unchanged, &mut inputs.unchanged) {
            rows.decode_row(row, out);
        }
    }

    fn decode_row(&self, row: usize, out: &mut Vec<f32>) {
        let x = &self.x[row * self.hidden..][..self.hidden];
        out.extend(x.iter().map(|x| x.to_f32()));
    }
}

/// Bytes of a row in a file.
pub(crate) const fn row_bytes(top_k: usize, hidden: usize) -> usize {
    8 * top_k + 2 * hidden
}

/// A value as it is recorded.
pub(crate) fn narrow(x: f32) -> f16 {
    let largest = f16::MAX.to_f32();
    f16::from_f32(x.clamp(-largest, largest))
}
