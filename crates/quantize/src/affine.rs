//! A matrix in affine codes, and the plain ways to get there: rounding, and a search for scale and bias.

use checkpoint::{
    Affine, FloatType, QuantizedRow, decode_floats, encode_floats, pack_codes, quantize_affine,
    unpack_codes,
};

/// A matrix in affine codes: `w = scale * code + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// Width of codes and groups, type of scales and biases.
    pub affine: Affine,
    /// Input width.
    pub cols: usize,
    /// (rows, cols).
    pub codes: Vec<u8>,
    /// (rows, cols / group): scale and bias, with the values that they have when stored.
    pub params: Vec<[f32; 2]>,
}

impl Codes {
    /// Rounds weights (rows, cols) as MLX does.
    pub fn round(affine: Affine, cols: usize, weights: &[f32]) -> Self {
        let mut codes = Self { affine, cols, codes: Vec::new(), params: Vec::new() };
        let mut unpacked = vec![0.0; cols];
        for row in weights.chunks_exact(cols) {
            let mut stored = QuantizedRow::default();
            quantize_affine(affine, row, &mut stored);
            unpack_codes(affine.bits, &stored.data, &mut unpacked);
            codes.codes.extend(unpacked.iter().map(|&code| code as u8));
            let n_groups = cols / usize::from(affine.group);
            let [mut scales, mut biases] = [vec![0.0; n_groups], vec![0.0; n_groups]];
            decode_floats(affine.scales, &stored.scales, &mut scales);
            decode_floats(affine.scales, &stored.biases, &mut biases);
            codes.params.extend(scales.into_iter().zip(biases).map(|(s, b)| [s, b]));
        }
        codes
    }

    /// Searches scale and bias of every group for the least error, weighted by the importance of the
    /// columns: some clipped ranges, and from the best of them alternately the best scale and bias for
    /// the codes, and the best codes for those. Never worse than [`Codes::round`].
    pub fn search(affine: Affine, cols: usize, weights: &[f32], importance: &[f32]) -> Self {
        let mut codes = Self::round(affine, cols, weights);
        let group = usize::from(affine.group);
        let groups = weights.chunks_exact(group).zip(codes.codes.chunks_exact_mut(group));
        for (index, ((weights, codes), params)) in groups.zip(&mut codes.params).enumerate() {
            let begin = index % (cols / group) * group;
            search_group(affine, weights, &importance[begin..begin + group], codes, params);
        }
        codes
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.cols
    }

    /// The weights that the codes stand for, (rows, cols).
    pub fn values(&self) -> Vec<f32> {
        let groups = self.codes.chunks_exact(usize::from(self.affine.group)).zip(&self.params);
        groups
            .flat_map(|(codes, &[scale, bias])| {
                codes.iter().map(move |&code| f32::from(code) * scale + bias)
            })
            .collect()
    }

    /// The same row by row.
    pub fn row_values(&self) -> impl Iterator<Item = Vec<f32>> {
        let group = usize::from(self.affine.group);
        let rows = self.codes.chunks_exact(self.cols);
        rows.zip(self.params.chunks_exact(self.cols / group)).map(move |(codes, params)| {
            let groups = codes.chunks_exact(group).zip(params);
            groups
                .flat_map(|(codes, &[scale, bias])| {
                    codes.iter().map(move |&code| f32::from(code) * scale + bias)
                })
                .collect()
        })
    }

    /// Appends what is stored: packed codes, scales, biases.
    pub fn store(&self, [data, scales, biases]: &mut [Vec<u8>; 3]) {
        // A row is a whole number of bytes, so that rows follow each other without a gap.
        pack_codes(self.affine.bits, &self.codes, data);
        for [scale, bias] in &self.params {
            encode_floats(self.affine.scales, &[*scale], scales);
            encode_floats(self.affine.scales, &[*bias], biases);
        }
    }
}

/// The value that a number has when it is stored.
pub fn stored(dtype: FloatType, value: f32) -> f32 {
    match dtype {
        FloatType::F32 => value,
        FloatType::F16 => half::f16::from_f32(value).to_f32(),
        FloatType::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

/// The code that is nearest to a weight.
pub fn nearest(largest: f32, [scale, bias]: [f32; 2], weight: f32) -> u8 {
    let steps = if scale == 0.0 { 0.0 } else { (weight - bias) / scale };
    // A number that is none becomes zero.
    steps.round_ties_even().clamp(0.0, largest) as u8
}

/// Clipped shares of either end of a group's range that are tried. Two bits want up to a third of it.
const CLIPS: [f32; 8] = [0.0, 0.04, 0.08, 0.13, 0.18, 0.24, 0.3, 0.36];
/// Times that scale and bias are fitted to codes, and codes to those.
const FITS: usize = 6;

fn search_group(
    affine: Affine,
    weights: &[f32],
    importance: &[f32],
    codes: &mut [u8],
    params: &mut [f32; 2],
) {
    let largest = ((1_u32 << affine.bits) - 1) as f32;
    let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let as_stored =
        |[scale, bias]: [f32; 2]| [stored(affine.scales, scale), stored(affine.scales, bias)];
    let error_of = |params: [f32; 2]| -> f32 {
        let errors = weights.iter().zip(importance).map(|(&weight, &importance)| {
            let code = f32::from(nearest(largest, params, weight));
            let error = weight - (code * params[0] + params[1]);
            importance * error * error
        });
        errors.sum()
    };
    let given = codes.iter().zip(weights).zip(importance).map(|((&code, &weight), &importance)| {
        let error = weight - (f32::from(code) * params[0] + params[1]);
        importance * error * error
    });
    let mut least: f32 = given.sum();
    let mut best = None;
    for low_clip in CLIPS {
        for high_clip in CLIPS {
            let (low, high) = (low + low_clip * (high - low), high - high_clip * (high - low));
            let candidate = as_stored([(high - low) / largest, low]);
            let error = error_of(candidate);
            if error < least {
                (least, best) = (error, Some(candidate));
            }
        }
    }
    let recode = |params: [f32; 2], codes: &mut [u8]| {
        for (code, &weight) in codes.iter_mut().zip(weights) {
            *code = nearest(largest, params, weight);
        }
    };
    if let Some(best) = best {
        *params = best;
        recode(best, codes);
    }
    for _ in 0..FITS {
        let Some(fitted) = fit(weights, importance, codes) else { break };
        let fitted = as_stored(fitted);
        let error = error_of(fitted);
        if error >= least {
            break;
        }
        (least, *params) = (error, fitted);
        recode(fitted, codes);
    }
}

/// Scale and bias of least squares for given codes; `None` when the codes are all alike.
fn fit(weights: &[f32], importance: &[f32], codes: &[u8]) -> Option<[f32; 2]> {
    let mut sums = [0.0_f64; 5];
    for ((&weight, &importance), &code) in weights.iter().zip(importance).zip(codes) {
        let (weight, importance, code) =
            (f64::from(weight), f64::from(importance), f64::from(code));
        let terms = [1.0, code, code * code, weight, weight * code];
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += importance * term;
        }
    }
    let [n, q, qq, w, wq] = sums;
    let determinant = n * qq - q * q;
    let scale = (n * wq - q * w) / determinant;
    let bias = (w - scale * q) / n;
    let fitted = [scale as f32, bias as f32];
    (determinant > 1e-9 * n * qq && fitted.iter().all(|x| x.is_finite())).then_some(fitted)
}
