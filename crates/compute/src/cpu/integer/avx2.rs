//! Integer products for x86-64 with AVX2: one to a few tokens.
//!
//! A part of 256 columns, half a chunk, is unpacked into eight vectors of codes, a block each, which are
//! multiplied with the tokens' codes by `vpmaddubsw`; the eight vectors of partial sums are then added
//! across, so that one vector holds the integers of eight blocks, and scales apply to all of them at
//! once. Kinds whose codes need all eight bits are made signed: magnitudes are multiplied with codes that
//! took the sign over, and sums of two products fit 16 bits. AVX-VNNI has an instruction for these steps,
//! `vpdpbusd`, which is used for many tokens; few wait for memory either way.

#![expect(unsafe_code, reason = "vector instructions")]

mod gemm;
mod load;
mod steps;

use std::arch::x86_64::*;

use crate::cpu::integer::activations::BlocksMut;
use crate::cpu::integer::id::{Id, for_kind};
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::portable::{TokenChunk, TokenRow};
use crate::cpu::integer::{BLOCK, Kind, Padded, Rows, Tokens, quantize_portable};
use crate::prefetch::prefetch;
use load::{PART, Vectors, load, part_of};

/// From so many tokens on, weights are unpacked for all of them into a panel.
const MANY: usize = 6;

/// See [`crate::cpu::integer::portable::multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn multiply(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    for_kind!(rows.kind, multiply_kind(rows, tokens, out));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_kind<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    if tokens.n >= MANY {
        // SAFETY: AVX-VNNI is not asked for.
        unsafe { gemm::multiply::<ID, false>(rows, tokens, out) };
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

/// The same for machines that also have AVX-VNNI.
///
/// # Safety
/// The machine must have it.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn multiply_vnni(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    if tokens.n < MANY {
        multiply(rows, tokens, out);
        return;
    }
    // SAFETY: as the caller says.
    unsafe { for_kind!(rows.kind, vnni_kind(rows, tokens, out)) };
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn vnni_kind<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe { gemm::multiply::<ID, true>(rows, tokens, out) };
}

