//! Many tokens: eight rows of weights are unpacked once into a panel and multiplied with all tokens.
//!
//! In the panel four consecutive columns of eight rows form a vector, so that four columns of a token are
//! broadcast to all lanes and nothing is added across. Sums of products stay in 16 bits for as many steps
//! as the kind's codes allow: a whole block of codes of four bits, none of eight. With AVX-VNNI codes lie
//! in the panel such that they are not negative, and an instruction adds up four columns in 32 bits.

use std::arch::x86_64::*;
use std::cell::RefCell;

use crate::cpu::integer::avx2::load::{PART, Vectors, load, part_of};
use crate::cpu::integer::avx2::steps::{add_narrow, add_vnni, add_wide, dot_vnni};
use crate::cpu::integer::avx2::{load_floats, pair_products, subtract_zeros, zero_of_signed};
use crate::cpu::integer::id::Id;
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::{BLOCK, CHUNK, Kind, LANES, Padded, Rows, Tokens};

/// Rows of a panel.
const PANEL: usize = 8;
/// Steps of four columns in a block.
const STEPS: usize = BLOCK / 4;
/// Blocks of a part.
const BLOCKS: usize = PART / BLOCK;

/// A value of each row.
pub(super) type Words = [i32; PANEL];

thread_local! {
    static PANELS: RefCell<Panel> = RefCell::default();
}

/// Eight rows of weights, unpacked.
#[derive(Default)]
struct Panel {
    /// (blocks, STEPS, PANEL): four codes each.
    codes: Vec<Words>,
    /// (blocks, PANEL): scales and biases.
    scales: Vec<[f32; PANEL]>,
    biases: Vec<[f32; PANEL]>,
    /// (blocks, PANEL): factors of both halves of a block, and of their biases, in 16 bits.
    subs: Vec<Words>,
    mins: Vec<Words>,
}

/// See [`crate::cpu::integer::portable::multiply`].
///
/// # Safety
/// The machine must have AVX-VNNI if that is asked for.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<const ID: u8, const VNNI: bool>(
    rows: &Rows<'_>,
    tokens: &Tokens<'_>,
    out: &mut [f32],
) {
    PANELS.with_borrow_mut(|panel| {
        for first_row in (0..rows.n_rows).step_by(PANEL) {
            let n_rows = PANEL.min(rows.n_rows - first_row);
            panel.fill::<ID, VNNI>(rows, first_row, n_rows);
            let mut first = 0;
            while first < tokens.n {
                let place = Place { first, first_row, n_rows };
                // SAFETY: as the caller says.
                first += unsafe {
                    match tokens.n - first {
                        4.. => panel.apply::<ID, VNNI, 4>(rows, tokens, place, out),
                        2.. => panel.apply::<ID, VNNI, 2>(rows, tokens, place, out),
                        _ => panel.apply::<ID, VNNI, 1>(rows, tokens, place, out),
                    }
                };
            }
        }
    });
}

