//! Stored bytes to vectors of codes: the fast form of [`crate::cpu::integer::unpack`].

use std::arch::x86_64::*;

use checkpoint::FloatType;

use crate::cpu::integer::avx512::order::{Order, codes_as_they_lie};
use crate::cpu::integer::id::Id;
use crate::cpu::integer::unpack::{E2M1_CODES, IQ4_CODES, iq4_xs_scales, q3_k_subs};
use crate::cpu::integer::{Kind, Stored};

/// A chunk of a row in vectors. What a kind has not is zero and unused.
pub(super) struct Vectors {
    /// 64 codes each.
    pub(super) codes: [__m512i; 8],
    /// Of sixteen blocks.
    pub(super) scales: __m512,
    /// Of sixteen blocks.
    pub(super) biases: __m512,
    /// Factors of each 16 columns, in 16 bits.
    pub(super) subs: __m512i,
    /// Factors of the biases of each 16 columns, in 16 bits.
    pub(super) mins: __m512i,
}

impl Vectors {
    /// One half of the factors, in 32 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn wide_subs(&self, half: usize) -> __m512i {
        widen(self.subs, half)
    }
}

/// One half of 32 small integers, in 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn widen(values: __m512i, half: usize) -> __m512i {
    match half {
        0 => _mm512_cvtepi16_epi32(_mm512_castsi512_si256(values)),
        _ => _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(values)),
    }
}

/// Reads a whole chunk, with codes in the order of a kind ([`Order`]).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
pub(super) fn load_as_it_lies<const ID: u8>(kind: Kind, stored: Stored<'_>) -> Vectors {
    // The codes in order of columns are left out by the compiler where nobody uses them.
    let mut out = load::<ID>(kind, stored);
    if const { !matches!(Order::of(ID), Order::Columns) } {
        out.codes = codes_as_they_lie::<ID>(stored.data);
    }
    out
}

