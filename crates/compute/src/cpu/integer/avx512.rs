//! Integer products for x86-64 with AVX-512 (F, BW, VL, VNNI, VBMI): one to a few tokens.
//!
//! A chunk of 512 columns is unpacked into eight vectors of codes, which are multiplied with the tokens'
//! codes by `vpdpbusd`; the eight vectors of partial sums are then added across, so that one vector
//! holds the integers of all sixteen blocks, and scales apply to sixteen blocks at once.

#![expect(unsafe_code, reason = "vector instructions")]

mod gemm;
mod load;
mod order;

use std::arch::x86_64::*;
use std::cell::RefCell;

use crate::cpu::integer::activations::{BlockScale, BlocksMut};
use crate::cpu::integer::id::{Id, for_kind};
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::portable::{TokenChunk, TokenRow, with_whole_chunk};
use crate::cpu::integer::{BLOCK, Kind, LANES, Rows, Tokens};
use crate::prefetch::prefetch;
use load::{Vectors, load_as_it_lies};
use order::{Order, reorder, sums_of_blocks};

/// From so many tokens on, weights are unpacked for all of them into a panel.
const MANY: usize = 6;

/// See [`crate::cpu::integer::portable::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
pub(crate) fn multiply(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    for_kind!(rows.kind, multiply_kind(rows, tokens, out));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
fn multiply_kind<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    if tokens.n >= MANY {
        gemm::multiply::<ID>(rows, tokens, out);
        return;
    }
    let mut first = 0;
    while first < tokens.n {
        let out = &mut out[first * rows.n_rows..];
        first += match tokens.n - first {
            1 => few::<ID, 1>(rows, tokens, first, out),
            2 => few::<ID, 2>(rows, tokens, first, out),
            _ => few::<ID, 3>(rows, tokens, first, out),
        };
    }
}

thread_local! {
    /// Codes of tokens in the order of a kind.
    static REORDERED: RefCell<Vec<[i8; 64]>> = const { RefCell::new(Vec::new()) };
}

/// All rows times `N` tokens; gives `N`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
fn few<const ID: u8, const N: usize>(
    rows: &Rows<'_>,
    tokens: &Tokens<'_>,
    first: usize,
    out: &mut [f32],
) -> usize {
    let tokens = tokens.rows(first, N);
    if const { matches!(Order::of(ID), Order::Columns) } {
        times::<ID, N>(rows, &tokens, out);
    } else {
        REORDERED.with_borrow_mut(|codes| {
            codes.clear();
            reorder::<ID>(tokens.codes, codes);
            times::<ID, N>(rows, &Tokens { codes: codes.as_flattened(), ..tokens }, out);
        });
    }
    N
}

/// All rows times `N` tokens, whose codes are in the order of the kind.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
fn times<const ID: u8, const N: usize>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    let x: [TokenRow<'_>; N] = std::array::from_fn(|index| TokenRow::of(tokens, index));
    for row in 0..rows.n_rows {
        let mut lanes = [_mm512_setzero_ps(); N];
        for chunk in 0..rows.n_chunks() {
            let weights = with_whole_chunk(rows, row, chunk, |stored| {
                if N == 1 {
                    prefetch(stored.data, const { Id::kind(ID).chunk_bytes() });
                }
                load_as_it_lies::<ID>(rows.kind, stored)
            });
            for (lanes, x) in lanes.iter_mut().zip(&x) {
                *lanes = add_chunk::<ID>(&weights, x.chunk(chunk), *lanes);
            }
        }
        for (index, lanes) in lanes.iter().enumerate() {
            out[index * rows.n_rows + row] = sum_lanes(*lanes);
        }
    }
}

