//! Stored bytes to vectors of codes: the fast form of [`crate::cpu::integer::unpack`].

use std::arch::x86_64::*;

use checkpoint::FloatType;

use crate::cpu::integer::id::Id;
use crate::cpu::integer::unpack::{E2M1_CODES, IQ4_CODES, scales_and_mins};
use crate::cpu::integer::{Kind, Stored};

/// Columns of a part: half a chunk, so that its codes fill half of the registers.
pub(super) const PART: usize = 256;

/// A part of a row in vectors. What a kind has not is zero and unused.
pub(super) struct Vectors {
    /// A block each: stored codes, or signed ones of kinds that need all eight bits.
    pub(super) codes: [__m256i; 8],
    /// Of eight blocks.
    pub(super) scales: __m256,
    /// Of eight blocks.
    pub(super) biases: __m256,
    /// Factors of each 16 columns, in 16 bits.
    pub(super) subs: __m256i,
    /// Factors of the biases of each 16 columns, in 16 bits.
    pub(super) mins: __m256i,
}

/// The bytes of one of the two parts of a whole chunk.
#[inline(always)]
pub(super) fn part_of<const ID: u8>(stored: Stored<'_>, part: usize) -> Stored<'_> {
    let half = |bytes: &[u8]| bytes.len() / 2 * part..bytes.len() / 2 * (part + 1);
    let size = const { Id::kind(ID).chunk_bytes() / 2 };
    Stored {
        data: &stored.data[size * part..size * (part + 1)],
        scales: &stored.scales[half(stored.scales)],
        biases: &stored.biases[half(stored.biases)],
    }
}

/// The scales, or the biases, of eight blocks. A macro, because the compiler would not inline a function,
/// over whose calls nothing stays in registers.
macro_rules! affine_parameters {
    ($kind:expr, $stored:expr) => {{
        let (group, scales) = match $kind {
            Kind::Affine { group, scales, .. } => (group, scales),
            _ => (32, FloatType::F32),
        };
        let values = if scales == FloatType::F32 {
            _mm256_castsi256_ps(match group {
                32 => bytes($stored, 0),
                64 => _mm256_castsi128_si256(short($stored, 0)),
                _ => _mm256_castsi128_si256(_mm_cvtsi64_si128(eight($stored, 0))),
            })
        } else {
            let halves = match group {
                32 => short($stored, 0),
                64 => _mm_cvtsi64_si128(eight($stored, 0)),
                _ => _mm_cvtsi32_si128(four($stored, 0)),
            };
            if scales == FloatType::F16 {
                _mm256_cvtph_ps(halves)
            } else {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            }
        };
        let shift = _mm_cvtsi32_si128((group / 32).trailing_zeros() as i32);
        let blocks = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_permutevar8x32_ps(values, _mm256_srl_epi32(blocks, shift))
    }};
}

/// Reads a whole part.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load<const ID: u8>(kind: Kind, stored: Stored<'_>) -> Vectors {
    let data = stored.data;
    assert_eq!(data.len(), const { Id::kind(ID).chunk_bytes() / 2 }, "a whole part");
    let mut out = Vectors {
        codes: [_mm256_setzero_si256(); 8],
        scales: _mm256_setzero_ps(),
        biases: _mm256_setzero_ps(),
        subs: _mm256_setzero_si256(),
        mins: _mm256_setzero_si256(),
    };
    match ID {
        Id::Q8_0 => {
            for (index, codes) in out.codes.iter_mut().enumerate() {
                *codes = bytes(data, 34 * index + 2);
            }
            out.scales = block_scales::<34>(data);
        }
        Id::Q4_0 => {
            nibble_blocks::<18>(data, 2, &mut out.codes);
            out.scales = block_scales::<18>(data);
        }
        Id::IQ4_NL => {
            nibble_blocks::<18>(data, 2, &mut out.codes);
            look_up(&IQ4_CODES, &mut out.codes);
            out.scales = block_scales::<18>(data);
        }
        Id::Q4_1 => {
            nibble_blocks::<20>(data, 4, &mut out.codes);
            (out.scales, out.biases) = block_scales_and_biases::<20>(data);
        }
        Id::Q5_0 => {
            nibble_blocks::<22>(data, 6, &mut out.codes);
            fifth_bits::<22>(data, 2, &mut out.codes);
            out.scales = block_scales::<22>(data);
        }
        Id::Q5_1 => {
            nibble_blocks::<24>(data, 8, &mut out.codes);
            fifth_bits::<24>(data, 4, &mut out.codes);
            (out.scales, out.biases) = block_scales_and_biases::<24>(data);
        }
        Id::MXFP4 => {
            nibble_blocks::<17>(data, 1, &mut out.codes);
            look_up(&E2M1_CODES, &mut out.codes);
            let exponents: [u8; 8] =
                [data[0], data[17], data[34], data[51], data[68], data[85], data[102], data[119]];
            let exponents = i64::from_le_bytes(exponents);
            let exponents = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(exponents));
            // 2^(exponent - 127) / 2, of which the two smallest are not normal numbers.
            let scales = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
            let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
            let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponents);
            out.scales = _mm256_castsi256_ps(_mm256_blendv_epi8(scales, small, is_small));
        }
        Id::Q4_K | Id::Q5_K => {
            let codes_at = if ID == Id::Q4_K { 16 } else { 48 };
            for (pair, codes) in out.codes.chunks_exact_mut(2).enumerate() {
                let both = bytes(data, codes_at + 32 * pair);
                codes[0] = masked(both, 15);
                codes[1] = masked(_mm256_srli_epi16::<4>(both), 15);
            }
            if ID == Id::Q5_K {
                let high = bytes(data, 16);
                for (index, codes) in out.codes.iter_mut().enumerate() {
                    let bit = masked(moved(high, 4 - index as i32), 16);
                    *codes = _mm256_or_si256(*codes, bit);
                }
            }
            (out.scales, out.biases) = k_scales(data);
        }
        Id::Q6_K => {
            for (index, codes) in out.codes.iter_mut().enumerate() {
                let (part, quarter) = (index / 4, index % 4);
                let low = bytes(data, 64 * part + 32 * (quarter % 2));
                let low = masked(moved(low, -4 * (quarter as i32 / 2)), 15);
                let high = bytes(data, 128 + 32 * part);
                let high = masked(moved(high, 4 - 2 * quarter as i32), 0x30);
                *codes = _mm256_or_si256(low, high);
            }
            out.subs = _mm256_cvtepi8_epi16(short(data, 192));
            out.scales = spread_half(data, 208);
        }
        Id::Q2_K => {
            two_bits(data, 16, &mut out.codes);
            let factors = _mm256_cvtepu8_epi16(short(data, 0));
            out.subs = _mm256_and_si256(factors, _mm256_set1_epi16(15));
            out.mins = _mm256_srli_epi16::<4>(factors);
            out.scales = spread_half(data, 80);
            out.biases = _mm256_xor_ps(_mm256_set1_ps(-0.0), spread_half(data, 82));
        }
        Id::Q3_K => {
            two_bits(data, 32, &mut out.codes);
            let high = bytes(data, 0);
            for (index, codes) in out.codes.iter_mut().enumerate() {
                let bit = masked(moved(high, 2 - index as i32), 4);
                *codes = _mm256_or_si256(*codes, bit);
            }
            out.subs = q3_k_subs(data, 96);
            out.scales = spread_half(data, 108);
        }
        Id::IQ4_XS => {
            nibble_blocks::<16>(data, 8, &mut out.codes);
            look_up(&IQ4_CODES, &mut out.codes);
            let low = _mm256_set1_epi32(four(data, 4));
            let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let high = _mm256_set1_epi32(i32::from(two(data, 2)));
            let high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
            let sub = _mm256_or_si256(
                _mm256_and_si256(low, _mm256_set1_epi32(15)),
                _mm256_slli_epi32::<4>(_mm256_and_si256(high, _mm256_set1_epi32(3))),
            );
            let sub = _mm256_cvtepi32_ps(_mm256_sub_epi32(sub, _mm256_set1_epi32(32)));
            out.scales = _mm256_mul_ps(spread_half(data, 0), sub);
        }
        _ => {
            out.scales = affine_parameters!(kind, stored.scales);
            out.biases = affine_parameters!(kind, stored.biases);
            for (index, codes) in out.codes.iter_mut().enumerate() {
                *codes = affine_codes::<ID>(data, index);
            }
        }
    }
    out
}