/// Steps whose sums of two products of 16 bits can be added up in 16 bits.
const fn steps_in_16_bits(id: u8) -> usize {
    let kind = Id::kind(id);
    if kind.is_wide() {
        // Their sums are of 32 bits.
        return STEPS;
    }
    let steps = (i16::MAX as i32 / (2 * 127 * Id::largest(id))) as usize;
    let most = if kind.has_subs() { STEPS / 2 } else { STEPS };
    match steps {
        8.. => most,
        4.. => STEPS / 2,
        _ => STEPS / 4,
    }
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
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill<const ID: u8, const VNNI: bool>(
        &mut self,
        rows: &Rows<'_>,
        first_row: usize,
        n_rows: usize,
    ) {
        let kind = const { Id::kind(ID) };
        let n_blocks = rows.n_chunks() * LANES;
        self.codes.resize(n_blocks * STEPS, [0; PANEL]);
        self.scales.resize(n_blocks, [0.0; PANEL]);
        self.biases.resize(n_blocks, [0.0; PANEL]);
        self.subs.resize(n_blocks, [0; PANEL]);
        self.mins.resize(n_blocks, [0; PANEL]);
        for part in 0..2 * rows.n_chunks() {
            let zero = _mm256_setzero_si256();
            let mut codes = [[zero; PANEL]; BLOCKS];
            let [mut scales, mut biases, mut subs, mut mins] = [[zero; PANEL]; 4];
            for row in 0..n_rows {
                let padded;
                let mut stored = rows.chunk(first_row + row, part / 2);
                if !rows.is_whole(stored) {
                    padded = Padded::new(stored);
                    stored = padded.stored(rows.kind);
                }
                let weights: Vectors = load::<ID>(rows.kind, part_of::<ID>(stored, part % 2));
                for (codes, of_row) in codes.iter_mut().zip(weights.codes) {
                    codes[row] = if VNNI && kind.is_wide() {
                        _mm256_xor_si256(of_row, _mm256_set1_epi8(i8::MIN))
                    } else {
                        of_row
                    };
                }
                scales[row] = _mm256_castps_si256(weights.scales);
                biases[row] = _mm256_castps_si256(weights.biases);
                (subs[row], mins[row]) = (weights.subs, weights.mins);
            }
            let at = part * BLOCKS;
            for (block, codes) in codes.iter().enumerate() {
                let steps = &mut self.codes[(at + block) * STEPS..][..STEPS];
                store_columns(codes, |step, values| store_words(&mut steps[step], values));
            }
            let out = &mut self.scales[at..at + BLOCKS];
            store_columns(&scales, |block, values| store_floats(&mut out[block], values));
            if kind.bias() != Bias::None {
                let out = &mut self.biases[at..at + BLOCKS];
                store_columns(&biases, |block, values| store_floats(&mut out[block], values));
            }
            if kind.has_subs() {
                let out = &mut self.subs[at..at + BLOCKS];
                store_columns(&subs, |block, values| store_words(&mut out[block], values));
            }
            if kind.bias() == Bias::Halves {
                let out = &mut self.mins[at..at + BLOCKS];
                store_columns(&mins, |block, values| store_words(&mut out[block], values));
            }
        }
    }

    /// Multiplies the panel with `N` tokens; gives `N`.
    ///
    /// # Safety
    /// The machine must have AVX-VNNI if that is asked for.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn apply<const ID: u8, const VNNI: bool, const N: usize>(
        &self,
        rows: &Rows<'_>,
        tokens: &Tokens<'_>,
        place: Place,
        out: &mut [f32],
    ) -> usize {
        let kind = const { Id::kind(ID) };
        let run = const { steps_in_16_bits(ID) };
        let width = tokens.n_chunks * CHUNK;
        let n_blocks = rows.cols / BLOCK;
        let ones = _mm256_set1_epi16(1);
        // Cut to the number of blocks, so that the loop over them checks little.
        let mut all_codes: [&[[i8; BLOCK]]; N] = [&[]; N];
        let mut all_sums: [&[[i16; 2]]; N] = [&[]; N];
        let [mut all_scales, mut all_scaled_sums]: [[&[f32]; N]; 2] = [[&[]; N]; 2];
        for index in 0..N {
            let begin = (place.first + index) * width / BLOCK;
            let blocks = begin..begin + n_blocks;
            all_codes[index] = &tokens.codes.as_chunks().0[blocks.clone()];
            all_sums[index] = &tokens.sums.as_chunks().0[blocks.clone()];
            all_scales[index] = &tokens.scales[blocks.clone()];
            all_scaled_sums[index] = &tokens.scaled_sums[blocks];
        }
        let all_weights = &self.codes.as_chunks::<STEPS>().0[..n_blocks];
        let weight_scales = &self.scales[..n_blocks];
        let biases = &self.biases[..n_blocks];
        let mut lanes = [[_mm256_setzero_ps(); N]; LANES];
        for block in 0..n_blocks {
            let weights = &all_weights[block];
            let mut codes = [&[0_i8; BLOCK]; N];
            for index in 0..N {
                codes[index] = &all_codes[index][block];
            }
            // Factors of the first and of the second half of all rows.
            let subs = load_words(&self.subs[block]);
            let low = _mm256_and_si256(subs, _mm256_set1_epi32(0xffff));
            let high = _mm256_srli_epi32::<16>(subs);
            let factors = if kind.has_subs() {
                [
                    _mm256_or_si256(low, _mm256_slli_epi32::<16>(low)),
                    _mm256_or_si256(high, _mm256_slli_epi32::<16>(high)),
                ]
            } else {
                [ones, ones]
            };
            let mut isum = [_mm256_setzero_si256(); N];
            if VNNI {
                // SAFETY: as the caller says.
                unsafe { add_block_vnni(kind, weights, &codes, subs, &mut isum) };
            }
            for first in (0..if VNNI { 0 } else { STEPS }).step_by(run) {
                let mut pairs = [_mm256_setzero_si256(); N];
                let weights = &weights[first..first + run];
                if let Ok(codes) = <&[&[i8; BLOCK]; 4]>::try_from(&codes[..]) {
                    let [a, b, c, d] = codes;
                    let part = 4 * first..4 * (first + run);
                    let codes = [&a[part.clone()], &b[part.clone()], &c[part.clone()], &d[part]];
                    if kind.is_wide() {
                        add_wide(weights, codes, (&mut isum[..]).try_into().expect("four"));
                        continue;
                    }
                    add_narrow(weights, codes, (&mut pairs[..]).try_into().expect("four"));
                } else {
                    for (step, weights) in weights.iter().enumerate() {
                        let weights = load_words(weights);
                        for index in 0..N {
                            let at = 4 * (first + step);
                            let four: &[i8; 4] = codes[index][at..].first_chunk().expect("four");
                            let four = _mm256_set1_epi32(four_codes(four));
                            let products = pair_products(weights, four, kind.is_wide());
                            if kind.is_wide() {
                                let products = _mm256_madd_epi16(products, ones);
                                isum[index] = _mm256_add_epi32(isum[index], products);
                            } else {
                                pairs[index] = _mm256_add_epi16(pairs[index], products);
                            }
                        }
                    }
                    if kind.is_wide() {
                        continue;
                    }
                }
                let factor = factors[first / (STEPS / 2)];
                for (isum, pairs) in isum.iter_mut().zip(pairs) {
                    *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(pairs, factor));
                }
            }
            let scales = load_floats(&weight_scales[block]);
            let lane = &mut lanes[block % LANES];
            for index in 0..N {
                let sums = all_sums[index][block];
                let both = i32::from(sums[0] as u16) | i32::from(sums[1]) << 16;
                let sums = _mm256_set1_epi32(both);
                let subs = if kind.has_subs() { subs } else { ones };
                let zero = if VNNI { kind.zero() } else { zero_of_signed(kind) };
                let isum = subtract_zeros(zero, isum[index], _mm256_madd_epi16(subs, sums));
                let products = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), scales);
                let scale = _mm256_set1_ps(all_scales[index][block]);
                let mut sum = _mm256_fmadd_ps(products, scale, lane[index]);
                match kind.bias() {
                    Bias::None => {}
                    Bias::Block => {
                        let scaled_sum = _mm256_set1_ps(all_scaled_sums[index][block]);
                        sum = _mm256_fmadd_ps(load_floats(&biases[block]), scaled_sum, sum);
                    }
                    Bias::Halves => {
                        let bsum = _mm256_madd_epi16(load_words(&self.mins[block]), sums);
                        let bsum = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(bsum));
                        sum = _mm256_fmadd_ps(load_floats(&biases[block]), bsum, sum);
                    }
                }
                lane[index] = sum;
            }
        }
        // In the order of `sum_lanes`.
        for half in [8, 4, 2, 1] {
            let (low, high) = lanes.split_at_mut(half);
            for (low, high) in low.iter_mut().flatten().zip(high.iter().flatten()) {
                *low = _mm256_add_ps(*low, *high);
            }
        }
        for (index, sum) in lanes[0].iter().enumerate() {
            let mut values = [0.0; PANEL];
            store_floats(&mut values, _mm256_castps_si256(*sum));
            let begin = (place.first + index) * rows.n_rows + place.first_row;
            out[begin..begin + place.n_rows].copy_from_slice(&values[..place.n_rows]);
        }
        N
    }
}