/// Adds the products of a chunk to the lanes of a result.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
fn add_chunk<const ID: u8>(weights: &Vectors, x: TokenChunk<'_>, lanes: __m512) -> __m512 {
    let kind = const { Id::kind(ID) };
    let codes = x.codes.as_chunks::<64>().0.first_chunk().expect("a chunk is eight vectors");
    let mut isum = if kind.has_subs() {
        let mut partial = [_mm512_setzero_si512(); 8];
        for (index, partial) in partial.iter_mut().enumerate() {
            let codes = load_bytes(&codes[index]);
            // The factor of each 16 columns stands in four lanes.
            let places = _mm512_add_epi32(
                _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                _mm512_set1_epi32(4 * (index as i32 % 4)),
            );
            let subs = _mm512_permutexvar_epi32(places, weights.wide_subs(index / 4));
            let product = _mm512_dpbusd_epi32(*partial, weights.codes[index], codes);
            *partial = _mm512_mullo_epi32(product, subs);
        }
        add_across(&partial)
    } else {
        sums_of_blocks::<ID>(&weights.codes, codes)
    };
    let sums = load_words_16(x.sums);
    if kind.zero() != 0 {
        let ones = _mm512_set1_epi16(1);
        let subs = if kind.has_subs() { weights.subs } else { ones };
        let sums = _mm512_madd_epi16(subs, sums);
        let shift = _mm_cvtsi32_si128(kind.zero().trailing_zeros() as i32);
        let zeros = _mm512_sll_epi32(sums, shift);
        isum = _mm512_sub_epi32(isum, zeros);
    }
    let scales = load_floats(x.scales);
    let products = _mm512_mul_ps(_mm512_cvtepi32_ps(isum), weights.scales);
    let lanes = _mm512_fmadd_ps(products, scales, lanes);
    match kind.bias() {
        Bias::None => lanes,
        Bias::Block => _mm512_fmadd_ps(weights.biases, load_floats(x.scaled_sums), lanes),
        Bias::Halves => {
            let bsum = _mm512_cvtepi32_ps(_mm512_madd_epi16(weights.mins, sums));
            _mm512_fmadd_ps(weights.biases, _mm512_mul_ps(scales, bsum), lanes)
        }
    }
}

/// The sums of the halves of eight vectors: of 16 blocks, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
fn add_across(partial: &[__m512i; 8]) -> __m512i {
    let [a, b] = partial.as_chunks::<4>().0 else { panic!("eight are two times four") };
    let (a, b) = (add_fours(a), add_fours(b));
    let sums = add_quarters(a, b);
    // Blocks 0, 2, 4, 6, 1, 3, 5, 7 and as many again.
    let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    _mm512_permutexvar_epi32(order, sums)
}

/// Adds the second quarter to the first and the fourth to the third: of `a`, then of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_quarters(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(
        _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b),
    )
}

/// The sums of four neighbours of each of four vectors: in each quarter, one of each vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_fours(four: &[__m512i; 4]) -> __m512i {
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (a, b) = (pair(four[0], four[1]), pair(four[2], four[3]));
    _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
}

/// See [`crate::cpu::integer::sum_lanes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
fn sum_lanes(lanes: __m512) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(values: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen values are readable; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words_16(values: &[i16; 32]) -> __m512i {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

/// See [`crate::cpu::integer::quantize_portable`]: the same arithmetic, a block at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
pub(crate) fn quantize(x: &[f32], out: BlocksMut<'_>) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(out.codes.as_chunks_mut::<BLOCK>().0);
    let places = out.scales.iter_mut().zip(out.sums.as_chunks_mut::<2>().0);
    for (((x, codes), (scale, sums)), scaled_sum) in blocks.zip(places).zip(out.scaled_sums) {
        let halves: [&[f32; LANES]; 2] =
            [x.first_chunk().expect("half of a block"), x.last_chunk().expect("the other half")];
        let x = halves.map(|values| load_floats(values));
        let magnitudes = x.map(|x| _mm512_castps_si512(_mm512_abs_ps(x)));
        let bits = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitudes[0], magnitudes[1]));
        let BlockScale { scale: of_block, inverse, is_finite } = BlockScale::of(bits);
        *scale = of_block;
        let limit = _mm512_set1_ps(127.0);
        let present = if is_finite { u16::MAX } else { 0 };
        let rounded = x.map(|x| {
            // Infinity times zero is no number.
            let scaled = _mm512_maskz_mul_ps(present, x, _mm512_set1_ps(inverse));
            let clamped = _mm512_max_ps(
                _mm512_min_ps(scaled, limit),
                _mm512_sub_ps(_mm512_setzero_ps(), limit),
            );
            // To the nearest, ties to even.
            _mm512_cvtps_epi32(clamped)
        });
        let [low, high] = rounded.map(|half| _mm512_reduce_add_epi32(half));
        for (codes, half) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(rounded) {
            // SAFETY: the array has sixteen bytes; the store needs no alignment.
            unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(half)) };
        }
        *sums = [low as i16, high as i16];
        *scaled_sum = *scale * (low + high) as f32;
    }
}
