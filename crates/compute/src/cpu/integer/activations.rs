//! Activations in eight bits, with a scale for each block of columns.

use crate::cpu::integer::{BLOCK, CHUNK};

/// Rows of activations, quantised. Rows are filled up with zeros to whole chunks.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    n_rows: usize,
    n_chunks: usize,
    /// (n_rows, n_chunks * CHUNK).
    codes: Vec<i8>,
    /// (n_rows, blocks).
    scales: Vec<f32>,
    /// (n_rows, 2 * blocks): sums of the codes of each 16 columns.
    sums: Vec<i16>,
    /// (n_rows, blocks): scale times the sum of the codes.
    scaled_sums: Vec<f32>,
}

/// Consecutive rows of [`QuantizedRows`].
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub(crate) n: usize,
    pub(crate) n_chunks: usize,
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [i16],
    pub(crate) scaled_sums: &'a [f32],
}

impl<'a> Tokens<'a> {
    /// Some of the rows.
    pub(crate) fn rows(&self, begin: usize, n: usize) -> Tokens<'a> {
        let width = self.n_chunks * CHUNK;
        let blocks = width / BLOCK;
        Tokens {
            n,
            n_chunks: self.n_chunks,
            codes: &self.codes[begin * width..(begin + n) * width],
            scales: &self.scales[begin * blocks..(begin + n) * blocks],
            sums: &self.sums[2 * begin * blocks..2 * (begin + n) * blocks],
            scaled_sums: &self.scaled_sums[begin * blocks..(begin + n) * blocks],
        }
    }
}

/// Where a part of a row's columns is written, a whole number of blocks.
pub(crate) struct BlocksMut<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [i16],
    pub(crate) scaled_sums: &'a mut [f32],
}

impl QuantizedRows {
    /// Bytes of so many rows of `cols` columns.
    pub(crate) fn bytes(n_rows: usize, cols: usize) -> u64 {
        let width = cols.next_multiple_of(CHUNK);
        // Codes; scales and scaled sums; sums of halves.
        (n_rows * (width + width / BLOCK * (4 + 4 + 2 * 2))) as u64
    }

    /// Makes room for so many rows of `cols` columns and sets all of them to zero.
    pub(crate) fn reset(&mut self, n_rows: usize, cols: usize) {
        self.n_rows = n_rows;
        self.n_chunks = cols.div_ceil(CHUNK);
        let width = self.n_chunks * CHUNK;
        // What quantisation writes needs no clearing; what lies behind the columns does.
        let clear = !cols.is_multiple_of(CHUNK);
        resize(&mut self.codes, n_rows * width, clear);
        resize(&mut self.scales, n_rows * width / BLOCK, clear);
        resize(&mut self.sums, 2 * n_rows * width / BLOCK, clear);
        resize(&mut self.scaled_sums, n_rows * width / BLOCK, clear);
    }

    /// All rows.
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        Tokens {
            n: self.n_rows,
            n_chunks: self.n_chunks,
            codes: &self.codes,
            scales: &self.scales,
            sums: &self.sums,
            scaled_sums: &self.scaled_sums,
        }
    }

    /// Columns of a row with those that fill up the last chunk.
    pub(crate) fn padded_width(&self) -> usize {
        self.n_chunks * CHUNK
    }

    /// The codes, scales and sums of all rows, to be written.
    pub(crate) fn parts_mut(&mut self) -> BlocksMut<'_> {
        BlocksMut {
            codes: &mut self.codes,
            scales: &mut self.scales,
            sums: &mut self.sums,
            scaled_sums: &mut self.scaled_sums,
        }
    }
}

fn resize<T: Clone + Default>(values: &mut Vec<T>, len: usize, clear: bool) {
    if clear {
        values.clear();
    }
    values.resize(len, T::default());
}

/// A block without larger magnitudes is zero: the inverse of its scale would not be finite.
const SMALLEST: f32 = 1e-36;