/// The integers of a block of eight rows and `N` tokens.
///
/// # Safety
/// The machine must have AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_block_vnni<const N: usize>(
    kind: Kind,
    weights: &[Words; STEPS],
    codes: &[&[i8; BLOCK]; N],
    subs: __m256i,
    isum: &mut [__m256i; N],
) {
    let subs =
        [_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(subs)), _mm256_srai_epi32::<16>(subs)];
    for (half, (weights, subs)) in
        weights.as_chunks::<{ STEPS / 2 }>().0.iter().zip(subs).enumerate()
    {
        let begin = half * BLOCK / 2;
        let mut sums = if kind.has_subs() { [_mm256_setzero_si256(); N] } else { *isum };
        if let Ok([a, b, c, d]) = <&[&[i8; BLOCK]; 4]>::try_from(&codes[..]) {
            let part = begin..begin + BLOCK / 2;
            let codes = [&a[part.clone()], &b[part.clone()], &c[part.clone()], &d[part]];
            // SAFETY: as the caller says.
            unsafe { add_vnni(weights, codes, (&mut sums[..]).try_into().expect("four")) };
        } else {
            for (step, weights) in weights.iter().enumerate() {
                let weights = load_words(weights);
                for index in 0..N {
                    let four = codes[index][begin + 4 * step..].first_chunk().expect("four");
                    let four = _mm256_set1_epi32(four_codes(four));
                    // SAFETY: as the caller says.
                    sums[index] = unsafe { dot_vnni(sums[index], weights, four) };
                }
            }
        }
        for (isum, sums) in isum.iter_mut().zip(sums) {
            *isum = if kind.has_subs() {
                _mm256_add_epi32(*isum, _mm256_mullo_epi32(sums, subs))
            } else {
                sums
            };
        }
    }
}

