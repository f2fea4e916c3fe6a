//! Many tokens: sixteen rows of weights are unpacked once into a panel and multiplied with all tokens.
//!
//! In the panel four consecutive columns of sixteen rows form a vector, so that a lane of `vpdpbusd`
//! belongs to a row, four columns of a token are broadcast to all lanes, and nothing is added across.
//! Eight tokens at a time make a tile ([`tile`]); what is left goes one, two or four at a time.

mod tile;

use std::arch::x86_64::*;
use std::cell::RefCell;

use crate::cpu::integer::avx512::load::{Vectors, load, widen};
use crate::cpu::integer::avx512::load_floats;
use crate::cpu::integer::id::Id;
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::portable::with_whole_chunk;
use crate::cpu::integer::{BLOCK, CHUNK, LANES, Rows, Tokens};

/// Rows of a panel.
const PANEL: usize = 16;
/// Steps of four columns in a block.
const STEPS: usize = BLOCK / 4;

/// Tokens of a tile.
const TILE: usize = 8;
/// From so many tokens on, what is left takes a whole tile.
const FEW: usize = 3;

thread_local! {
    static PANELS: RefCell<Panel> = RefCell::default();
}

/// Sixteen rows of weights, unpacked.
#[derive(Default)]
struct Panel {
    /// (blocks, STEPS, PANEL, 4): codes.
    codes: Vec<[u8; 64]>,
    /// (blocks, PANEL): scales and biases.
    scales: Vec<[f32; PANEL]>,
    biases: Vec<[f32; PANEL]>,
    /// (blocks, 2, PANEL): factors of each 16 columns, and of their biases.
    subs: Vec<[i32; PANEL]>,
    mins: Vec<[i32; PANEL]>,
    /// Vectors of a chunk of each row on their way into the panel.
    rows: Vec<[__m512i; 8]>,
    /// (blocks): scales and sums of the tokens of a tile.
    tile: Vec<tile::Block>,
}

/// See [`crate::cpu::integer::portable::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
pub(super) fn multiply<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    PANELS.with_borrow_mut(|panel| {
        for first_row in (0..rows.n_rows).step_by(PANEL) {
            let n_rows = PANEL.min(rows.n_rows - first_row);
            panel.fill::<ID>(rows, first_row, n_rows);
            let mut first = 0;
            while first < tokens.n {
                let left = tokens.n - first;
                let place = Place { first, first_row, n_rows };
                first += match left {
                    TILE.. => panel.apply_tile::<ID>(rows, tokens, place, out),
                    // A tile that begins earlier gives some results once more, and takes less time.
                    FEW.. if tokens.n >= TILE => {
                        let place = Place { first: tokens.n - TILE, ..place };
                        panel.apply_tile::<ID>(rows, tokens, place, out).min(left)
                    }
                    4.. => panel.apply::<ID, 4>(rows, tokens, place, out),
                    2.. => panel.apply::<ID, 2>(rows, tokens, place, out),
                    _ => panel.apply::<ID, 1>(rows, tokens, place, out),
                };
            }
        }
    });
}

/// First token, first row and number of rows of a call.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    first_row: usize,
    n_rows: usize,
}