/// Reads a whole chunk, with codes in the order of their columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
pub(super) fn load<const ID: u8>(kind: Kind, stored: Stored<'_>) -> Vectors {
    let data = stored.data;
    assert_eq!(data.len(), const { Id::kind(ID).chunk_bytes() }, "a whole chunk");
    let mut out = Vectors {
        codes: [_mm512_setzero_si512(); 8],
        scales: _mm512_setzero_ps(),
        biases: _mm512_setzero_ps(),
        subs: _mm512_setzero_si512(),
        mins: _mm512_setzero_si512(),
    };
    match ID {
        Id::Q8_0 => {
            for (index, codes) in out.codes.iter_mut().enumerate() {
                let blocks = [bytes(data, 68 * index + 2), bytes(data, 68 * index + 36)];
                let signed = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(blocks[0]), blocks[1]);
                *codes = _mm512_xor_si512(signed, _mm512_set1_epi8(-128));
            }
            out.scales = block_scales::<34>(data, 0);
        }
        Id::Q4_0 | Id::IQ4_NL => {
            nibble_blocks::<18>(data, 2, &mut out.codes);
            if ID == Id::IQ4_NL {
                look_up(&IQ4_CODES, &mut out.codes);
            }
            out.scales = block_scales::<18>(data, 0);
        }
        Id::Q4_1 => {
            nibble_blocks::<20>(data, 4, &mut out.codes);
            out.scales = block_scales::<20>(data, 0);
            out.biases = block_scales::<20>(data, 2);
        }
        Id::Q5_0 => {
            nibble_blocks::<22>(data, 6, &mut out.codes);
            fifth_bits::<22>(data, 2, &mut out.codes);
            out.scales = block_scales::<22>(data, 0);
        }
        Id::Q5_1 => {
            nibble_blocks::<24>(data, 8, &mut out.codes);
            fifth_bits::<24>(data, 4, &mut out.codes);
            out.scales = block_scales::<24>(data, 0);
            out.biases = block_scales::<24>(data, 2);
        }
        Id::MXFP4 => {
            nibble_blocks::<17>(data, 1, &mut out.codes);
            look_up(&E2M1_CODES, &mut out.codes);
            let words = block_words::<17>(data, 0);
            // SAFETY: the array has 32 bytes; the load needs no alignment.
            let words = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
            let exponents = _mm512_and_si512(_mm512_cvtepu16_epi32(words), _mm512_set1_epi32(255));
            // 2^(exponent - 127) / 2, of which the two smallest are not normal numbers.
            let scales = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
            let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponents);
            let is_small = _mm512_cmplt_epi32_mask(exponents, _mm512_set1_epi32(2));
            out.scales = _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_small, scales, small));
        }
        Id::Q4_K | Id::Q5_K => {
            let size = if ID == Id::Q4_K { 144 } else { 176 };
            for block in 0..2 {
                let at = block * size;
                let codes = &mut out.codes[4 * block..][..4];
                for (pair, codes) in codes.iter_mut().enumerate() {
                    let low_bits = both(data, at + size - 128 + 32 * pair);
                    *codes = shifted(low_bits, 0, 4, 15);
                    if ID == Id::Q5_K {
                        let bits = _mm512_inserti64x4::<1>(
                            _mm512_set1_epi8(1 << (2 * pair)),
                            _mm256_set1_epi8((2 << (2 * pair)) as i8),
                        );
                        let high = _mm512_test_epi8_mask(both(data, at + 16), bits);
                        *codes = _mm512_mask_add_epi8(*codes, high, *codes, _mm512_set1_epi8(16));
                    }
                }
            }
            (out.scales, out.biases) = k_scales(data, size);
        }
        Id::Q6_K => {
            for block in 0..2 {
                let at = 210 * block;
                for part in 0..2 {
                    let low = wide(data, at + 64 * part);
                    let high = both(data, at + 128 + 32 * part);
                    let mask = _mm512_set1_epi8(15);
                    let lows = [
                        _mm512_and_si512(low, mask),
                        _mm512_and_si512(_mm512_srli_epi16::<4>(low), mask),
                    ];
                    for (index, low) in lows.into_iter().enumerate() {
                        let shift = 4 * index as i64;
                        let high = _mm512_slli_epi16::<4>(shifted(high, shift, shift + 2, 3));
                        out.codes[4 * block + 2 * part + index] = _mm512_or_si512(low, high);
                    }
                }
            }
            let subs = _mm256_set_m128i(short(data, 210 + 192), short(data, 192));
            out.subs = _mm512_cvtepi8_epi16(subs);
            (out.scales, _) = super_scales::<210>(data, 208);
        }
        Id::Q2_K => {
            two_bits::<84>(data, 16, &mut out.codes);
            let factors = _mm256_set_m128i(short(data, 84), short(data, 0));
            let factors = _mm512_cvtepu8_epi16(factors);
            out.subs = _mm512_and_si512(factors, _mm512_set1_epi16(15));
            out.mins = _mm512_srli_epi16::<4>(factors);
            let (scales, mins) = super_scales::<84>(data, 80);
            out.scales = scales;
            out.biases = _mm512_sub_ps(_mm512_set1_ps(-0.0), mins);
        }
        Id::Q3_K => {
            two_bits::<110>(data, 32, &mut out.codes);
            let mut subs = [0; 32];
            for block in 0..2 {
                let high = both(data, 110 * block);
                for (index, codes) in out.codes[4 * block..][..4].iter_mut().enumerate() {
                    let bits = _mm512_inserti64x4::<1>(
                        _mm512_set1_epi8(1 << (2 * index)),
                        _mm256_set1_epi8((2 << (2 * index)) as i8),
                    );
                    let high = _mm512_test_epi8_mask(high, bits);
                    *codes = _mm512_mask_add_epi8(*codes, high, *codes, _mm512_set1_epi8(4));
                }
                let stored = data[110 * block + 96..].first_chunk().expect("twelve bytes follow");
                subs[16 * block..][..16].copy_from_slice(&q3_k_subs(stored));
            }
            // SAFETY: the array has 64 bytes; the load needs no alignment.
            out.subs = unsafe { _mm512_loadu_si512(subs.as_ptr().cast()) };
            (out.scales, _) = super_scales::<110>(data, 108);
        }
        Id::IQ4_XS => {
            let mut scales = [0.0; 16];
            for block in 0..2 {
                let at = 136 * block;
                for pair in 0..4 {
                    let two = _mm512_castsi256_si512(bytes(data, at + 8 + 32 * pair));
                    let places = _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3);
                    let two = _mm512_permutexvar_epi64(places, two);
                    out.codes[4 * block + pair] = halves(two);
                }
                let head = data[at..].first_chunk().expect("eight bytes begin a block");
                scales[8 * block..][..8].copy_from_slice(&iq4_xs_scales(head));
            }
            look_up(&IQ4_CODES, &mut out.codes);
            out.scales = super::load_floats(&scales);
        }
        _ => {
            for (index, codes) in out.codes.iter_mut().enumerate() {
                *codes = affine_codes::<ID>(data, index);
            }
            out.scales = affine_parameters(kind, stored.scales);
            out.biases = affine_parameters(kind, stored.biases);
        }
    }
    out
}