/// The 32 codes of `BITS` bits of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn affine_codes<const BITS: u8>(data: &[u8], index: usize) -> __m256i {
    let at = 4 * usize::from(BITS) * index;
    match BITS {
        8 => _mm256_xor_si256(bytes(data, at), _mm256_set1_epi8(-128)),
        4 => {
            // A byte becomes a 16-bit word, whose upper byte takes the upper nibble.
            let words = _mm256_cvtepu8_epi16(short(data, at));
            masked(_mm256_or_si256(words, _mm256_slli_epi16::<4>(words)), 15)
        }
        2 => {
            // A byte becomes a 32-bit word, each of whose bytes takes a code.
            let words = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(eight(data, at)));
            let words = _mm256_or_si256(words, _mm256_slli_epi32::<12>(words));
            masked(_mm256_or_si256(words, _mm256_slli_epi32::<6>(words)), 3)
        }
        _ => odd_codes::<BITS>(data, at),
    }
}

/// Codes of 3, 5 or 6 bits (no others arrive here): the two bytes that a code lies in become a word, a multiplication brings the
/// code to its upper end, and a shift to its lower one.
#[inline]
#[target_feature(enable = "avx2")]
fn odd_codes<const BITS: u8>(data: &[u8], at: usize) -> __m256i {
    /// Bytes and factors of the words of 16 codes, of which every second eight are in another vector;
    /// the upper half of a vector is loaded so that it ends with the block.
    const fn places(bits: usize) -> ([[u8; 32]; 2], [[i16; 16]; 2]) {
        let (mut bytes, mut factors) = ([[0x80; 32]; 2], [[0; 16]; 2]);
        let mut code = 0;
        while code < 32 {
            let (lane, vector, word) = (code / 16, code / 8 % 2, code / 16 * 8 + code % 8);
            let skipped = if lane == 0 || bits == 3 { 0 } else { 4 * bits - 16 };
            let bit = code * bits;
            bytes[vector][2 * word] = (bit / 8 - skipped) as u8;
            if bit / 8 + 1 - skipped < 16 {
                bytes[vector][2 * word + 1] = (bit / 8 + 1 - skipped) as u8;
            }
            factors[vector][word] = 1 << (16 - bits - bit % 8);
            code += 1;
        }
        (bytes, factors)
    }
    let (places, factors) =
        const { &places(if matches!(BITS, 3 | 5 | 6) { BITS as usize } else { 6 }) };
    let stored = if BITS == 3 {
        let twelve = _mm_set_epi64x(i64::from(four(data, at + 8)), eight(data, at));
        _mm256_set_m128i(twelve, twelve)
    } else {
        let end = at + 4 * usize::from(BITS);
        _mm256_set_m128i(short(data, end - 16), short(data, at))
    };
    let mut words = [_mm256_setzero_si256(); 2];
    for (index, words) in words.iter_mut().enumerate() {
        // SAFETY: the array has 32 bytes; the load needs no alignment.
        let factors = unsafe { _mm256_loadu_si256(factors[index].as_ptr().cast()) };
        let pairs = _mm256_shuffle_epi8(stored, bytes(&places[index], 0));
        let high = _mm256_mullo_epi16(pairs, factors);
        *words = _mm256_srl_epi16(high, _mm_cvtsi32_si128(16 - i32::from(BITS)));
    }
    _mm256_packus_epi16(words[0], words[1])
}

