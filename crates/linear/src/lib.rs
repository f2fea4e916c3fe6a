//! A little linear algebra in 64 bits: products, a factor and solutions of symmetric systems, leading
//! vectors, and random numbers to begin from.
//!
//! Plain loops with the same sums in the same order every time, so that what is trained or quantised by
//! them is the same bytes on every machine. For matrices of some thousand columns; what a model computes is
//! in `compute`.

#![forbid(unsafe_code)]

/// A matrix, row after row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Width of a row.
    pub cols: usize,
    /// (rows, cols) values.
    pub values: Vec<f64>,
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { cols, values: vec![0.0; rows * cols] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.cols.max(1)
    }

    /// A row.
    pub fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.cols..(index + 1) * self.cols]
    }

    /// A row to write to.
    pub fn row_mut(&mut self, index: usize) -> &mut [f64] {
        &mut self.values[index * self.cols..(index + 1) * self.cols]
    }

    /// Columns as rows.
    pub fn transposed(&self) -> Self {
        let mut transposed = Self::zeros(self.cols, self.rows());
        for (index, row) in self.values.chunks_exact(self.cols.max(1)).enumerate() {
            for (col, value) in row.iter().enumerate() {
                transposed.values[col * transposed.cols + index] = *value;
            }
        }
        transposed
    }

    /// The mean of each column.
    pub fn column_means(&self) -> Vec<f64> {
        let mut means = vec![0.0; self.cols];
        let rows = self.values.chunks_exact(self.cols.max(1));
        rows.for_each(|row| add_scaled(&mut means, 1.0, row));
        means.iter_mut().for_each(|mean| *mean /= self.rows().max(1) as f64);
        means
    }
}

/// `a` times the transpose of `b`: the products of all rows of one with all rows of the other.
pub fn rows_by_rows(a: &Matrix, b: &Matrix) -> Matrix {
    let mut product = Matrix::zeros(a.rows(), b.rows());
    // Blocks of rows of `b` stay in the cache while all rows of `a` go by.
    for block in (0..b.rows()).step_by(32) {
        for index in 0..a.rows() {
            for other in block..(block + 32).min(b.rows()) {
                product.values[index * product.cols + other] = dot(a.row(index), b.row(other));
            }
        }
    }
    product
}

/// The lower triangle `l` with `l * l^T = a` for a symmetric positive matrix; `None` if it is not
/// positive. What lies above the diagonal is not read and means nothing in the result.
pub fn cholesky(mut a: Matrix) -> Option<Matrix> {
    let size = a.cols;
    for index in 0..size {
        let (above, rest) = a.values.split_at_mut(index * size);
        let row = &mut rest[..size];
        for other in 0..index {
            let other_row = &above[other * size..(other + 1) * size];
            let rest = row[other] - dot(&row[..other], &other_row[..other]);
            row[other] = rest / other_row[other];
        }
        let rest = row[index] - dot(&row[..index], &row[..index]);
        if !(rest > 0.0 && rest.is_finite()) {
            return None;
        }
        row[index] = rest.sqrt();
    }
    Some(a)
}

/// Replaces `x` by the solution of `l * l^T * solution = x`.
pub fn solve(l: &Matrix, x: &mut [f64]) {
    for index in 0..x.len() {
        let row = l.row(index);
        x[index] = (x[index] - dot(&row[..index], &x[..index])) / row[index];
    }
    for index in (0..x.len()).rev() {
        let row = l.row(index);
        x[index] /= row[index];
        let value = x[index];
        add_scaled(&mut x[..index], -value, &row[..index]);
    }
}

/// Orthonormal vectors, a row each, along which a symmetric positive matrix stretches most: by repeated
/// multiplication from a start that is the same every time.
pub fn leading_vectors(symmetric: &Matrix, n_vectors: usize) -> Matrix {
    const ROUNDS: usize = 30;
    let size = symmetric.cols;
    let mut vectors = Matrix::zeros(n_vectors.min(size), size);
    let mut state = 1;
    for value in &mut vectors.values {
        *value = (next_random(&mut state) >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
    }
    orthonormalise(&mut vectors);
    for _ in 0..ROUNDS {
        vectors = rows_by_rows(&vectors, symmetric);
        orthonormalise(&mut vectors);
    }
    vectors
}

/// Makes rows orthonormal, in order; a row that depends on those before it becomes zero.
fn orthonormalise(vectors: &mut Matrix) {
    let cols = vectors.cols;
    for index in 0..vectors.rows() {
        let (before, rest) = vectors.values.split_at_mut(index * cols);
        let row = &mut rest[..cols];
        let length = dot(row, row).sqrt();
        // Twice, because one pass leaves what rounding has added.
        for _ in 0..2 {
            for other in before.chunks_exact(cols) {
                let along = dot(row, other);
                add_scaled(row, -along, other);
            }
        }
        let rest = dot(row, row).sqrt();
        let scale = if rest > 1e-9 * length { 1.0 / rest } else { 0.0 };
        row.iter_mut().for_each(|value| *value *= scale);
    }
}

/// The sum of products, in eight running sums.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Adds `scale` times `x` to `sum`.
pub fn add_scaled(sum: &mut [f64], scale: f64, x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += scale * x);
}

/// The next of a row of random numbers (SplitMix64).
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_of_three_is_solved() {
        let values = vec![4.0, 2.0, 1.0, 2.0, 5.0, 3.0, 1.0, 3.0, 6.0];
        let matrix = Matrix { cols: 3, values };
        let l = cholesky(matrix.clone()).expect("it is positive");
        let mut x = [1.0, -2.0, 3.0].map(|x: f64| x);
        let mut right: Vec<f64> = (0..3).map(|index| dot(matrix.row(index), &x)).collect();
        solve(&l, &mut right);
        x.iter_mut().zip(&right).for_each(|(x, found)| *x -= found);
        assert!(x.iter().all(|difference| difference.abs() < 1e-12), "{x:?}");
        assert!(cholesky(Matrix { cols: 2, values: vec![1.0, 2.0, 2.0, 1.0] }).is_none());
    }

    #[test]
    fn leading_vectors_are_those_of_a_diagonal() {
        let mut diagonal = Matrix::zeros(4, 4);
        for (index, stretch) in [1.0, 9.0, 0.1, 4.0].into_iter().enumerate() {
            diagonal.row_mut(index)[index] = stretch;
        }
        let vectors = leading_vectors(&diagonal, 2);
        assert!((vectors.row(0)[1].abs() - 1.0).abs() < 1e-9, "{vectors:?}");
        assert!((vectors.row(1)[3].abs() - 1.0).abs() < 1e-9, "{vectors:?}");
    }

    #[test]
    fn products_of_odd_shapes() {
        let a = Matrix { cols: 3, values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let b = Matrix { cols: 3, values: vec![1.0, 0.0, -1.0] };
        assert_eq!(rows_by_rows(&a, &b).values, [-2.0, -2.0]);
        assert_eq!(a.transposed().values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(a.column_means(), [2.5, 3.5, 4.5]);
    }
}