/// 64 codes of `BITS` bits: bytes are brought to where eight of their codes lie in a 64-bit word, and
/// shifted apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn affine_codes<const BITS: u8>(data: &[u8], index: usize) -> __m512i {
    let n_bytes = 8 * usize::from(BITS);
    let data = &data[index * n_bytes..][..n_bytes];
    match BITS {
        8 => wide(data, 0),
        4 => {
            // A byte becomes a 16-bit word, whose upper byte takes the upper nibble.
            let words = _mm512_cvtepu8_epi16(bytes(data, 0));
            let nibbles = _mm512_or_si512(words, _mm512_slli_epi16::<4>(words));
            _mm512_and_si512(nibbles, _mm512_set1_epi8(15))
        }
        _ => {
            const fn places(bits: u8) -> [[u8; 64]; 2] {
                let mut places = [[0; 64]; 2];
                let mut index = 0;
                while index < 64 {
                    let (word, byte) = (index as u8 / 8, index as u8 % 8);
                    let place = word * bits + byte;
                    places[0][index] = if place < 64 { place } else { 0 };
                    places[1][index] = byte * bits;
                    index += 1;
                }
                places
            }
            let [order, shifts] = const { &places(BITS) };
            // In two loads: masked ones took several times as long (Zen 5).
            let packed = match BITS {
                2 => _mm512_castsi128_si512(short(data, 0)),
                3 => {
                    let rest = _mm_cvtsi64_si128(word(data, 16));
                    _mm512_castsi256_si512(_mm256_set_m128i(rest, short(data, 0)))
                }
                _ => {
                    let rest = match BITS {
                        5 => _mm_cvtsi64_si128(word(data, 32)),
                        _ => short(data, 32),
                    };
                    let rest = _mm256_castsi128_si256(rest);
                    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bytes(data, 0)), rest)
                }
            };
            let words = _mm512_permutexvar_epi8(wide(order, 0), packed);
            let apart = _mm512_multishift_epi64_epi8(wide(shifts, 0), words);
            _mm512_and_si512(apart, _mm512_set1_epi8((1 << BITS) - 1))
        }
    }
}

