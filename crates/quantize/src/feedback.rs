//! Rounding that makes up for its errors: codes that minimise the error of a matrix's outputs.
//!
//! For inputs with second moments `M`, the mean squared error of an output row is `d M d^T` with `d` the
//! row's error of weights. Two steps lower it. *Feedback*: columns are rounded one after the other, and
//! each takes up what the errors before it cause (GPTQ, arXiv 2210.17323, in the form of LDLQ, arXiv
//! 2307.13304). *Refinement*: scale and bias of each group, and single codes, are moved as long as that
//! lowers the error itself; scale and bias are moved to values that can be stored. A row that comes out no
//! better than it went in stays as it was.

use crate::affine::{Codes, nearest, stored};
use crate::moments::{Moments, dot};

/// Sweeps over groups and codes at most.
const SWEEPS: usize = 6;
/// A sweep that gains less than this share of the error is the last.
const LEAST_GAIN: f32 = 0.01;
/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Feedback alone.
    Feedback,
    /// And refinement.
    Refine,
}

/// Lowers the error of `codes` as codes of `weights`. A row of which the error would not fall is left as
/// it is, and so are all when the moments have no factors.
pub fn improve(codes: &mut Codes, weights: &[f32], moments: &Moments, effort: Effort) {
    let cols = codes.cols;
    let mut order: Vec<usize> = (0..cols).collect();
    let diagonal: Vec<f32> = moments.diagonal().collect();
    // The most important columns first: those after them take up their errors.
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    let Some(feedback) = moments.feedback(&order) else { return };
    let group = usize::from(codes.affine.group);
    let largest = ((1_u32 << codes.affine.bits) - 1) as f32;
    let rows = weights.chunks_exact(cols).zip(codes.codes.chunks_exact_mut(cols));
    let rows = rows.zip(codes.params.chunks_exact_mut(cols / group));
    let dtype = codes.affine.scales;
    for ((weights, codes), params) in rows {
        let mut row = Row { weights, moments, group, largest, state: State::default() };
        row.take(codes.to_vec(), params.to_vec());
        let loss_before = row.state.loss;
        let fed_back = row.feed_back(&order, &feedback, params);
        row.take(fed_back, params.to_vec());
        if effort == Effort::Refine {
            row.refine(dtype);
        }
        if row.state.loss < loss_before {
            codes.copy_from_slice(&row.state.codes);
            params.copy_from_slice(&row.state.params);
        }
    }
}

/// A row of the matrix on its way.
struct Row<'a> {
    weights: &'a [f32],
    moments: &'a Moments,
    group: usize,
    largest: f32,
    state: State,
}

/// What a row has come to.
#[derive(Clone, Debug, Default)]
struct State {
    codes: Vec<u8>,
    params: Vec<[f32; 2]>,
    /// Weights less their values.
    error: Vec<f32>,
    /// Moments times error.
    slope: Vec<f32>,
    loss: f32,
}

