//! Four and more tokens: eight rows of weights are unpacked once into a panel and multiplied with all
//! tokens, four at a time.
//!
//! A vector of sums has four results. With `sdot` they are of four rows and a token, with `smmla` of two
//! rows and two tokens, so that an instruction does twice the work. A tile of eight rows and four tokens has
//! eight such vectors either way: `R` times `T`, for groups of rows and of tokens.

use std::arch::aarch64::*;
use std::cell::RefCell;

use crate::cpu::integer::id::Id;
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::neon::unpack_kind;
use crate::cpu::integer::portable::{TokenRow, with_whole_chunk};
use crate::cpu::integer::unpack::Chunk;
use crate::cpu::integer::{BLOCK, LANES, Rows, Tokens};

/// Rows of a panel.
const PANEL: usize = 8;
/// Tokens of a tile.
const TILE: usize = 4;
/// From so many tokens on there are tiles.
pub(super) const MANY: usize = TILE;

/// The codes of eight rows in sixteen columns. A group of rows shares a vector: each has `2 * R` columns in
/// it, row by row; the groups follow each other, and then come the next columns.
pub(super) type Half = [[i8; 16]; 8];

thread_local! {
    static WORK: RefCell<Panel> = RefCell::default();
}

/// Eight rows of weights.
#[derive(Default)]
struct Panel {
    /// (blocks, 2).
    codes: Vec<[Half; 2]>,
    /// (blocks, R): for each result of a vector that of its row.
    scales: Vec<[f32; 4]>,
    biases: Vec<[f32; 4]>,
    /// (blocks, R): those of the halves of a block.
    subs: Vec<[[i32; 4]; 2]>,
    mins: Vec<[[i32; 4]; 2]>,
}

/// See [`crate::cpu::integer::portable::multiply`]; for at least [`MANY`] tokens. `add` adds the products of
/// sixteen columns of eight rows and four tokens to the sums.
#[inline(always)]
pub(super) fn multiply<const ID: u8, const R: usize, const T: usize>(
    rows: &Rows<'_>,
    tokens: &Tokens<'_>,
    out: &mut [f32],
    add: impl Fn(&mut [[int32x4_t; T]; R], &Half, [int8x16_t; TILE]),
) {
    WORK.with_borrow_mut(|panel| {
        for first_row in (0..rows.n_rows).step_by(PANEL) {
            let n_rows = PANEL.min(rows.n_rows - first_row);
            panel.fill::<ID, R, T>(rows, first_row, n_rows);
            for first in (0..tokens.n).step_by(TILE) {
                // The last tile begins where it has all its tokens: some are computed twice.
                let first = first.min(tokens.n - TILE);
                let results = panel.tile::<ID, R, T>(rows, tokens, first, &add);
                for (index, results) in results.iter().enumerate() {
                    let begin = (first + index) * rows.n_rows + first_row;
                    out[begin..begin + n_rows].copy_from_slice(&results[..n_rows]);
                }
            }
        }
    });
}

