//! One routed expert: its codes, and what they change of its outputs.

use checkpoint::Affine;

use crate::affine::Codes;
use crate::feedback::{Effort, improve};
use crate::moments::{Moments, cross_moments, shrink, solve, times_transposed};

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Rounding, bit by bit as MLX does.
    Round,
    /// Scale and bias of every group by search, weighted by the inputs' mean squares where inputs are known.
    Search,
    /// And rounding with error feedback.
    Feedback,
    /// And refinement, and a down projection that makes up for the errors of gate and up.
    Refine,
    /// And layer after layer, each by what the quantised layers before it give it.
    Sequential,
}

/// The weights of an expert as numbers: `(silu(x gate^T) * (x up^T)) down^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert {
    /// Width of inputs and outputs.
    pub hidden: usize,
    /// Width between.
    pub intermediate: usize,
    /// (intermediate, hidden).
    pub gate: Vec<f32>,
    /// (intermediate, hidden).
    pub up: Vec<f32>,
    /// (hidden, intermediate).
    pub down: Vec<f32>,
}

/// Inputs of an expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// (rows, hidden).
    pub x: Vec<f32>,
    /// The same rows as they are where nothing before is quantised, if they differ: what the expert's
    /// outputs should be is what it makes of those.
    pub unchanged: Option<Vec<f32>>,
    /// How much the squared error of each row's output counts.
    pub weights: Vec<f32>,
}

impl Inputs {
    /// Lets the error of each row's output count as a share of the output's square.
    pub fn count_relative(&mut self, outputs: &[f32]) {
        let width = (outputs.len() / self.weights.len().max(1)).max(1);
        for (weight, output) in self.weights.iter_mut().zip(outputs.chunks_exact(width)) {
            let square: f32 = output.iter().map(|value| value * value).sum();
            *weight /= square.max(f32::MIN_POSITIVE);
        }
    }

    /// The sum over the rows of the squared difference of outputs, (rows, hidden) each.
    pub fn loss(&self, outputs: &[f32], others: &[f32]) -> f64 {
        let width = (outputs.len() / self.weights.len().max(1)).max(1);
        let rows = outputs.chunks_exact(width).zip(others.chunks_exact(width));
        let losses = rows.zip(&self.weights).map(|((outputs, others), &weight)| {
            let squares = outputs.iter().zip(others).map(|(a, b)| f64::from(a - b).powi(2));
            f64::from(weight) * squares.sum::<f64>()
        });
        losses.sum()
    }
}

impl Expert {
    /// The values between, (rows, intermediate).
    fn inner(&self, x: &[f32]) -> Vec<f32> {
        let gates = times_transposed(x, &self.gate, self.hidden);
        let ups = times_transposed(x, &self.up, self.hidden);
        gates.iter().zip(ups).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
    }

    /// The outputs, (rows, hidden).
    pub fn outputs(&self, x: &[f32]) -> Vec<f32> {
        times_transposed(&self.inner(x), &self.down, self.intermediate)
    }

    /// Whether all weights are finite.
    pub fn is_finite(&self) -> bool {
        [&self.gate, &self.up, &self.down].iter().all(|part| part.iter().all(|w| w.is_finite()))
    }

    /// The same expert with the weights that codes stand for.
    pub fn with_codes(&self, [gate, up, down]: &[Codes; 3]) -> Self {
        Self { gate: gate.values(), up: up.values(), down: down.values(), ..*self }
    }

    /// The sum over the inputs of the squared difference of outputs, as much as each counts.
    pub fn output_loss(&self, other: &Self, inputs: &Inputs) -> f64 {
        inputs.loss(&self.outputs(&inputs.x), &other.outputs(&inputs.x))
    }

    /// How much the columns of gate and up, and those of down, count: the mean squares of what they are given.
    pub fn importance(&self, inputs: &Inputs) -> [Vec<f32>; 2] {
        let of = |width, x: &[f32]| Moments::diagonal_of_rows(width, x, &inputs.weights);
        [of(self.hidden, &inputs.x), of(self.intermediate, &self.inner(&inputs.x))]
    }

    /// Codes by search, of columns that count so.
    pub fn search(&self, affine: Affine, [outer, inner]: &[Vec<f32>; 2]) -> [Codes; 3] {
        [(&self.gate, outer), (&self.up, outer), (&self.down, inner)].map(
            |(weights, importance)| Codes::search(affine, importance.len(), weights, importance),
        )
    }