/// Four codes as a word.
#[inline(always)]
fn four_codes(&[a, b, c, d]: &[i8; 4]) -> i32 {
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(values: &Words) -> __m256i {
    // SAFETY: the array has 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_words(out: &mut Words, values: __m256i) {
    // SAFETY: the array has 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), values) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_floats(out: &mut [f32; PANEL], values: __m256i) {
    // SAFETY: the array has 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_castsi256_ps(values)) };
}

/// Turns rows of eight 32-bit values into columns and gives each to `store` with its number.
#[inline]
#[target_feature(enable = "avx2")]
fn store_columns(rows: &[__m256i; PANEL], mut store: impl FnMut(usize, __m256i)) {
    let mut pairs = [_mm256_setzero_si256(); 8];
    for index in 0..4 {
        let (a, b) = (rows[2 * index], rows[2 * index + 1]);
        pairs[2 * index] = _mm256_unpacklo_epi32(a, b);
        pairs[2 * index + 1] = _mm256_unpackhi_epi32(a, b);
    }
    // Place `j`: columns j and 4 + j of four rows.
    let mut fours = [_mm256_setzero_si256(); 8];
    for group in 0..2 {
        let p = &pairs[4 * group..][..4];
        fours[4 * group] = _mm256_unpacklo_epi64(p[0], p[2]);
        fours[4 * group + 1] = _mm256_unpackhi_epi64(p[0], p[2]);
        fours[4 * group + 2] = _mm256_unpacklo_epi64(p[1], p[3]);
        fours[4 * group + 3] = _mm256_unpackhi_epi64(p[1], p[3]);
    }
    for j in 0..4 {
        store(j, _mm256_permute2x128_si256::<0x20>(fours[j], fours[4 + j]));
        store(4 + j, _mm256_permute2x128_si256::<0x31>(fours[j], fours[4 + j]));
    }
}
