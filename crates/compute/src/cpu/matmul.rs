//! Products of activations with stored weights.
//!
//! Weights are decoded to `f32` in a scratch that stays in cache, and multiplied in register tiles. For
//! few tokens a short stretch of columns is decoded at a time; for many tokens whole rows are, so that
//! every weight is decoded once. Both add in the same order.

use std::cell::RefCell;

use crate::cpu::Machine;
use crate::cpu::kernels::{Kernels, TILE_ROWS, TILE_TOKENS, Tile, TileSums, sum_lanes};
use crate::cpu::pool::Parts;
use crate::matrix::Matrix;

/// Weight rows of a task: enough work to be worth taking, few enough to share evenly.
const TASK_ROWS: usize = 16;
/// Columns that are decoded at a time for few tokens: four rows of them fit the first-level cache. A
/// multiple of every group.
const FEW_TOKEN_COLS: usize = 512;
/// Up to so many tokens count as few.
const FEW_TOKENS: usize = TILE_TOKENS;

thread_local! {
    /// Decoded weights of a tile.
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix with where its product goes, (tokens, matrix.rows).
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) out: Parts<'a>,
}

/// Multiplies `n_tokens` rows of activations with each of the matrices.
pub(crate) fn multiply(
    machine: &mut Machine,
    x: &[f32],
    n_tokens: usize,
    products: &[Product<'_>],
) {
    let Machine { kernels, pool } = machine;
    let tasks = |product: &Product<'_>| product.matrix.rows.div_ceil(TASK_ROWS);
    let n_tasks = products.iter().map(tasks).sum();
    pool.run(n_tasks, |mut task| {
        for product in products {
            if task < tasks(product) {
                let begin = task * TASK_ROWS;
                let end = (begin + TASK_ROWS).min(product.matrix.rows);
                for row in (begin..end).step_by(TILE_ROWS) {
                    multiply_rows(kernels, x, n_tokens, product, row, TILE_ROWS.min(end - row));
                }
                return;
            }
            task -= tasks(product);
        }
    });
}

/// The outputs `first_row..first_row + n_rows` of all tokens.
fn multiply_rows(
    kernels: &Kernels,
    x: &[f32],
    n_tokens: usize,
    product: &Product<'_>,
    first_row: usize,
    n_rows: usize,
) {
    let matrix = product.matrix;
    let cols = matrix.cols;
    let few = n_tokens <= FEW_TOKENS;
    let stretch = if few { cols.min(FEW_TOKEN_COLS) } else { cols };
    DECODED.with_borrow_mut(|decoded| {
        if decoded.len() < TILE_ROWS * stretch {
            decoded.resize(TILE_ROWS * stretch, 0.0);
        }
        // For few tokens the sums live across stretches; for many, one stretch is the whole row.
        let mut sums = TileSums::default();
        for col in (0..cols).step_by(stretch) {
            let width = stretch.min(cols - col);
            for row in 0..n_rows {
                let out = &mut decoded[row * stretch..][..width];
                decode(kernels, matrix, first_row + row, col, out);
            }
            for token in (0..n_tokens).step_by(TILE_TOKENS) {
                let tile = Tile {
                    weights: decoded,
                    weight_stride: stretch,
                    tokens: &x[token * cols + col..],
                    token_stride: cols,
                    n_rows,
                    n_tokens: TILE_TOKENS.min(n_tokens - token),
                    cols: width,
                };
                (kernels.dot_tile)(tile, &mut sums);
                if col + width == cols {
                    for index in 0..tile.n_tokens {
                        let begin = (token + index) * matrix.rows + first_row;
                        // SAFETY: a task alone writes its rows of each token.
                        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
                        let out = unsafe { product.out.part(begin, n_rows) };
                        for (row, out) in out.iter_mut().enumerate() {
                            *out = sum_lanes(&sums[index * TILE_ROWS + row]);
                        }
                    }
                    sums = TileSums::default();
                }
            }
        }
    });
}

/// Decodes columns `col..` of a row. Columns begin at a multiple of the group and of eight.
pub(crate) fn decode(kernels: &Kernels, matrix: &Matrix, row: usize, col: usize, out: &mut [f32]) {
    let (format, cols) = (matrix.format, matrix.cols);
    let (row_bytes, scale_row_bytes) = (format.row_bytes(cols), format.scale_row_bytes(cols));
    let (begin, len) = (row * row_bytes + format.row_bytes(col), format.row_bytes(out.len()));
    let data = &matrix.data()[begin..begin + len];
    let begin = row * scale_row_bytes + format.scale_row_bytes(col);
    let len = format.scale_row_bytes(out.len());
    let (scales, biases) = if len == 0 {
        (&[][..], &[][..])
    } else {
        (&matrix.scales()[begin..begin + len], &matrix.biases()[begin..begin + len])
    };
    (kernels.dequantize)(format, data, scales, biases, out);
}