/// The scales, or the biases, of sixteen blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn affine_parameters(kind: Kind, stored: &[u8]) -> __m512 {
    let Kind::Affine { group, scales, .. } = kind else { return _mm512_setzero_ps() };
    let values = match scales {
        FloatType::F32 => _mm512_castsi512_ps(match group {
            32 => wide(stored, 0),
            64 => _mm512_castsi256_si512(bytes(stored, 0)),
            _ => _mm512_castsi128_si512(short(stored, 0)),
        }),
        FloatType::F16 | FloatType::Bf16 => {
            let halves = match group {
                32 => bytes(stored, 0),
                64 => _mm256_castsi128_si256(short(stored, 0)),
                _ => _mm256_castsi128_si256(_mm_cvtsi64_si128(word(stored, 0))),
            };
            match scales {
                FloatType::F16 => _mm512_cvtph_ps(halves),
                _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))),
            }
        }
    };
    let blocks = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let shift = _mm_cvtsi32_si128((group / 32).trailing_zeros() as i32);
    _mm512_permutexvar_ps(_mm512_srl_epi32(blocks, shift), values)
}

/// Blocks of 16 bytes whose low nibbles are the first 16 codes and whose high ones the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn nibble_blocks<const BYTES: usize>(data: &[u8], at: usize, out: &mut [__m512i; 8]) {
    for (index, codes) in out.iter_mut().enumerate() {
        let block = |block: usize| {
            _mm256_broadcastsi128_si256(short(data, (2 * index + block) * BYTES + at))
        };
        let two = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(0)), block(1));
        *codes = halves(two);
    }
}

/// Low nibbles of the even 16 bytes, high nibbles of the odd ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(bytes: __m512i) -> __m512i {
    let shifts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    _mm512_and_si512(_mm512_srlv_epi64(bytes, shifts), _mm512_set1_epi8(15))
}

/// Adds 16 to the codes whose bit is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fifth_bits<const BYTES: usize>(data: &[u8], at: usize, out: &mut [__m512i; 8]) {
    for (index, codes) in out.iter_mut().enumerate() {
        let word = |block: usize| {
            let at = (2 * index + block) * BYTES + at;
            u64::from(u32::from_le_bytes(*data[at..].first_chunk().expect("it lies in the chunk")))
        };
        let bits = word(0) | word(1) << 32;
        *codes = _mm512_mask_add_epi8(*codes, bits, *codes, _mm512_set1_epi8(16));
    }
}

/// Replaces codes by their entries in a table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn look_up(table: &[u8; 16], codes: &mut [__m512i; 8]) {
    let table = _mm512_broadcast_i32x4(short(table, 0));
    for codes in codes {
        *codes = _mm512_shuffle_epi8(table, *codes);
    }
}

/// Two-bit codes: quarters of 32 values share bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn two_bits<const BYTES: usize>(data: &[u8], at: usize, out: &mut [__m512i; 8]) {
    for (index, codes) in out.iter_mut().enumerate() {
        let (block, part, pair) = (index / 4, index / 2 % 2, index as i64 % 2);
        let four = both(data, block * BYTES + at + 32 * part);
        *codes = shifted(four, 4 * pair, 4 * pair + 2, 3);
    }
}

/// Shifts the lower and the upper half apart and keeps the bits of `mask` of each byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shifted(bytes: __m512i, low: i64, high: i64, mask: i8) -> __m512i {
    let shifts = _mm512_setr_epi64(low, low, low, low, high, high, high, high);
    _mm512_and_si512(_mm512_srlv_epi64(bytes, shifts), _mm512_set1_epi8(mask))
}

/// A byte of sixteen blocks, or a 16-bit word.
#[inline]
fn block_words<const BYTES: usize>(data: &[u8], at: usize) -> [u16; 16] {
    // Plain loads: a gather instruction takes several times as long (Zen 5).
    std::array::from_fn(|block| {
        let at = block * BYTES + at;
        u16::from_le_bytes([data[at], data[at + 1]])
    })
}

/// The 16-bit float at an offset of sixteen blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn block_scales<const BYTES: usize>(data: &[u8], at: usize) -> __m512 {
    let words = block_words::<BYTES>(data, at);
    // SAFETY: the array has 32 bytes; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
}