impl Panel {
    /// Unpacks rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
    fn fill<const ID: u8>(&mut self, rows: &Rows<'_>, first_row: usize, n_rows: usize) {
        let kind = const { Id::kind(ID) };
        let n_blocks = rows.n_chunks() * LANES;
        self.codes.resize(n_blocks * STEPS, [0; 64]);
        self.scales.resize(n_blocks, [0.0; PANEL]);
        self.biases.resize(n_blocks, [0.0; PANEL]);
        self.subs.resize(2 * n_blocks, [0; PANEL]);
        self.mins.resize(2 * n_blocks, [0; PANEL]);
        self.rows.resize(PANEL, [_mm512_setzero_si512(); 8]);
        let zero = _mm512_setzero_si512();
        for chunk in 0..rows.n_chunks() {
            let [mut scales, mut biases] = [[zero; PANEL]; 2];
            let [mut subs, mut mins] = [[zero; PANEL]; 2];
            for row in 0..n_rows {
                let Vectors { codes, scales: row_scales, biases: row_biases, subs: s, mins: m } =
                    with_whole_chunk(rows, first_row + row, chunk, |stored| {
                        load::<ID>(rows.kind, stored)
                    });
                self.rows[row] = codes;
                scales[row] = _mm512_castps_si512(row_scales);
                biases[row] = _mm512_castps_si512(row_biases);
                (subs[row], mins[row]) = (s, m);
            }
            for part in 0..8 {
                let mut codes = [zero; PANEL];
                for (codes, row) in codes.iter_mut().zip(&self.rows) {
                    *codes = row[part];
                }
                transpose(&mut codes);
                let at = (chunk * 8 + part) * PANEL;
                for (out, codes) in self.codes[at..at + PANEL].iter_mut().zip(codes) {
                    // SAFETY: the array has 64 bytes; the store needs no alignment.
                    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), codes) };
                }
            }
            let at = chunk * LANES;
            transpose(&mut scales);
            store_floats(&scales, &mut self.scales[at..at + LANES]);
            if kind.bias() != Bias::None {
                transpose(&mut biases);
                store_floats(&biases, &mut self.biases[at..at + LANES]);
            }
            for part in 0..2 {
                let at = 2 * at + part * LANES;
                if kind.has_subs() {
                    store_factors(&subs, part, &mut self.subs[at..at + LANES]);
                }
                if kind.bias() == Bias::Halves {
                    store_factors(&mins, part, &mut self.mins[at..at + LANES]);
                }
            }
        }
    }

    /// Multiplies the panel with `N` tokens; gives `N`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
    fn apply<const ID: u8, const N: usize>(
        &self,
        rows: &Rows<'_>,
        tokens: &Tokens<'_>,
        place: Place,
        out: &mut [f32],
    ) -> usize {
        let kind = const { Id::kind(ID) };
        let width = tokens.n_chunks * CHUNK;
        let n_blocks = rows.cols / BLOCK;
        let row = |index: usize| (place.first + index) * width;
        let codes: [&[[u8; 4]]; N] = std::array::from_fn(|index| {
            let codes = &tokens.codes[row(index)..row(index) + width];
            in_fours(codes)
        });
        let blocks = |index: usize| row(index) / BLOCK..(row(index) + width) / BLOCK;
        let scales: [&[f32]; N] = std::array::from_fn(|index| &tokens.scales[blocks(index)]);
        let scaled_sums: [&[f32]; N] =
            std::array::from_fn(|index| &tokens.scaled_sums[blocks(index)]);
        let sums: [&[[i16; 2]]; N] =
            std::array::from_fn(|index| &tokens.sums.as_chunks().0[blocks(index)]);

        let mut lanes = [[_mm512_setzero_ps(); N]; LANES];
        for block in 0..n_blocks {
            let codes: [&[[u8; 4]; STEPS]; N] = std::array::from_fn(|index| {
                codes[index][block * STEPS..].first_chunk().expect("a token has all columns")
            });
            let weights: &[[u8; 64]; STEPS] =
                self.codes[block * STEPS..].first_chunk().expect("the panel has all blocks");
            let zero = kind.zero();
            let mut isum = [_mm512_setzero_si512(); N];
            if kind.has_subs() {
                for half in [0, 1] {
                    let mut partial = [_mm512_setzero_si512(); N];
                    for (index, partial) in partial.iter_mut().enumerate() {
                        let sum = i32::from(sums[index][block][half]);
                        *partial = _mm512_set1_epi32(-zero * sum);
                    }
                    let first = half * STEPS / 2;
                    add_products(weights, &codes, first, &mut partial);
                    let subs = load_words(&self.subs[2 * block + half]);
                    for (isum, partial) in isum.iter_mut().zip(partial) {
                        *isum = _mm512_add_epi32(*isum, _mm512_mullo_epi32(partial, subs));
                    }
                }
            } else {
                if zero != 0 {
                    for (index, isum) in isum.iter_mut().enumerate() {
                        let [low, high] = sums[index][block].map(i32::from);
                        *isum = _mm512_set1_epi32(-zero * (low + high));
                    }
                }
                for half in 0..2 {
                    let first = half * STEPS / 2;
                    add_products(weights, &codes, first, &mut isum);
                }
            }
            let weight_scales = load_floats(&self.scales[block]);
            let lane = &mut lanes[block % LANES];
            for index in 0..N {
                let products = _mm512_mul_ps(_mm512_cvtepi32_ps(isum[index]), weight_scales);
                let scale = _mm512_set1_ps(scales[index][block]);
                lane[index] = _mm512_fmadd_ps(products, scale, lane[index]);
            }
            match kind.bias() {
                Bias::None => {}
                Bias::Block => {
                    let biases = load_floats(&self.biases[block]);
                    for index in 0..N {
                        let sum = _mm512_set1_ps(scaled_sums[index][block]);
                        lane[index] = _mm512_fmadd_ps(biases, sum, lane[index]);
                    }
                }
                Bias::Halves => {
                    let biases = load_floats(&self.biases[block]);
                    let mins = [0, 1].map(|half| load_words(&self.mins[2 * block + half]));
                    for index in 0..N {
                        let [low, high] = sums[index][block].map(i32::from);
                        let bsum = _mm512_add_epi32(
                            _mm512_mullo_epi32(mins[0], _mm512_set1_epi32(low)),
                            _mm512_mullo_epi32(mins[1], _mm512_set1_epi32(high)),
                        );
                        let scale = _mm512_set1_ps(scales[index][block]);
                        let sum = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(bsum));
                        lane[index] = _mm512_fmadd_ps(biases, sum, lane[index]);
                    }
                }
            }
        }
        store_sums(lanes, rows, place, out);
        N
    }
}

