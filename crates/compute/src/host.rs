//! What both backends on the host share: buffers, routing, small functions.

use crate::backend::{RouterSpec, Routing};

/// Activations in ordinary memory, (rows, width).
#[derive(Debug)]
pub struct HostBuffer {
    values: Vec<f32>,
    width: usize,
    rows: usize,
}

impl HostBuffer {
    pub(crate) fn new(max_rows: usize, width: usize) -> Self {
        Self { values: vec![0.0; max_rows * width], width, rows: 0 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows that it has room for.
    pub fn max_rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Takes so many rows with these values, for who computes on the host in the place of a device.
    pub fn fill(&mut self, rows: usize, values: &[f32]) {
        self.set_rows(rows);
        self.values_mut().copy_from_slice(values);
    }

    pub(crate) fn set_rows(&mut self, rows: usize) {
        assert!(rows * self.width <= self.values.len(), "{rows} rows fit the buffer");
        self.rows = rows;
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values[..self.rows * self.width]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.rows * self.width]
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.width..][..self.width]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let width = self.width;
        &mut self.values_mut()[row * width..][..width]
    }
}

impl HostBuffer {
    /// Takes rows of another buffer.
    pub(crate) fn gather(&mut self, other: &Self, rows: &[u32]) {
        self.set_rows(rows.len());
        for (index, &row) in rows.iter().enumerate() {
            self.row_mut(index).copy_from_slice(other.row(row as usize));
        }
    }

    /// Adds another buffer of the same shape.
    pub(crate) fn add(&mut self, other: &Self) {
        for (value, other) in self.values_mut().iter_mut().zip(other.values()) {
            *value += other;
        }
    }
}

/// The logistic function.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x * sigmoid(x)`.
pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `ln(1 + e^x)`, which is `x` to all digits from 20 on.
pub(crate) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The logarithm of the decay and the writing strength of a delta-rule head.
pub(crate) fn delta_gates(a: f32, b: f32, a_log: f32, dt_bias: f32) -> (f32, f32) {
    (-a_log.exp() * softplus(a + dt_bias), sigmoid(b))
}

/// Cosine and sine of each rotary frequency at a position, as the reference implementation computes
/// them: frequency and angle in `f32`. Appended to `out`.
pub fn rotary_angles(theta: f64, rotary_dim: usize, position: usize, out: &mut Vec<[f32; 2]>) {
    out.extend((0..rotary_dim / 2).map(|pair| {
        let exponent = (2 * pair) as f64 / rotary_dim as f64;
        let frequency = 1.0 / theta.powf(exponent) as f32;
        let angle = position as f32 * frequency;
        [angle.cos(), angle.sin()]
    }));
}

/// Turns the leading dimensions of a head: pairs are `(j, j + rotary_dim / 2)`.
pub(crate) fn rotate(head: &mut [f32], angles: &[[f32; 2]]) {
    let (low, high) = head[..2 * angles.len()].split_at_mut(angles.len());
    for ((x, y), [cos, sin]) in low.iter_mut().zip(high).zip(angles) {
        (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
    }
}

/// Softmax over all logits, and the `top_k` largest; renormalised, that is a softmax over the chosen
/// logits alone. Of equal logits the lower index is chosen first.
pub(crate) fn route_rows(logits: &HostBuffer, spec: RouterSpec, routing: &mut Routing) {
    let RouterSpec { top_k, normalise } = spec;
    routing.top_k = top_k;
    routing.experts.clear();
    routing.weights.clear();
    for row in 0..logits.rows() {
        let row = logits.row(row);
        let first = routing.experts.len();
        for (expert, &logit) in row.iter().enumerate() {
            // A sorted list of the best so far; logits that are not numbers order like all others.
            let chosen = &mut routing.experts[first..];
            let place =
                chosen.partition_point(|&other| row[other as usize].total_cmp(&logit).is_ge());
            if place < top_k {
                if routing.experts.len() - first == top_k {
                    routing.experts.pop();
                }
                routing.experts.insert(first + place, expert as u32);
            }
        }
        let chosen = &routing.experts[first..];
        let best = row[chosen[0] as usize];
        let begin = routing.weights.len();
        routing.weights.extend(chosen.iter().map(|&expert| (row[expert as usize] - best).exp()));
        let weights = &mut routing.weights[begin..];
        let sum: f32 = if normalise {
            weights.iter().sum()
        } else {
            row.iter().map(|logit| (logit - best).exp()).sum()
        };
        for weight in weights {
            *weight /= sum;
        }
    }
}

/// The index of the largest value, of equals the first: how the best token is chosen, whoever does it.
pub fn best(values: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(rows: &[&[f32]], top_k: usize) -> Routing {
        route_as(rows, RouterSpec { top_k, normalise: true })
    }

    fn route_as(rows: &[&[f32]], spec: RouterSpec) -> Routing {
        let mut logits = HostBuffer::new(rows.len(), rows[0].len());
        logits.set_rows(rows.len());
        logits.values_mut().copy_from_slice(&rows.concat());
        let mut routing = Routing::default();
        route_rows(&logits, spec, &mut routing);
        routing
    }

    #[test]
    fn the_largest_are_chosen_and_the_first_of_equals() {
        let routing = route(&[&[0.0, 2.0, 1.0, 2.0], &[5.0, -1.0, 5.0, 5.0]], 2);
        assert_eq!(routing.experts, [1, 3, 0, 2]);
        assert_eq!(routing.weights, [0.5, 0.5, 0.5, 0.5]);
        let routing = route(&[&[3.0_f32.ln(), 0.0, -9.0]], 2);
        assert!((routing.weights[0] - 0.75).abs() < 1e-6, "{routing:?}");
        let spec = RouterSpec { top_k: 1, normalise: false };
        let routing = route_as(&[&[3.0_f32.ln(), 0.0, 0.0]], spec);
        assert!((routing.weights[0] - 0.6).abs() < 1e-6, "{routing:?}");
    }

    #[test]
    fn numbers_that_are_none_choose_distinct_experts() {
        let nan = f32::NAN;
        let mut chosen = route(&[&[nan, 1.0, nan, nan]], 3).experts;
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), 3);
    }
}
