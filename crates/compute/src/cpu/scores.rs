//! Scores of attention: products of some queries with the keys of a page, tile by tile, so that a key that
//! was loaded serves several queries.

use crate::cpu::kernels::{TILE_ROWS, TILE_TOKENS, Tile, TileSums, sum_lanes};

/// Keys and queries, both of the same width.
#[derive(Clone, Copy)]
pub(crate) struct Scores<'a> {
    /// (keys, width).
    pub(crate) keys: &'a [f32],
    /// (queries, width).
    pub(crate) queries: &'a [f32],
    pub(crate) width: usize,
}

/// `out[q * keys + k] = query_q . key_k`, by the tiles of matrix products.
#[inline(always)]
pub(crate) fn by_tiles(
    scores: Scores<'_>,
    dot_tile: impl Fn(Tile<'_>, &mut TileSums),
    out: &mut [f32],
) {
    let Scores { keys, queries, width } = scores;
    let (n_keys, n_queries) = (keys.len() / width, queries.len() / width);
    for query in (0..n_queries).step_by(TILE_TOKENS) {
        let n_tokens = TILE_TOKENS.min(n_queries - query);
        for key in (0..n_keys).step_by(TILE_ROWS) {
            let n_rows = TILE_ROWS.min(n_keys - key);
            let mut sums = TileSums::default();
            let tile = Tile {
                weights: &keys[key * width..(key + n_rows) * width],
                weight_stride: width,
                tokens: &queries[query * width..(query + n_tokens) * width],
                token_stride: width,
                n_rows,
                n_tokens,
                cols: width,
            };
            dot_tile(tile, &mut sums);
            for token in 0..n_tokens {
                let out = &mut out[(query + token) * n_keys + key..][..n_rows];
                for (out, lanes) in out.iter_mut().zip(&sums[token * TILE_ROWS..]) {
                    *out = sum_lanes(lanes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::{Isa, Kernels};

    #[test]
    fn scores_have_the_bits_of_single_products() {
        let number = |i: usize| ((i * 7919 % 1009) as f32 - 504.0) * 0.003;
        for isa in Isa::available() {
            let kernels = Kernels::of(isa).expect("it is available");
            for width in [20, 32, 72, 256] {
                for (n_keys, n_queries) in [(1, 1), (3, 9), (4, 8), (64, 8), (13, 20), (7, 3)] {
                    let keys: Vec<f32> = (0..n_keys * width).map(number).collect();
                    let queries: Vec<f32> = (7..7 + n_queries * width).map(number).collect();
                    let mut ours = vec![f32::NAN; n_keys * n_queries];
                    (kernels.scores)(Scores { keys: &keys, queries: &queries, width }, &mut ours);
                    let mut single = vec![0.0; n_keys];
                    for (ours, query) in ours.chunks(n_keys).zip(queries.chunks(width)) {
                        (kernels.dots)(&keys, query, &mut single);
                        assert!(ours == single, "{isa:?}, {n_keys} keys, {n_queries} of {width}");
                    }
                }
            }
        }
    }
}