/// Adds up the lanes of `N` tokens, in the order of `sum_lanes`, and stores the results.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_sums<const N: usize>(
    mut lanes: [[__m512; N]; LANES],
    rows: &Rows<'_>,
    place: Place,
    out: &mut [f32],
) {
    for half in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().flatten().zip(high.iter().flatten()) {
            *low = _mm512_add_ps(*low, *high);
        }
    }
    for (index, sum) in lanes[0].iter().enumerate() {
        let begin = (place.first + index) * rows.n_rows + place.first_row;
        let out = &mut out[begin..begin + place.n_rows];
        let present = (u32::MAX >> (32 - place.n_rows)) as u16;
        // SAFETY: masked values are not written, and the others lie inside `out`.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), present, *sum) };
    }
}

/// Adds the products of half a block, four steps of four columns, to the sums of all tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_products<const N: usize>(
    weights: &[[u8; 64]; STEPS],
    codes: &[&[[u8; 4]; STEPS]; N],
    first: usize,
    sums: &mut [__m512i; N],
) {
    for (step, weights) in weights.iter().enumerate().skip(first).take(STEPS / 2) {
        // SAFETY: the array has 64 bytes; the load needs no alignment.
        let weights = unsafe { _mm512_loadu_si512(weights.as_ptr().cast()) };
        for (sum, codes) in sums.iter_mut().zip(codes) {
            let four = _mm512_set1_epi32(i32::from_le_bytes(codes[step]));
            *sum = _mm512_dpbusd_epi32(*sum, weights, four);
        }
    }
}

/// Codes of a token in fours.
fn in_fours(codes: &[i8]) -> &[[u8; 4]] {
    // SAFETY: signed and unsigned bytes have the same layout.
    let bytes = unsafe { std::slice::from_raw_parts(codes.as_ptr().cast::<u8>(), codes.len()) };
    bytes.as_chunks().0
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(values: &[i32; PANEL]) -> __m512i {
    // SAFETY: the array has 64 bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_floats(values: &[__m512i; PANEL], out: &mut [[f32; PANEL]]) {
    for (out, values) in out.iter_mut().zip(values) {
        // SAFETY: the array has 64 bytes; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(*values)) };
    }
}

/// One half of the factors of sixteen rows, turned so that a vector holds a factor of all rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_factors(factors: &[__m512i; PANEL], half: usize, out: &mut [[i32; PANEL]]) {
    let mut wide = [_mm512_setzero_si512(); PANEL];
    for (wide, factors) in wide.iter_mut().zip(factors) {
        *wide = widen(*factors, half);
    }
    transpose(&mut wide);
    for (out, wide) in out.iter_mut().zip(wide) {
        // SAFETY: the array has 64 bytes; the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), wide) };
    }
}

/// Turns rows of sixteen 32-bit values into columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; 16]) {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for index in 0..8 {
        let (a, b) = (rows[2 * index], rows[2 * index + 1]);
        pairs[2 * index] = _mm512_unpacklo_epi32(a, b);
        pairs[2 * index + 1] = _mm512_unpackhi_epi32(a, b);
    }
    // Quarter `j` of each 128 bits: column 4 * lane + j of four rows.
    let mut fours = [_mm512_setzero_si512(); 16];
    for group in 0..4 {
        let p = &pairs[4 * group..][..4];
        fours[4 * group] = _mm512_unpacklo_epi64(p[0], p[2]);
        fours[4 * group + 1] = _mm512_unpackhi_epi64(p[0], p[2]);
        fours[4 * group + 2] = _mm512_unpacklo_epi64(p[1], p[3]);
        fours[4 * group + 3] = _mm512_unpackhi_epi64(p[1], p[3]);
    }
    for j in 0..4 {
        let even = [
            _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]),
            _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]),
            _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]),
        ];
        rows[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        rows[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        rows[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        rows[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
}