/// Blocks of 16 bytes whose low nibbles are the first 16 codes and whose high ones the others.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_blocks<const BYTES: usize>(data: &[u8], at: usize, out: &mut [__m256i; 8]) {
    for (index, codes) in out.iter_mut().enumerate() {
        let both = _mm256_broadcastsi128_si256(short(data, index * BYTES + at));
        *codes = masked(_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4)), 15);
    }
}

/// Adds 16 to the codes whose bit is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits<const BYTES: usize>(data: &[u8], at: usize, out: &mut [__m256i; 8]) {
    let ones = i64::from_le_bytes([1; 8]);
    let places = _mm256_setr_epi64x(0, ones, 2 * ones, 3 * ones);
    let bits = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
    for (index, codes) in out.iter_mut().enumerate() {
        let stored = _mm256_set1_epi32(four(data, index * BYTES + at));
        let stored = _mm256_and_si256(_mm256_shuffle_epi8(stored, places), bits);
        let is_set = _mm256_cmpeq_epi8(stored, bits);
        *codes = _mm256_or_si256(*codes, masked(is_set, 16));
    }
}

/// Replaces codes by their entries in a table, moved down to be signed.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(table: &[u8; 16], codes: &mut [__m256i; 8]) {
    let table = _mm256_broadcastsi128_si256(short(table, 0));
    let table = _mm256_xor_si256(table, _mm256_set1_epi8(-128));
    for codes in codes {
        *codes = _mm256_shuffle_epi8(table, *codes);
    }
}