/// How a block is quantised.
pub(crate) struct BlockScale {
    pub(crate) scale: f32,
    /// What values are multiplied with.
    pub(crate) inverse: f32,
    pub(crate) is_finite: bool,
}

impl BlockScale {
    /// For a block whose largest magnitude has these bits.
    #[inline(always)]
    pub(crate) fn of(bits: u32) -> Self {
        let largest = f32::from_bits(bits);
        let is_finite = bits < 0x7f80_0000;
        let is_large = is_finite && largest >= SMALLEST;
        let scale = match (is_finite, is_large) {
            (true, true) => largest / 127.0,
            (true, false) => 0.0,
            (false, _) => f32::NAN,
        };
        Self { scale, inverse: if is_large { 127.0 / largest } else { 0.0 }, is_finite }
    }
}

/// Quantises whole blocks of columns: the largest magnitude of a block becomes 127. A block with a value
/// that is not finite gets a scale that is not a number, so that it shows in every product.
#[inline(always)]
pub(crate) fn quantize_portable(x: &[f32], out: BlocksMut<'_>) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(out.codes.as_chunks_mut::<BLOCK>().0);
    let places = out.scales.iter_mut().zip(out.sums.as_chunks_mut::<2>().0);
    for (((x, codes), (scale, sums)), scaled_sum) in blocks.zip(places).zip(out.scaled_sums) {
        let bits = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
        let BlockScale { scale: of_block, inverse, is_finite } = BlockScale::of(bits);
        *scale = of_block;
        let mut rounded = [0_i32; BLOCK];
        for (rounded, x) in rounded.iter_mut().zip(x) {
            // Infinity times zero is no number.
            *rounded = if is_finite { round(x * inverse) } else { 0 };
        }
        for (code, rounded) in codes.iter_mut().zip(rounded) {
            *code = rounded as i8;
        }
        let (low, high) = rounded.split_at(BLOCK / 2);
        let (low, high) = (low.iter().sum::<i32>(), high.iter().sum::<i32>());
        *sums = [low as i16, high as i16];
        *scaled_sum = *scale * (low + high) as f32;
    }
}

/// The nearest integer, ties to even, of a finite number, clamped to -127..=127: adding and subtracting
/// 1.5 * 2^23 leaves no bits behind the point. The same on every machine, and vector code.
#[inline(always)]
fn round(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    let shifted = x.clamp(-127.0, 127.0) + MAGIC;
    (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantize(x: &[f32]) -> QuantizedRows {
        let mut rows = QuantizedRows::default();
        rows.reset(1, x.len());
        quantize_portable(x, rows.parts_mut());
        rows
    }

    #[test]
    fn codes_are_near_and_sums_are_exact() {
        let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let rows = quantize(&x);
        let tokens = rows.tokens();
        for (index, x) in x.iter().enumerate() {
            let scale = tokens.scales[index / BLOCK];
            let value = f32::from(tokens.codes[index]) * scale;
            assert!((value - x).abs() <= scale * 0.5001, "{x} became {value}");
        }
        for (half, &sum) in tokens.sums[..6].iter().enumerate() {
            let codes = &tokens.codes[16 * half..][..16];
            assert_eq!(sum, codes.iter().map(|&code| i16::from(code)).sum::<i16>());
        }
        assert!(tokens.codes[96..].iter().all(|&code| code == 0), "the rest is zero");
    }

    #[test]
    fn what_is_not_finite_shows() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[7] = bad;
            assert!(quantize(&x).tokens().scales[0].is_nan());
            assert!(quantize(&[bad; 32]).tokens().scales[0].is_nan());
        }
        let mut tiny = [0.0; 32];
        tiny[3] = 1e-38;
        assert_eq!(quantize(&tiny).tokens().scales[0], 0.0);
        assert_eq!(quantize(&tiny).tokens().scaled_sums[0], 0.0);
        assert_eq!(quantize(&[0.0; 32]).tokens().scales[0], 0.0);
    }
}