impl Panel {
    /// Unpacks rows; missing ones are what they were, and their results are nobody's.
    #[inline(always)]
    fn fill<const ID: u8, const R: usize, const T: usize>(
        &mut self,
        rows: &Rows<'_>,
        first_row: usize,
        n_rows: usize,
    ) {
        let kind = const { Id::kind(ID) };
        let shift = if kind.is_wide() { 128 } else { 0 };
        let n_blocks = rows.n_chunks() * LANES;
        self.codes.resize(n_blocks, [[[0; 16]; 8]; 2]);
        self.scales.resize(n_blocks * R, [0.0; 4]);
        self.biases.resize(n_blocks * R, [0.0; 4]);
        self.subs.resize(n_blocks * R, [[0; 4]; 2]);
        self.mins.resize(n_blocks * R, [[0; 4]; 2]);
        // Columns of a row in a vector, rows of a group, results of a row in a vector.
        let (columns, group, results) = (2 * R, PANEL / R, TILE / T);
        let mut chunk = Chunk::default();
        for row in 0..n_rows {
            let (unit, place) = (row / group, row % group);
            for index in 0..rows.n_chunks() {
                with_whole_chunk(rows, first_row + row, index, |stored| {
                    unpack_kind::<ID>(rows.kind, stored, &mut chunk);
                });
                for (lane, codes) in chunk.codes.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let block = index * LANES + lane;
                    let halves = codes.as_chunks::<16>().0.iter().zip(&mut self.codes[block]);
                    for (codes, half) in halves {
                        for (step, codes) in codes.chunks_exact(columns).enumerate() {
                            let out = &mut half[step * R + unit][place * columns..][..columns];
                            for (out, code) in out.iter_mut().zip(codes) {
                                *out = (code ^ shift).cast_signed();
                            }
                        }
                    }
                    let at = block * R + unit;
                    let range = place * results..(place + 1) * results;
                    self.scales[at][range.clone()].fill(chunk.scales[lane]);
                    self.biases[at][range.clone()].fill(chunk.biases[lane]);
                    for half in 0..2 {
                        let of = |values: &[i16; 2 * LANES]| i32::from(values[2 * lane + half]);
                        self.subs[at][half][range.clone()].fill(of(&chunk.subs));
                        self.mins[at][half][range.clone()].fill(of(&chunk.mins));
                    }
                }
            }
        }
    }

    /// The products with four tokens, (token, row).
    #[inline(always)]
    fn tile<const ID: u8, const R: usize, const T: usize>(
        &self,
        rows: &Rows<'_>,
        tokens: &Tokens<'_>,
        first: usize,
        add: impl Fn(&mut [[int32x4_t; T]; R], &Half, [int8x16_t; TILE]),
    ) -> [[f32; PANEL]; TILE] {
        let kind = const { Id::kind(ID) };
        let zero = kind.zero() - if kind.is_wide() { 128 } else { 0 };
        let x: [TokenRow<'_>; TILE] = std::array::from_fn(|t| TokenRow::of(tokens, first + t));
        // Of result `k` of a vector, the token in its group is `k % (TILE / T)`.
        let token = |group: usize, k: usize| group * (TILE / T) + k % (TILE / T);
        // SAFETY: the caller has NEON, here and below; what is loaded and stored are arrays of 16 bytes.
        let mut lanes = unsafe { [[[vdupq_n_f32(0.0); T]; R]; LANES] };
        for block in 0..rows.cols / BLOCK {
            let (chunk, lane) = (block / LANES, block % LANES);
            // SAFETY: as above.
            let nothing = unsafe { [[vdupq_n_s32(0); T]; R] };
            let mut isum = nothing;
            let subs = &self.subs[block * R..][..R];
            let mins = &self.mins[block * R..][..R];
            for half in 0..2 {
                let codes = |row: &TokenRow<'_>| {
                    let codes = &row.codes[chunk].as_chunks::<16>().0[2 * lane + half];
                    // SAFETY: as above.
                    unsafe { vld1q_s8(codes.as_ptr()) }
                };
                let codes = [codes(&x[0]), codes(&x[1]), codes(&x[2]), codes(&x[3])];
                let weights = &self.codes[block][half];
                if kind.has_subs() {
                    let mut products = nothing;
                    add(&mut products, weights, codes);
                    for r in 0..R {
                        for t in 0..T {
                            // SAFETY: as above.
                            isum[r][t] = unsafe {
                                let subs = vld1q_s32(subs[r][half].as_ptr());
                                vmlaq_s32(isum[r][t], products[r][t], subs)
                            };
                        }
                    }
                } else {
                    add(&mut isum, weights, codes);
                }
            }
            for t in 0..T {
                let [mut scales, mut scaled_sums] = [[0.0; 4]; 2];
                let mut sums = [[0; 4]; 2];
                for k in 0..4 {
                    let x = &x[token(t, k)];
                    scales[k] = x.scales[chunk][lane];
                    scaled_sums[k] = x.scaled_sums[chunk][lane];
                    for half in 0..2 {
                        sums[half][k] = i32::from(x.sums[chunk][2 * lane + half]);
                    }
                }
                for r in 0..R {
                    let at = block * R + r;
                    // SAFETY: as above.
                    unsafe {
                        let sums = sums.each_ref().map(|sums| vld1q_s32(sums.as_ptr()));
                        let with = |factors: &[[i32; 4]; 2]| {
                            let first = vmulq_s32(vld1q_s32(factors[0].as_ptr()), sums[0]);
                            vmlaq_s32(first, vld1q_s32(factors[1].as_ptr()), sums[1])
                        };
                        let mut isum = isum[r][t];
                        if zero != 0 && kind.has_subs() {
                            isum = vmlsq_n_s32(isum, with(&subs[r]), zero);
                        } else if zero != 0 {
                            isum = vmlsq_n_s32(isum, vaddq_s32(sums[0], sums[1]), zero);
                        }
                        let weight_scales = vld1q_f32(self.scales[at].as_ptr());
                        let biases = vld1q_f32(self.biases[at].as_ptr());
                        let scales = vld1q_f32(scales.as_ptr());
                        let products = vmulq_f32(vcvtq_f32_s32(isum), weight_scales);
                        let mut sum = vfmaq_f32(lanes[lane][r][t], products, scales);
                        match kind.bias() {
                            Bias::None => {}
                            Bias::Block => {
                                let scaled_sums = vld1q_f32(scaled_sums.as_ptr());
                                sum = vfmaq_f32(sum, biases, scaled_sums);
                            }
                            Bias::Halves => {
                                let bsum = vmulq_f32(scales, vcvtq_f32_s32(with(&mins[r])));
                                sum = vfmaq_f32(sum, biases, bsum);
                            }
                        }
                        lanes[lane][r][t] = sum;
                    }
                }
            }
        }
        // In the order of `sum_lanes`.
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                for r in 0..R {
                    for t in 0..T {
                        // SAFETY: as above.
                        lanes[lane][r][t] =
                            unsafe { vaddq_f32(lanes[lane][r][t], lanes[lane + width][r][t]) };
                    }
                }
            }
        }
        let mut results = [[0.0; PANEL]; TILE];
        for r in 0..R {
            for t in 0..T {
                let mut four = [0.0; 4];
                // SAFETY: as above.
                unsafe { vst1q_f32(four.as_mut_ptr(), lanes[0][r][t]) };
                for (k, result) in four.into_iter().enumerate() {
                    results[token(t, k)][r * (PANEL / R) + k / (TILE / T)] = result;
                }
            }
        }
        results
    }
}