/// Two-bit codes: quarters of 32 values share bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn two_bits(data: &[u8], at: usize, out: &mut [__m256i; 8]) {
    for (index, codes) in out.iter_mut().enumerate() {
        let quarters = bytes(data, at + 32 * (index / 4));
        *codes = masked(moved(quarters, -2 * (index as i32 % 4)), 3);
    }
}

/// Six-bit factors of Q3_K.
#[inline]
#[target_feature(enable = "avx2")]
fn q3_k_subs(data: &[u8], at: usize) -> __m256i {
    let low = eight(data, at);
    let nibbles = _mm_set_epi64x(low >> 4, low);
    let nibbles = _mm_and_si128(nibbles, _mm_set1_epi8(15));
    let high = _mm_set1_epi32(four(data, at + 8));
    let high = _mm_srlv_epi32(high, _mm_setr_epi32(0, 2, 4, 6));
    let high = _mm_slli_epi16::<4>(_mm_and_si128(high, _mm_set1_epi8(3)));
    let subs = _mm_sub_epi8(_mm_or_si128(nibbles, high), _mm_set1_epi8(32));
    _mm256_cvtepi8_epi16(subs)
}

/// Bits moved up, or down if the number is negative; what comes from another byte is to be masked.
#[inline]
#[target_feature(enable = "avx2")]
fn moved(bytes: __m256i, by: i32) -> __m256i {
    match by {
        0 => bytes,
        1.. => _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(by)),
        _ => _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(-by)),
    }
}

/// Keeps the bits of `mask` of each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn masked(bytes: __m256i, mask: i8) -> __m256i {
    _mm256_and_si256(bytes, _mm256_set1_epi8(mask))
}

/// The 16-bit floats at the beginning of eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn block_scales<const BYTES: usize>(data: &[u8]) -> __m256 {
    let one = |block: usize| two(data, block * BYTES) as i16;
    let halves = _mm_setr_epi16(one(0), one(1), one(2), one(3), one(4), one(5), one(6), one(7));
    _mm256_cvtph_ps(halves)
}

/// The two 16-bit floats at the beginning of eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn block_scales_and_biases<const BYTES: usize>(data: &[u8]) -> (__m256, __m256) {
    let one = |block: usize| four(data, block * BYTES);
    let low = _mm_setr_epi32(one(0), one(1), one(2), one(3));
    let high = _mm_setr_epi32(one(4), one(5), one(6), one(7));
    let apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let (low, high) = (_mm_shuffle_epi8(low, apart), _mm_shuffle_epi8(high, apart));
    (_mm256_cvtph_ps(_mm_unpacklo_epi64(low, high)), _mm256_cvtph_ps(_mm_unpackhi_epi64(low, high)))
}

/// A 16-bit float for all eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn spread_half(data: &[u8], at: usize) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(two(data, at) as i16))
}

/// Scales and biases of a super-block of Q4_K or Q5_K.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn k_scales(data: &[u8]) -> (__m256, __m256) {
    let factors = scales_and_mins(data[4..].first_chunk().expect("twelve bytes follow"));
    let floats = |bytes: [u8; 8]| {
        let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
    };
    let min = _mm256_xor_ps(_mm256_set1_ps(-0.0), spread_half(data, 2));
    (
        _mm256_mul_ps(spread_half(data, 0), floats(factors[0])),
        _mm256_mul_ps(min, floats(factors[1])),
    )
}

#[inline]
fn two(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*data[at..].first_chunk().expect("offsets lie inside the part"))
}

#[inline]
fn four(data: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(*data[at..].first_chunk().expect("offsets lie inside the part"))
}

#[inline]
fn eight(data: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(*data[at..].first_chunk().expect("offsets lie inside the part"))
}

/// 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn short(data: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = data[at..].first_chunk().expect("offsets lie inside the part");
    // SAFETY: the array is readable; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(data: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = data[at..].first_chunk().expect("offsets lie inside the part");
    // SAFETY: the array is readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