/// The two 16-bit floats at an offset of two super-blocks, for eight blocks each; the second is only
/// there if the super-block goes on.
#[inline]
#[target_feature(enable = "avx512f")]
fn super_scales<const BYTES: usize>(data: &[u8], at: usize) -> (__m512, __m512) {
    let pick = |at: usize| {
        let one = |at: usize| i32::from(u16::from_le_bytes([data[at], data[at + 1]]));
        let halves = _mm256_set_m128i(
            _mm_set1_epi16(one(BYTES + at) as i16),
            _mm_set1_epi16(one(at) as i16),
        );
        _mm512_cvtph_ps(halves)
    };
    let second = if at + 4 <= BYTES { pick(at + 2) } else { _mm512_setzero_ps() };
    (pick(at), second)
}

/// Scales and biases of two super-blocks of Q4_K or Q5_K: those of [`scales_and_mins`] of both at once.
///
/// [`scales_and_mins`]: crate::cpu::integer::unpack::scales_and_mins
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn k_scales(data: &[u8], size: usize) -> (__m512, __m512) {
    /// A function of (word, byte), for each byte of four words: the scales of both super-blocks, then the mins.
    macro_rules! table {
        (|$word:ident, $byte:ident| $value:expr) => {{
            const TABLE: [u8; 32] = {
                let mut table = [0; 32];
                let mut index = 0;
                while index < 32 {
                    let ($word, $byte) = (index as u8 / 8, index as u8 % 8);
                    table[index] = $value;
                    index += 1;
                }
                table
            };
            bytes(&TABLE, 0)
        }};
    }
    // Each head has 16 bytes: two halves, then four scales, four mins, and the low bits of the rest.
    let heads =
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(short(data, 0)), short(data, size));
    let low =
        table!(|word, byte| word % 2 * 16 + if byte < 4 { 4 + word / 2 * 4 } else { 8 } + byte);
    let shift = table!(|word, byte| 8 * byte + if byte < 4 { 0 } else { word / 2 * 4 });
    let high = table!(|word, byte| word % 2 * 16 + 4 + word / 2 * 4 + byte % 4);
    let low_mask = table!(|_word, byte| if byte < 4 { 63 } else { 15 });
    let high_mask = table!(|_word, byte| if byte < 4 { 0 } else { 0x30 });
    let low = _mm256_multishift_epi64_epi8(shift, _mm256_permutexvar_epi8(low, heads));
    let high = _mm256_srli_epi16::<2>(_mm256_permutexvar_epi8(high, heads));
    let both = _mm256_or_si256(_mm256_and_si256(low, low_mask), _mm256_and_si256(high, high_mask));
    let floats = |bytes| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
    let super_scale = |word: i16| {
        let places = _mm256_set_m128i(_mm_set1_epi16(8 + word), _mm_set1_epi16(word));
        _mm512_cvtph_ps(_mm256_permutexvar_epi16(places, heads))
    };
    let (scales, mins) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
    let sign = _mm512_set1_epi32(i32::MIN);
    let negative = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(super_scale(1)), sign));
    (_mm512_mul_ps(super_scale(0), floats(scales)), _mm512_mul_ps(negative, floats(mins)))
}

/// 8 bytes.
#[inline]
fn word(data: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(*data[at..].first_chunk().expect("offsets lie inside the chunk"))
}

/// 16 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn short(data: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = data[at..].first_chunk().expect("offsets lie inside the chunk");
    // SAFETY: the array is readable; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn bytes(data: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = data[at..].first_chunk().expect("offsets lie inside the chunk");
    // SAFETY: the array is readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 32 bytes twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(data: &[u8], at: usize) -> __m512i {
    _mm512_broadcast_i64x4(bytes(data, at))
}

/// 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn wide(data: &[u8], at: usize) -> __m512i {
    let bytes: &[u8; 64] = data[at..].first_chunk().expect("offsets lie inside the chunk");
    // SAFETY: the array is readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
