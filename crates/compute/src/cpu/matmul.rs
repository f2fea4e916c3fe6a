//! Products of activations with stored weights.
//!
//! Low-bit weights are multiplied as they are stored, with activations quantised to eight bits
//! ([`crate::cpu::integer`]), unless a backend is precise. Plain numbers are read as they are stored for
//! few tokens. All other weights are decoded to `f32` in a scratch that stays in cache, and multiplied in
//! register tiles: for few tokens a short stretch of columns is decoded at a time, for many whole rows
//! are, so that every weight is decoded once. All add in the same order.

use std::cell::RefCell;
use std::ops::Range;

use checkpoint::{FloatType, Format};

use crate::cpu::Machine;
use crate::cpu::integer::{BLOCK, BlocksMut, Kind, QuantizedRows, Rows, Tokens};
use crate::cpu::kernels::{Kernels, TILE_ROWS, TILE_TOKENS, Tile, TileSums, sum_lanes};
use crate::cpu::pool::{Parts, Pool};
use crate::matrix::Matrix;

/// Weight rows of a task: enough work to be worth taking, few enough to share evenly.
pub(crate) const TASK_ROWS: usize = 32;
/// Columns that are decoded at a time for few tokens: four rows of them fit the first-level cache. A
/// multiple of every group.
const FEW_TOKEN_COLS: usize = 512;
/// Up to so many tokens count as few.
const FEW_TOKENS: usize = TILE_TOKENS;

thread_local! {
    /// Decoded weights of a tile.
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Products of a task before they go to their places.
    static OUTPUT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix with where its product goes, (tokens, matrix.rows).
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) out: Parts<'a>,
}

/// Multiplies `n_tokens` rows of activations with each of the matrices that are there.
pub(crate) fn multiply(
    machine: &mut Machine,
    x: &[f32],
    n_tokens: usize,
    products: &[Option<Product<'_>>],
) {
    if !machine.precise && products.iter().flatten().any(|p| Kind::of(p.matrix.format).is_some()) {
        quantize(machine, x, n_tokens);
    }
    let Machine { kernels, pool, precise, quantized, .. } = machine;
    let tasks = |product: &Product<'_>| product.matrix.rows.div_ceil(TASK_ROWS);
    let n_tasks = products.iter().flatten().map(tasks).sum();
    pool.run("project", n_tasks, |mut task| {
        for product in products.iter().flatten() {
            if task < tasks(product) {
                let begin = task * TASK_ROWS;
                let end = (begin + TASK_ROWS).min(product.matrix.rows);
                let rows = Rows::of(product.matrix, begin, end - begin);
                if let Some(rows) = rows.filter(|_| !*precise) {
                    multiply_codes(kernels, &rows, &quantized.tokens(), |token, values| {
                        let at = token * product.matrix.rows + begin;
                        // SAFETY: a task alone writes its rows of each token.
                        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
                        let out = unsafe { product.out.part(at, values.len()) };
                        out.copy_from_slice(values);
                    });
                    return;
                }
                if let (true, Format::Float(float)) =
                    (n_tokens <= FEW_TOKENS, product.matrix.format)
                {
                    multiply_floats(kernels, x, float, product, begin..end);
                    return;
                }
                for row in (begin..end).step_by(TILE_ROWS) {
                    multiply_rows(kernels, x, n_tokens, product, row, TILE_ROWS.min(end - row));
                }
                return;
            }
            task -= tasks(product);
        }
    });
}

/// Some outputs of few tokens, from weights that are stored as numbers.
fn multiply_floats(
    kernels: &Kernels,
    x: &[f32],
    float: FloatType,
    product: &Product<'_>,
    rows: Range<usize>,
) {
    let Matrix { rows: width, cols, .. } = *product.matrix;
    let row_bytes = product.matrix.format.row_bytes(cols);
    let weights = &product.matrix.data()[rows.start * row_bytes..rows.end * row_bytes];
    for (token, x) in x.chunks_exact(cols).enumerate() {
        // SAFETY: a task alone writes its rows of each token.
        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
        let out = unsafe { product.out.part(token * width + rows.start, rows.len()) };
        (kernels.dot_floats)(float, weights, x, out);
    }
}

/// Quantises `n_rows` rows of activations for [`multiply`].
fn quantize(machine: &mut Machine, x: &[f32], n_rows: usize) {
    let Machine { kernels, pool, quantized, .. } = machine;
    let cols = x.len() / n_rows.max(1);
    quantize_rows(kernels, pool, quantized, n_rows, cols, |row| &x[row * cols..(row + 1) * cols]);
}

/// Quantises the given rows of `cols` columns.
pub(crate) fn quantize_rows<'a>(
    kernels: &Kernels,
    pool: &mut Pool,
    out: &mut QuantizedRows,
    n_rows: usize,
    cols: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
) {
    out.reset(n_rows, cols);
    let places = RowPlaces::new(out);
    pool.run("quantize", n_rows, |index| {
        // SAFETY: each task has its own row.
        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
        let place = unsafe { places.blocks(index, 0, cols / BLOCK) };
        (kernels.quantize)(row(index), place);
    });
}

/// Where tasks write blocks of quantised rows.
#[derive(Clone, Copy)]
pub(crate) struct RowPlaces<'a> {
    blocks_per_row: usize,
    codes: Parts<'a, i8>,
    scales: Parts<'a, f32>,
    sums: Parts<'a, i16>,
    scaled_sums: Parts<'a, f32>,
}

impl<'a> RowPlaces<'a> {
    pub(crate) fn new(rows: &'a mut QuantizedRows) -> Self {
        let blocks_per_row = rows.padded_width() / BLOCK;
        let BlocksMut { codes, scales, sums, scaled_sums } = rows.parts_mut();
        Self {
            blocks_per_row,
            codes: Parts::new(codes),
            scales: Parts::new(scales),
            sums: Parts::new(sums),
            scaled_sums: Parts::new(scaled_sums),
        }
    }

    /// Some blocks of a row.
    ///
    /// # Safety
    /// Blocks that are borrowed at the same time must not overlap.
    #[expect(unsafe_code, reason = "the contract replaces the borrow checker's")]
    pub(crate) unsafe fn blocks(&self, row: usize, first: usize, n: usize) -> BlocksMut<'_> {
        let at = row * self.blocks_per_row + first;
        // SAFETY: the parts of different blocks do not overlap.
        unsafe {
            BlocksMut {
                codes: self.codes.part(at * BLOCK, n * BLOCK),
                scales: self.scales.part(at, n),
                sums: self.sums.part(2 * at, 2 * n),
                scaled_sums: self.scaled_sums.part(at, n),
            }
        }
    }
}

/// Multiplies rows of codes with all tokens and gives the products of each token.
pub(crate) fn multiply_codes(
    kernels: &Kernels,
    rows: &Rows<'_>,
    tokens: &Tokens<'_>,
    mut give: impl FnMut(usize, &[f32]),
) {
    OUTPUT.with_borrow_mut(|output| {
        output.resize(output.len().max(tokens.n * rows.n_rows), 0.0);
        let output = &mut output[..tokens.n * rows.n_rows];
        (kernels.multiply)(rows, tokens, output);
        for (token, values) in output.chunks_exact(rows.n_rows).enumerate() {
            give(token, values);
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
