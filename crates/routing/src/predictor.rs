//! A trained predictor of router logits: a linear map of low rank.
//!
//! **Ridge regression of reduced rank, in closed form.** With centred inputs `X` (rows, width) and targets
//! `Y` (rows, outputs), ridge regression gives `X^T (X X^T + lambda I)^-1 Y`; the best map of rank `r` is
//! that one times the projection onto the `r` leading eigenvectors of `Y^T K (K + lambda I)^-1 Y` with
//! `K = X X^T` (A. Izenman, Reduced-rank regression, 1975; with a ridge: A. Mukherjee and J. Zhu, 2011).
//! Everything goes through `K`, because rows are fewer than or about as many as the width.

use linear::{Matrix, add_scaled, cholesky, dot, leading_vectors, rows_by_rows, solve};

/// Ridges that are tried, as shares of the mean square of an input row.
const RIDGES: [f64; 4] = [0.003, 0.03, 0.3, 3.0];

/// A linear map of low rank with means.
#[derive(Clone, Debug)]
pub struct LowRank {
    input_means: Vec<f64>,
    output_means: Vec<f64>,
    /// (rank, width)
    down: Matrix,
    /// (rank, outputs)
    up: Matrix,
}

impl LowRank {
    /// Fits a map of at most `rank` from the rows of `inputs` to those of `targets`. The ridge is the one
    /// of which the map of the first four fifths of the rows fits the last fifth best. `None` with fewer
    /// than ten rows.
    pub fn fit(inputs: &Matrix, targets: &Matrix, rank: usize) -> Option<Self> {
        let rows = inputs.rows();
        if rows < 10 {
            return None;
        }
        let (input_means, output_means) = (inputs.column_means(), targets.column_means());
        let x = centred(inputs, &input_means);
        let y = centred(targets, &output_means).transposed();
        let kernel = rows_by_rows(&x, &x);
        let mean_square = (0..rows).map(|row| kernel.row(row)[row]).sum::<f64>() / rows as f64;
        let n_fitted = rows - rows / 5;
        let errors = RIDGES.map(|ridge| {
            let weights = ridge_weights(&kernel, &y, n_fitted, ridge * mean_square);
            (weights.map_or(f64::INFINITY, |weights| error(&kernel, &y, &weights)), ridge)
        });
        let best = errors.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, ridge) = best.filter(|(error, _)| error.is_finite())?;

        // (outputs, rows) each.
        let weights = ridge_weights(&kernel, &y, rows, ridge * mean_square)?;
        let fitted = rows_by_rows(&weights, &kernel);
        let up = leading_vectors(&rows_by_rows(&y, &fitted), rank);
        let weights = rows_by_rows(&up, &weights.transposed());
        let down = rows_by_rows(&weights, &x.transposed());
        Some(Self { input_means, output_means, down, up })
    }

    /// The targets that an input row lets expect, (outputs).
    pub fn predict(&self, input: &[f64]) -> Vec<f64> {
        let mut output = self.output_means.clone();
        for rank in 0..self.up.rows() {
            let down = self.down.row(rank);
            let inner = dot(down, input) - dot(down, &self.input_means);
            add_scaled(&mut output, inner, self.up.row(rank));
        }
        output
    }
}

fn centred(matrix: &Matrix, means: &[f64]) -> Matrix {
    let mut centred = matrix.clone();
    for row in centred.values.chunks_exact_mut(matrix.cols.max(1)) {
        add_scaled(row, -1.0, means);
    }
    centred
}

/// `(K + ridge I)^-1 Y` of the first rows, transposed: (outputs, n_fitted).
fn ridge_weights(kernel: &Matrix, y: &Matrix, n_fitted: usize, ridge: f64) -> Option<Matrix> {
    let mut part = Matrix::zeros(n_fitted, n_fitted);
    for row in 0..n_fitted {
        part.row_mut(row).copy_from_slice(&kernel.row(row)[..n_fitted]);
        part.row_mut(row)[row] += ridge;
    }
    let l = cholesky(part)?;
    let mut weights = Matrix::zeros(y.rows(), n_fitted);
    for output in 0..y.rows() {
        weights.row_mut(output).copy_from_slice(&y.row(output)[..n_fitted]);
        solve(&l, weights.row_mut(output));
    }
    Some(weights)
}

/// The squared error on the rows that were not fitted.
fn error(kernel: &Matrix, y: &Matrix, weights: &Matrix) -> f64 {
    let n_fitted = weights.cols;
    let mut sum = 0.0;
    for row in n_fitted..kernel.rows() {
        let near = &kernel.row(row)[..n_fitted];
        for output in 0..y.rows() {
            sum += (y.row(output)[row] - dot(weights.row(output), near)).powi(2);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use linear::next_random;

    fn random(rows: usize, cols: usize, state: &mut u64) -> Matrix {
        let mut matrix = Matrix::zeros(rows, cols);
        for value in &mut matrix.values {
            *value = (next_random(state) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
        }
        matrix
    }

    /// Inputs, targets by a map of rank 3 with means, and fresh rows of the same.
    fn planted(rows: usize) -> [Matrix; 2] {
        let mut state = 7;
        let (down, up) = (random(3, 24, &mut state), random(16, 3, &mut state));
        let inputs = random(rows, 24, &mut state);
        let mut targets = rows_by_rows(&rows_by_rows(&inputs, &down), &up);
        for (index, value) in targets.values.iter_mut().enumerate() {
            *value += (index % 16) as f64;
        }
        [inputs, targets]
    }

    fn largest_error(map: &LowRank, inputs: &Matrix, targets: &Matrix, rows: usize) -> f64 {
        let mut largest = 0.0_f64;
        for row in inputs.rows() - rows..inputs.rows() {
            for (found, value) in map.predict(inputs.row(row)).iter().zip(targets.row(row)) {
                largest = largest.max((found - value).abs());
            }
        }
        largest
    }

    fn first_rows(matrix: &Matrix, rows: usize) -> Matrix {
        Matrix { cols: matrix.cols, values: matrix.values[..rows * matrix.cols].to_vec() }
    }

    #[test]
    fn a_planted_map_is_found_again() {
        let [inputs, targets] = planted(400);
        let (seen_x, seen_y) = (first_rows(&inputs, 300), first_rows(&targets, 300));
        let map = LowRank::fit(&seen_x, &seen_y, 3).expect("rows enough");
        let error = largest_error(&map, &inputs, &targets, 100);
        assert!(error < 0.02, "rows that were not seen are predicted: {error}");
        let poorer = LowRank::fit(&seen_x, &seen_y, 2).expect("rows enough");
        let error = largest_error(&poorer, &inputs, &targets, 100);
        assert!(error > 0.2, "rank 2 cannot do what rank 3 does: {error}");
    }

    #[test]
    fn few_rows_are_refused() {
        let [inputs, targets] = planted(9);
        assert!(LowRank::fit(&inputs, &targets, 3).is_none());
    }
}
