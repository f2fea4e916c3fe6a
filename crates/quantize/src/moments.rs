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
        let mut values = vec![0.0; n * n];
        add_moments((n, x), (n, x), weights, &mut values, |row| row);
        for row in 1..n {
            for col in 0..row {
                values[row * n + col] = values[col * n + row];
            }
        }
        let mut moments = Self { n, values };
        moments.damp();
        shrink(n, &mut moments.values);
        moments
    }

    /// The diagonal of [`Moments::of_rows`] alone, for a small part of the work.
    pub fn diagonal_of_rows(n: usize, x: &[f32], weights: &[f32]) -> Vec<f32> {
        let mut diagonal = vec![0.0; n];
        for (x, weight) in x.chunks_exact(n).zip(weights) {
            for (sum, x) in diagonal.iter_mut().zip(x) {
                *sum += weight * x * x;
            }
        }
        let damping = Self::damping(n, diagonal.iter().sum());
        diagonal.iter_mut().for_each(|sum| *sum += damping);
        diagonal
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
    add_moments((n_a, a), (n_b, b), weights, &mut sums, |_| 0);
    sums
}

/// Rows that are added at a time: sums are read and written once for so many.
const STRIP: usize = 8;

/// Adds `weight * a b^T` of all rows to sums (n_a, n_b), of row `i` the columns from `first(i)` on.
fn add_moments(
    (n_a, a): (usize, &[f32]),
    (n_b, b): (usize, &[f32]),
    weights: &[f32],
    sums: &mut [f32],
    first: impl Fn(usize) -> usize,
) {
    let strips = a.chunks(STRIP * n_a).zip(b.chunks(STRIP * n_b)).zip(weights.chunks(STRIP));
    for ((a, b), weights) in strips {
        for (i, sums) in sums.chunks_exact_mut(n_b).enumerate() {
            let sums = &mut sums[first(i)..];
            let part = |k: usize| &b[k * n_b + first(i)..(k + 1) * n_b];
            let factor = |k: usize| weights[k] * a[k * n_a + i];
            if weights.len() < STRIP {
                for k in 0..weights.len() {
                    let factor = factor(k);
                    for (sum, b) in sums.iter_mut().zip(part(k)) {
                        *sum += factor * b;
                    }
                }
                continue;
            }
            let f: [f32; STRIP] = std::array::from_fn(factor);
            let n = sums.len();
            let b: [&[f32]; STRIP] = std::array::from_fn(|k| &part(k)[..n]);
            for (j, sum) in sums.iter_mut().enumerate() {
                let even = f[0] * b[0][j] + f[2] * b[2][j] + f[4] * b[4][j] + f[6] * b[6][j];
                let odd = f[1] * b[1][j] + f[3] * b[3][j] + f[5] * b[5][j] + f[7] * b[7][j];
                *sum += even + odd;
            }
        }
    }
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
    let (n, width) = (x.len() / cols, weights.len() / cols);
    let mut out = vec![0.0; n * width];
    for (x, out) in x.chunks(4 * cols).zip(out.chunks_mut(4 * width)) {
        if x.len() == 4 * cols {
            let rows: [&[f32]; 4] = std::array::from_fn(|row| &x[row * cols..(row + 1) * cols]);
            for (index, weights) in weights.chunks_exact(cols).enumerate() {
                for (row, value) in four_dots(rows, weights).into_iter().enumerate() {
                    out[row * width + index] = value;
                }
            }
        } else {
            for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(width)) {
                for (out, weights) in out.iter_mut().zip(weights.chunks_exact(cols)) {
                    *out = dot(x, weights);
                }
            }
        }
    }
    out
}

/// The sums of products of four rows with a fifth, so that it is read once; the same bits as [`dot`] gives.
fn four_dots(rows: [&[f32]; 4], other: &[f32]) -> [f32; 4] {
    let mut sums = [[0.0_f32; 8]; 4];
    let (chunks, rest) = other.as_chunks::<8>();
    let split = rows.map(|row| row[..other.len()].as_chunks::<8>());
    for (index, other) in chunks.iter().enumerate() {
        for (sums, (row, _)) in sums.iter_mut().zip(&split) {
            for ((sum, a), b) in sums.iter_mut().zip(&row[index]).zip(other) {
                *sum += a * b;
            }
        }
    }
    std::array::from_fn(|row| {
        let left: f32 = split[row].1.iter().zip(rest).map(|(a, b)| a * b).sum();
        sums[row].iter().sum::<f32>() + left
    })
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
        let alone = Moments::diagonal_of_rows(3, &x, &weights);
        assert!(alone.iter().zip(moments.diagonal()).all(|(a, b)| (a - b).abs() < 1e-5));
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
