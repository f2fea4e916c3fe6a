//! Integer products for x86-64 with AVX2: chunks are unpacked by plain loops and multiplied here.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use crate::cpu::integer::activations::BlocksMut;
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::portable::{TokenChunk, multiply_with};
use crate::cpu::integer::unpack::Chunk;
use crate::cpu::integer::{BLOCK, LANES, Rows, Tokens, quantize_portable};

/// See [`crate::cpu::integer::portable::multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn multiply(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    multiply_with(rows, tokens, out, |rows, chunk, x, lanes| {
        add_chunk(rows, chunk, x, lanes);
    });
}

/// Adds the products of a chunk to the lanes of a result, eight blocks at a time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_chunk(rows: &Rows<'_>, chunk: &Chunk, x: TokenChunk<'_>, lanes: &mut [f32; LANES]) {
    let kind = rows.kind;
    // Eight-bit codes are made signed: sums of two products then fit 16 bits.
    let shift = if kind.is_wide() { 128 } else { 0 };
    for part in 0..2 {
        let first = 8 * part;
        let mut partial = [_mm256_setzero_si256(); 8];
        for (index, partial) in partial.iter_mut().enumerate() {
            let at = (first + index) * BLOCK;
            let weights = load_bytes(chunk.codes[at..].first_chunk().expect("a block"));
            let codes = load_codes(x.codes[at..].first_chunk().expect("a block"));
            let pairs = if shift == 0 {
                _mm256_maddubs_epi16(weights, codes)
            } else {
                let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(codes, signed))
            };
            // The two halves of a block are the two halves of the vector.
            let subs = _mm256_set_m128i(
                _mm_set1_epi16(chunk.subs[2 * (first + index) + 1]),
                _mm_set1_epi16(chunk.subs[2 * (first + index)]),
            );
            *partial = if kind.has_subs() {
                // Sums of two products of small codes fit 16 bits, their products with factors do not.
                _mm256_madd_epi16(pairs, subs)
            } else {
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            };
        }
        let mut isum = add_across(&partial);
        let sums = load_sums(x.sums[2 * first..].first_chunk().expect("eight blocks"));
        let subs = load_sums(chunk.subs[2 * first..].first_chunk().expect("eight blocks"));
        let zero = kind.zero() - shift;
        let zeros = _mm256_mullo_epi32(_mm256_madd_epi16(subs, sums), _mm256_set1_epi32(zero));
        isum = _mm256_sub_epi32(isum, zeros);
        let eight = |values: &[f32; LANES]| {
            load_floats(values[first..].first_chunk().expect("sixteen values"))
        };
        let scales = eight(x.scales);
        let products = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), eight(&chunk.scales));
        let mut sum = _mm256_fmadd_ps(products, scales, eight(lanes));
        match kind.bias() {
            Bias::None => {}
            Bias::Block => sum = _mm256_fmadd_ps(eight(&chunk.biases), eight(x.scaled_sums), sum),
            Bias::Halves => {
                let mins = load_sums(chunk.mins[2 * first..].first_chunk().expect("eight blocks"));
                let bsum = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, sums));
                sum = _mm256_fmadd_ps(eight(&chunk.biases), _mm256_mul_ps(scales, bsum), sum);
            }
        }
        // SAFETY: eight values are writable from `first` on; the store needs no alignment.
        unsafe { _mm256_storeu_ps(lanes[first..].as_mut_ptr(), sum) };
    }
}

/// The sums of eight vectors, in order.
#[inline]
#[target_feature(enable = "avx2")]
fn add_across(partial: &[__m256i; 8]) -> __m256i {
    let four = |a: &[__m256i]| {
        _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]))
    };
    let (a, b) = (four(&partial[..4]), four(&partial[4..]));
    _mm256_add_epi32(
        _mm256_permute2x128_si256::<0x20>(a, b),
        _mm256_permute2x128_si256::<0x31>(a, b),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
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
