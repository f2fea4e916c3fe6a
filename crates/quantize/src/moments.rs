//! Moments of inputs, and what rounding with error feedback makes of them.

use linear::{Matrix, cholesky};

/// Share of what is beside the diagonal of moments that is kept (`docs/experiments.md` has what was tried).
const KEPT: f32 = 0.3;

/// A symmetric positive-definite matrix of second moments, (n, n), row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    n: usize,
    values: Vec<f32>,
}

impl Moments {
    /// The sum over rows of `weight * x x^T` for `x` (rows, n), with a hundredth of the mean of its diagonal
    /// added to that, so that directions that the rows do not span count a little, too; what is beside the
    /// diagonal counts less than it is ([`shrink`]).
    pub fn of_rows(n: usize, x: &[f32], weights: &[f32]) -> Self {
        let mut moments = Self { n, values: cross_moments(n, x, n, x, weights) };
        moments.damp();
        shrink(n, &mut moments.values);
        moments
    }

    /// Width.
    pub fn n(&self) -> usize {
        self.n
    }

    /// A row, or the column that equals it.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.n..][..self.n]
    }

    /// The diagonal.
    pub fn diagonal(&self) -> impl Iterator<Item = f32> {
        (0..self.n).map(|index| self.values[index * self.n + index])
    }

    /// What is added to the diagonal to keep the matrix well conditioned.
    pub fn damping(n: usize, trace: f32) -> f32 {
        (0.01 * trace / n as f32).max(1e-12)
    }

    fn damp(&mut self) {
        let damping = Self::damping(self.n, self.diagonal().sum());
        for index in 0..self.n {
            self.values[index * self.n + index] += damping;
        }
    }

    /// The matrix `U` of `M = (U + I) D (U + I)^T`, strictly upper triangular in the given order of
    /// columns, transposed: row `k` has the `k` entries above the diagonal of column `k`.
    ///
    /// `None` if the matrix is not positive definite, or has entries that are not finite.
    pub fn feedback(&self, order: &[usize]) -> Option<Vec<Vec<f32>>> {
        let n = self.n;
        // Of the matrix in reversed order, whose Cholesky factor read backwards is the one wanted.
        let mut reversed = Matrix::zeros(n, n);
        for (i, &row) in order.iter().rev().enumerate() {
            let values = reversed.row_mut(i).iter_mut().zip(order.iter().rev());
            values.for_each(|(value, &col)| *value = self.row(row)[col].into());
        }
        let factor = cholesky(reversed)?;
        let upper = |i: usize, j: usize| factor.row(n - 1 - i)[n - 1 - j];
        let column = |k: usize| (0..k).map(|i| (upper(i, k) / upper(k, k)) as f32).collect();
        Some((0..n).map(column).collect())
    }
}

/// Takes a share of what is beside the diagonal of (n, n) away. Errors that cancel each other by correlations of
/// the text that was read do so less on other text, and behind layers whose outputs have changed.
pub fn shrink(n: usize, values: &mut [f32]) {
    for (row, values) in values.chunks_exact_mut(n).enumerate() {
        for (col, value) in values.iter_mut().enumerate() {
            if row != col {
                *value *= KEPT;
            }
        }
    }
}

/// The sum over rows of `weight * a b^T`, (n_a, n_b).
pub fn cross_moments(n_a: usize, a: &[f32], n_b: usize, b: &[f32], weights: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0_f32; n_a * n_b];
    let rows = a.chunks_exact(n_a).zip(b.chunks_exact(n_b)).zip(weights);
    for ((a, b), &weight) in rows {
        for (sums, &a) in sums.chunks_exact_mut(n_b).zip(a) {
            let factor = weight * a;
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum += factor * b;
            }
        }
    }
    sums
}

/// The solutions `y` of `M y = r` for the rows `r` of `right`, (rows, n), in their place.
///
/// `None` if the matrix is not positive definite.
pub fn solve(moments: &Moments, right: &mut [f32]) -> Option<()> {
    let values = moments.values.iter().map(|&value| value.into()).collect();
    let factor = cholesky(Matrix { cols: moments.n, values })?;
    let mut y = vec![0.0; moments.n];
    for right in right.chunks_exact_mut(moments.n) {
        y.iter_mut().zip(&*right).for_each(|(y, &right)| *y = right.into());
        linear::solve(&factor, &mut y);
        right.iter_mut().zip(&y).for_each(|(right, y)| *right = *y as f32);
    }
    Some(())
}

/// The sum of products, in eight running sums.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `x W^T` for rows `x` (rows, cols) and a matrix (n, cols).
pub fn times_transposed(x: &[f32], weights: &[f32], cols: usize) -> Vec<f32> {
    let rows = x.chunks_exact(cols);
    rows.flat_map(|x| weights.chunks_exact(cols).map(move |weights| dot(x, weights))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four rows of three values, with weights.
    fn rows() -> (Vec<f32>, Vec<f32>) {
        let x = vec![1.0, 2.0, 0.5, -1.0, 0.3, 2.0, 0.1, -0.7, 0.9, 1.5, 1.0, -1.0];
        (x, vec![1.0, 0.5, 2.0, 0.25])
    }

    #[test]
    fn the_factors_make_the_matrix() {
        let (x, weights) = rows();
        let moments = Moments::of_rows(3, &x, &weights);
        let order = [2, 0, 1];
        let feedback = moments.feedback(&order).expect("it is positive definite");
        // M = (U + I) D (U + I)^T: with V = (U + I)^-1 the product V M V^T is diagonal. Going from the last
        // column, what is left of M after each step must be zero in that column.
        let mut left: Vec<Vec<f32>> =
            order.iter().map(|&i| order.iter().map(|&j| moments.row(i)[j]).collect()).collect();
        for k in (0..3).rev() {
            let d = left[k][k];
            assert!(d > 0.0);
            let mut column = feedback[k].clone();
            column.push(1.0);
            for i in 0..=k {
                for j in 0..=k {
                    left[i][j] -= d * column[i] * column[j];
                }
                assert!(left[i][k].abs() < 1e-5, "column {k} is made of the factors");
            }
        }
    }

    #[test]
    fn what_is_solved_gives_the_right_side() {
        let (x, weights) = rows();
        let moments = Moments::of_rows(3, &x, &weights);
        let right = [0.3, -1.0, 2.0, 1.0, 0.0, 0.0];
        let mut y = right;
        solve(&moments, &mut y).expect("it is positive definite");
        for (y, right) in y.chunks_exact(3).zip(right.chunks_exact(3)) {
            for (row, right) in right.iter().enumerate() {
                assert!((dot(moments.row(row), y) - right).abs() < 1e-4);
            }
        }
        let nothing = Moments { n: 2, values: vec![1.0, 2.0, 2.0, 1.0] };
        assert_eq!(solve(&nothing, &mut [1.0, 1.0]), None, "it is indefinite");
    }
}
