//! The definition of the product, as it is written, for any machine.

use crate::cpu::integer::unpack::{Chunk, unpack};
use crate::cpu::integer::{BLOCK, CHUNK, Kind, LANES, Padded, Rows, Stored, Tokens, sum_lanes};

/// `out[token * n_rows + row]` for all rows and tokens.
pub(crate) fn multiply(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    multiply_with(rows, tokens, out, unpack, add_chunk);
}

/// Unpacks every chunk of weights once, by `unpack`, and multiplies it with all tokens by `add_chunk`.
#[inline(always)]
pub(crate) fn multiply_with(
    rows: &Rows<'_>,
    tokens: &Tokens<'_>,
    out: &mut [f32],
    unpack: impl Fn(Kind, Stored<'_>, &mut Chunk),
    add_chunk: impl Fn(&Rows<'_>, &Chunk, TokenChunk<'_>, &mut [f32; LANES]),
) {
    /// Tokens whose running sums are kept beside a chunk.
    const GROUP: usize = 16;

    let mut unpacked = Chunk::default();
    for row in 0..rows.n_rows {
        for first in (0..tokens.n).step_by(GROUP) {
            let n = GROUP.min(tokens.n - first);
            let mut lanes = [[0.0; LANES]; GROUP];
            for chunk in 0..rows.n_chunks() {
                with_whole_chunk(rows, row, chunk, |stored| {
                    unpack(rows.kind, stored, &mut unpacked);
                });
                for (index, lanes) in lanes[..n].iter_mut().enumerate() {
                    let x = TokenRow::of(tokens, first + index).chunk(chunk);
                    add_chunk(rows, &unpacked, x, lanes);
                }
            }
            for (index, lanes) in lanes[..n].iter().enumerate() {
                out[(first + index) * rows.n_rows + row] = sum_lanes(lanes);
            }
        }
    }
}

/// Calls `f` with the bytes of a chunk, filled up if it is short.
#[inline(always)]
pub(crate) fn with_whole_chunk<T>(
    rows: &Rows<'_>,
    row: usize,
    chunk: usize,
    f: impl FnOnce(Stored<'_>) -> T,
) -> T {
    let stored = rows.chunk(row, chunk);
    if rows.is_whole(stored) { f(stored) } else { f(Padded::new(stored).stored(rows.kind)) }
}

/// A row of activations in chunks.
#[derive(Clone, Copy)]
pub(crate) struct TokenRow<'a> {
    pub(crate) codes: &'a [[i8; CHUNK]],
    pub(crate) scales: &'a [[f32; LANES]],
    pub(crate) sums: &'a [[i16; 2 * LANES]],
    pub(crate) scaled_sums: &'a [[f32; LANES]],
}

/// A chunk of a row of activations.
#[derive(Clone, Copy)]
pub(crate) struct TokenChunk<'a> {
    pub(crate) codes: &'a [i8; CHUNK],
    pub(crate) scales: &'a [f32; LANES],
    pub(crate) sums: &'a [i16; 2 * LANES],
    pub(crate) scaled_sums: &'a [f32; LANES],
}

impl<'a> TokenRow<'a> {
    #[inline(always)]
    pub(crate) fn of(tokens: &Tokens<'a>, token: usize) -> Self {
        let chunks = token * tokens.n_chunks..(token + 1) * tokens.n_chunks;
        Self {
            codes: &tokens.codes.as_chunks().0[chunks.clone()],
            scales: &tokens.scales.as_chunks().0[chunks.clone()],
            sums: &tokens.sums.as_chunks().0[chunks.clone()],
            scaled_sums: &tokens.scaled_sums.as_chunks().0[chunks],
        }
    }

    #[inline(always)]
    pub(crate) fn chunk(&self, index: usize) -> TokenChunk<'a> {
        TokenChunk {
            codes: &self.codes[index],
            scales: &self.scales[index],
            sums: &self.sums[index],
            scaled_sums: &self.scaled_sums[index],
        }
    }
}

fn add_chunk(rows: &Rows<'_>, chunk: &Chunk, x: TokenChunk<'_>, lanes: &mut [f32; LANES]) {
    let zero = rows.kind.zero();
    for (block, lane) in lanes.iter_mut().enumerate() {
        let (mut isum, mut bsum) = (0, 0);
        for half in 0..2 {
            let index = 2 * block + half;
            let columns = index * BLOCK / 2..(index + 1) * BLOCK / 2;
            let codes = chunk.codes[columns.clone()].iter().zip(&x.codes[columns]);
            let dot: i32 = codes.map(|(w, x)| (i32::from(*w) - zero) * i32::from(*x)).sum();
            isum += i32::from(chunk.subs[index]) * dot;
            bsum += i32::from(chunk.mins[index]) * i32::from(x.sums[index]);
        }
        *lane = add_block(
            *lane,
            [chunk.scales[block], chunk.biases[block]],
            x.scales[block],
            isum,
            bsum,
        );
    }
}

/// What a block adds to its lane. A format without biases has zeros there, which add nothing.
#[inline(always)]
pub(crate) fn add_block(lane: f32, [scale, bias]: [f32; 2], x: f32, isum: i32, bsum: i32) -> f32 {
    let lane = (isum as f32 * scale).mul_add(x, lane);
    bias.mul_add(x * bsum as f32, lane)
}