    /// The codes of gate, up and down. Without inputs all columns count alike, and there is nothing that
    /// feedback could go by.
    pub fn quantise(&self, affine: Affine, method: Method, inputs: Option<&Inputs>) -> [Codes; 3] {
        let widths = [self.hidden, self.hidden, self.intermediate];
        let matrices = [&self.gate, &self.up, &self.down];
        let each = |codes: &dyn Fn(usize, &[f32]) -> Codes| {
            [0, 1, 2].map(|part| codes(widths[part], matrices[part]))
        };
        let inputs = match (method, inputs) {
            (Method::Round, _) => return each(&|cols, w| Codes::round(affine, cols, w)),
            (_, None) => {
                return each(&|cols, w| Codes::search(affine, cols, w, &vec![1.0; cols]));
            }
            (Method::Search, Some(inputs)) => {
                return self.search(affine, &self.importance(inputs));
            }
            (Method::Feedback | Method::Refine | Method::Sequential, Some(inputs)) => inputs,
        };
        let effort = if method == Method::Feedback { Effort::Feedback } else { Effort::Refine };
        let matrix = |weights: &[f32], moments: &Moments| {
            let importance: Vec<f32> = moments.diagonal().collect();
            let mut codes = Codes::search(affine, moments.n(), weights, &importance);
            improve(&mut codes, weights, moments, effort);
            codes
        };
        let (weights, x) = (&inputs.weights, &inputs.x);
        let wanted_x = inputs.unchanged.as_ref().unwrap_or(x);
        let moments = Moments::of_rows(self.hidden, x, weights);
        let [gate, up] = [&self.gate, &self.up].map(|part| {
            let wanted = inputs.unchanged.as_ref().and_then(|unchanged| {
                made_up_for(part, self.hidden, (x, unchanged), weights, &moments)
            });
            matrix(wanted.as_ref().unwrap_or(part), &moments)
        });
        drop(moments);
        let width = self.intermediate;
        let unchanged = self.inner(wanted_x);
        if effort == Effort::Feedback {
            let moments = Moments::of_rows(width, &self.inner(&inputs.x), weights);
            let down = matrix(&self.down, &moments);
            return [gate, up, down];
        }
        // Down will be given what the codes of gate and up make of the inputs.
        let changed = Self { gate: gate.values(), up: up.values(), ..self.clone() };
        let changed = changed.inner(&inputs.x);
        let moments = Moments::of_rows(width, &changed, weights);
        let wanted = made_up_for(&self.down, width, (&changed, &unchanged), weights, &moments);
        let down = matrix(wanted.as_ref().unwrap_or(&self.down), &moments);
        [gate, up, down]
    }
}

/// The weights that come nearest to the outputs of `matrix` on unchanged rows when they are given changed ones
/// instead, of which these are the moments; `None` if there are none such.
fn made_up_for(
    matrix: &[f32],
    width: usize,
    (changed, unchanged): (&[f32], &[f32]),
    weights: &[f32],
    moments: &Moments,
) -> Option<Vec<f32>> {
    let mut cross = cross_moments(width, changed, width, unchanged, weights);
    // What the inputs do not tell is to stay as it is.
    let plain: f32 = (0..width).map(|i| moments.row(i)[i]).sum();
    let damping = Moments::damping(width, plain);
    for index in 0..width {
        cross[index * width + index] += damping;
    }
    shrink(width, &mut cross);
    let mut wanted = times_transposed(matrix, &cross, width);
    solve(moments, &mut wanted)?;
    wanted.iter().all(|w| w.is_finite()).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use checkpoint::FloatType;

    use super::*;

    /// Numbers from -1 to 1, always the same.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// An expert, and inputs of few directions and very uneven columns, as real ones are.
    fn expert_and_inputs() -> (Expert, Inputs) {
        let (hidden, intermediate, n) = (64, 32, 300);
        let expert = Expert {
            hidden,
            intermediate,
            gate: noise(hidden * intermediate, 1),
            up: noise(hidden * intermediate, 2),
            down: noise(hidden * intermediate, 3),
        };
        let (mixing, sources) = (noise(hidden * 12, 4), noise(n * 12, 5));
        let mut x = times_transposed(&sources, &mixing, 12);
        for (index, x) in x.iter_mut().enumerate() {
            *x *= if index % hidden < 4 { 3.0 } else { 0.4 };
        }
        (expert, Inputs { x, unchanged: None, weights: vec![0.25; n] })
    }

    #[test]
    fn each_method_loses_less_than_the_one_before() {
        let (expert, inputs) = expert_and_inputs();
        for bits in [2, 3, 4] {
            let affine = Affine { bits, group: 32, scales: FloatType::Bf16 };
            let loss = |method| {
                let codes = expert.quantise(affine, method, Some(&inputs));
                expert.output_loss(&expert.with_codes(&codes), &inputs)
            };
            let methods = [Method::Round, Method::Search, Method::Feedback, Method::Refine];
            let losses = methods.map(loss);
            println!("{bits} bits: {losses:?}");
            assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{bits} bits: {losses:?}");
            assert!(losses[3] < losses[0] / 3.0, "{bits} bits: {losses:?}");
        }
    }

    #[test]
    fn a_search_without_inputs_is_no_worse_than_rounding() {
        let (expert, _) = expert_and_inputs();
        let affine = Affine { bits: 3, group: 32, scales: FloatType::Bf16 };
        let squares = |codes: &Codes, weights: &[f32]| -> f32 {
            codes.values().iter().zip(weights).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let rounded = expert.quantise(affine, Method::Round, None);
        let searched = expert.quantise(affine, Method::Search, None);
        for (index, weights) in [&expert.gate, &expert.up, &expert.down].into_iter().enumerate() {
            assert!(squares(&searched[index], weights) < 0.95 * squares(&rounded[index], weights));
        }
    }
}