impl Row<'_> {
    /// Starts from these codes.
    fn take(&mut self, codes: Vec<u8>, params: Vec<[f32; 2]>) {
        let value = |index: usize| {
            let [scale, bias] = params[index / self.group];
            f32::from(codes[index]) * scale + bias
        };
        let error = (0..codes.len()).map(|index| self.weights[index] - value(index)).collect();
        self.state = State { codes, params, error, slope: Vec::new(), loss: 0.0 };
        self.measure();
    }

    /// Computes slope and loss anew, free of what the steps have rounded.
    fn measure(&mut self) {
        let State { error, slope, loss, .. } = &mut self.state;
        *slope = (0..error.len()).map(|index| dot(self.moments.row(index), error)).collect();
        *loss = dot(error, slope);
    }

    /// Rounds column after column, each with what the errors of those before it ask of it.
    fn feed_back(&self, order: &[usize], feedback: &[Vec<f32>], params: &[[f32; 2]]) -> Vec<u8> {
        let mut codes = vec![0; order.len()];
        let mut errors = Vec::with_capacity(order.len());
        for (&col, feedback) in order.iter().zip(feedback) {
            let [scale, bias] = params[col / self.group];
            let wanted = self.weights[col] + dot(&errors, feedback);
            codes[col] = nearest(self.largest, [scale, bias], wanted);
            errors.push(self.weights[col] - (f32::from(codes[col]) * scale + bias));
        }
        codes
    }

    /// Moves parameters and codes while that pays.
    fn refine(&mut self, dtype: checkpoint::FloatType) {
        for _ in 0..SWEEPS {
            let before = self.state.loss;
            for group in 0..self.state.params.len() {
                self.refit(group, dtype);
            }
            for col in 0..self.state.codes.len() {
                self.recode(col);
            }
            self.measure();
            if self.state.loss > before * (1.0 - LEAST_GAIN) {
                break;
            }
        }
    }

    /// Moves scale and bias of a group to the best stored values.
    fn refit(&mut self, group: usize, dtype: checkpoint::FloatType) {
        let begin = group * self.group;
        let range = begin..begin + self.group;
        let codes: Vec<f32> =
            self.state.codes[range.clone()].iter().map(|&code| f32::from(code)).collect();
        // With Q the codes and 1 ones: the loss changes by -2 (ds Q + db 1) e + its own square.
        let (mut qq, mut qo, mut oo) = (0.0_f64, 0.0_f64, 0.0_f64);
        let (mut qe, mut oe) = (0.0_f64, 0.0_f64);
        for (index, &code) in codes.iter().enumerate() {
            let moments = &self.moments.row(begin + index)[range.clone()];
            let along = f64::from(dot(moments, &codes));
            let sum: f64 = f64::from(moments.iter().sum::<f32>());
            qq += f64::from(code) * along;
            qo += along;
            oo += sum;
            let slope = f64::from(self.state.slope[begin + index]);
            qe += f64::from(code) * slope;
            oe += slope;
        }
        let change = |ds: f64, db: f64| {
            -2.0 * (ds * qe + db * oe) + ds * ds * qq + 2.0 * ds * db * qo + db * db * oo
        };
        let determinant = qq * oo - qo * qo;
        let [scale, bias] = self.state.params[group];
        let ds = if determinant > 1e-9 * qq * oo { (qe * oo - oe * qo) / determinant } else { 0.0 };
        let mut best = (0.0, [scale, bias]);
        for scale_new in neighbours(dtype, (f64::from(scale) + ds) as f32) {
            let ds = f64::from(scale_new) - f64::from(scale);
            let db = (oe - ds * qo) / oo;
            for bias_new in neighbours(dtype, (f64::from(bias) + db) as f32) {
                let change = change(ds, f64::from(bias_new) - f64::from(bias));
                if change < best.0 && scale_new != 0.0 {
                    best = (change, [scale_new, bias_new]);
                }
            }
        }
        let (_, params) = best;
        if params == [scale, bias] {
            return;
        }
        self.state.params[group] = params;
        for (index, code) in codes.into_iter().enumerate() {
            let value = code * params[0] + params[1];
            self.move_by(begin + index, self.weights[begin + index] - value);
        }
    }

    /// Moves a code to the best value.
    fn recode(&mut self, col: usize) {
        let [scale, bias] = self.state.params[col / self.group];
        let own = self.moments.row(col)[col];
        let value = f32::from(self.state.codes[col]) * scale + bias;
        let code = nearest(self.largest, [scale, bias], value + self.state.slope[col] / own);
        if code != self.state.codes[col] {
            self.state.codes[col] = code;
            self.move_by(col, self.weights[col] - (f32::from(code) * scale + bias));
        }
    }

    /// Sets the error of a column, and the slope with it.
    fn move_by(&mut self, col: usize, error: f32) {
        let step = error - self.state.error[col];
        self.state.error[col] = error;
        if step != 0.0 {
            for (slope, moment) in self.state.slope.iter_mut().zip(self.moments.row(col)) {
                *slope += step * moment;
            }
        }
    }
}

/// The stored values around a number: the nearest, and the next on either side.
fn neighbours(dtype: checkpoint::FloatType, value: f32) -> [f32; 3] {
    let nearest = stored(dtype, value);
    let step = match dtype {
        checkpoint::FloatType::F32 => return [nearest; 3],
        checkpoint::FloatType::F16 => 1.0 / 1024.0,
        checkpoint::FloatType::Bf16 => 1.0 / 128.0,
    };
    // A full step of the last place leads to a neighbour whatever the place of the number in its octave.
    [nearest, stored(dtype, nearest * (1.0 + step)), stored(dtype, nearest * (1.0 - step))]
}