/// All rows times `N` tokens; gives `N`.
#[target_feature(enable = "avx2,fma,f16c")]
fn few<const ID: u8, const N: usize>(
    rows: &Rows<'_>,
    tokens: &Tokens<'_>,
    first: usize,
    out: &mut [f32],
) -> usize {
    let x: [TokenRow<'_>; N] = std::array::from_fn(|index| TokenRow::of(tokens, first + index));
    for row in 0..rows.n_rows {
        // Of the even and of the odd parts.
        let mut lanes = [[_mm256_setzero_ps(); 2]; N];
        for chunk in 0..rows.n_chunks() {
            let padded;
            let mut stored = rows.chunk(row, chunk);
            if N == 1 {
                prefetch(stored.data, const { Id::kind(ID).chunk_bytes() });
            }
            if !rows.is_whole(stored) {
                padded = Padded::new(stored);
                stored = padded.stored(rows.kind);
            }
            for part in 0..2 {
                let weights = load::<ID>(rows.kind, part_of::<ID>(stored, part));
                for (lanes, x) in lanes.iter_mut().zip(&x) {
                    lanes[part] = add_part::<ID>(&weights, x.chunk(chunk), part, lanes[part]);
                }
            }
        }
        for (index, lanes) in lanes.iter().enumerate() {
            out[index * rows.n_rows + row] = sum_lanes(*lanes);
        }
    }
    N
}

/// Adds the products of a part to the lanes of a result.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_part<const ID: u8>(
    weights: &Vectors,
    x: TokenChunk<'_>,
    part: usize,
    lanes: __m256,
) -> __m256 {
    let kind = const { Id::kind(ID) };
    let apart = if kind.has_subs() { subs_apart(weights.subs) } else { _mm256_set1_epi16(1) };
    let block = |index: usize| {
        let at = part * PART + index * BLOCK;
        let codes = load_codes(x.codes[at..].first_chunk().expect("a chunk is two parts"));
        let pairs = pair_products(weights.codes[index], codes, kind.is_wide());
        let subs = if kind.has_subs() {
            // The factors of the halves of a block are in the halves of the vector.
            let place = _mm256_set1_epi16(0x0100 + 0x0202 * index as i16);
            _mm256_shuffle_epi8(apart, place)
        } else {
            apart
        };
        _mm256_madd_epi16(pairs, subs)
    };
    let pair = |index: usize| {
        let (a, b) = (block(index), block(index + 1));
        _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
    };
    let four = |index: usize| {
        let (a, b) = (pair(index), pair(index + 2));
        _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
    };
    let (a, b) = (four(0), four(4));
    let isum = _mm256_add_epi32(
        _mm256_permute2x128_si256::<0x20>(a, b),
        _mm256_permute2x128_si256::<0x31>(a, b),
    );
    let sums = load_sums(x.sums[part * 16..].first_chunk().expect("a chunk is two parts"));
    let subs = if kind.has_subs() { weights.subs } else { _mm256_set1_epi16(1) };
    let isum = subtract_zeros(zero_of_signed(kind), isum, _mm256_madd_epi16(subs, sums));
    let eight = |values: &[f32; 16]| {
        load_floats(values[part * 8..].first_chunk().expect("a chunk is two parts"))
    };
    let scales = eight(x.scales);
    let products = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), weights.scales);
    let lanes = _mm256_fmadd_ps(products, scales, lanes);
    match kind.bias() {
        Bias::None => lanes,
        Bias::Block => _mm256_fmadd_ps(weights.biases, eight(x.scaled_sums), lanes),
        Bias::Halves => {
            let bsum = _mm256_cvtepi32_ps(_mm256_madd_epi16(weights.mins, sums));
            _mm256_fmadd_ps(weights.biases, _mm256_mul_ps(scales, bsum), lanes)
        }
    }
}

/// Sums of two products each, in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn pair_products(weights: __m256i, codes: __m256i, is_signed: bool) -> __m256i {
    if is_signed {
        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(codes, weights))
    } else {
        _mm256_maddubs_epi16(weights, codes)
    }
}

/// What stands for zero where codes of eight bits were moved down to be signed.
#[inline(always)]
const fn zero_of_signed(kind: Kind) -> i32 {
    kind.zero() - if kind.is_wide() { 128 } else { 0 }
}

/// Corrects sums of products with codes as they are in vectors: what stands for zero, a power of two,
/// times `sums` of the tokens' codes is subtracted.
#[inline]
#[target_feature(enable = "avx2")]
fn subtract_zeros(zero: i32, isum: __m256i, sums: __m256i) -> __m256i {
    if zero == 0 {
        return isum;
    }
    let shift = _mm_cvtsi32_si128(zero.unsigned_abs().trailing_zeros() as i32);
    let zeros = _mm256_sll_epi32(sums, shift);
    if zero > 0 { _mm256_sub_epi32(isum, zeros) } else { _mm256_add_epi32(isum, zeros) }
}

/// Factors of first halves of blocks in the lower half, of second halves in the upper half.
#[inline]
#[target_feature(enable = "avx2")]
fn subs_apart(subs: __m256i) -> __m256i {
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
    ));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(subs, order))
}

/// See [`crate::cpu::integer::sum_lanes`].
#[inline]
#[target_feature(enable = "avx2")]
fn sum_lanes([low, high]: [__m256; 2]) -> f32 {
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_sums(sums: &[i16; 16]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(values: &[f32; 8]) -> __m256 {
    // SAFETY: eight values are readable; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// See [`quantize_portable`], which the compiler turns into vector code here.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn quantize(x: &[f32], out: BlocksMut<'_>) {
    quantize_portable(x, out);
}
