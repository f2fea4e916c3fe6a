//! Codes of one chunk in the order in which they lie, for one to a few tokens.
//!
//! Bringing codes into the order of their columns costs more than multiplying them. Formats of four and
//! five bits are therefore only masked and shifted, and the tokens' codes are put into the order that
//! this gives, once for all rows of a task. Where several columns of a block lie in the same lane,
//! there is also less to add across.

use std::arch::x86_64::*;

use crate::cpu::integer::avx512::load::{bytes, look_up, short, wide};
use crate::cpu::integer::id::Id;
use crate::cpu::integer::unpack::{E2M1_CODES, IQ4_CODES};

/// In which order 128 columns, which are two vectors, are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Of the columns.
    Columns,
    /// The even columns of four blocks, then the odd ones: MLX codes of four bits.
    EvenOdd,
    /// The first 16 columns of four blocks, then the other ones: GGUF blocks of 32 in four bits.
    Halves,
    /// Blocks 0 and 2, then 1 and 3: super-blocks of four and five bits.
    Blocks,
}

impl Order {
    /// The order of a kind.
    pub(super) const fn of(id: u8) -> Self {
        match id {
            Id::A4 => Self::EvenOdd,
            Id::Q4_0 | Id::Q4_1 | Id::IQ4_NL | Id::MXFP4 => Self::Halves,
            Id::Q4_K | Id::Q5_K => Self::Blocks,
            _ => Self::Columns,
        }
    }

    /// The column that comes at each place of two vectors.
    const fn columns(self) -> [[u8; 64]; 2] {
        let mut columns = [[0; 64]; 2];
        let mut index = 0;
        while index < 64 {
            let mut second = 0;
            while second < 2 {
                let (place, which) = (index as u8, second as u8);
                columns[second][index] = match self {
                    Self::Columns => 64 * which + place,
                    Self::EvenOdd => 2 * place + which,
                    Self::Halves => place / 16 * 32 + 16 * which + place % 16,
                    Self::Blocks => place / 32 * 64 + 32 * which + place % 32,
                };
                second += 1;
            }
            index += 1;
        }
        columns
    }
}

/// Puts a token's codes, whole chunks of them, into the order of a kind.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn reorder<const ID: u8>(codes: &[i8], out: &mut Vec<[i8; 64]>) {
    let [first, second] = const { &Order::of(ID).columns() };
    let (first, second) = (wide(first, 0), wide(second, 0));
    for pair in codes.as_chunks::<64>().0.as_chunks::<2>().0 {
        let [a, b] = pair.each_ref().map(|codes| super::load_bytes(codes));
        for order in [first, second] {
            let mut codes = [0; 64];
            // SAFETY: the array has 64 bytes; the store needs no alignment.
            unsafe {
                let values = _mm512_permutex2var_epi8(a, order, b);
                _mm512_storeu_si512(codes.as_mut_ptr().cast(), values);
            }
            out.push(codes);
        }
    }
}

/// The codes of a whole chunk in the order of their kind.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn codes_as_they_lie<const ID: u8>(data: &[u8]) -> [__m512i; 8] {
    let mut out = [_mm512_setzero_si512(); 8];
    for (index, two) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *two = match ID {
            Id::A4 => nibbles(wide(data, 64 * index)),
            Id::Q4_0 | Id::IQ4_NL => nibbles(blocks::<18>(data, 2, index)),
            Id::Q4_1 => nibbles(blocks::<20>(data, 4, index)),
            Id::MXFP4 => nibbles(blocks::<17>(data, 1, index)),
            Id::Q4_K => nibbles(wide(data, 144 * (index / 2) + 16 + 64 * (index % 2))),
            Id::Q5_K => {
                let (block, pair) = (176 * (index / 2), index % 2);
                let [low, high] = nibbles(wide(data, block + 48 + 64 * pair));
                let fifth = _mm512_broadcast_i64x4(bytes(data, block + 16));
                let bit = |which: usize| {
                    let bits = |block: usize| _mm256_set1_epi8((1 << (4 * pair + block)) as i8);
                    let bits = _mm512_inserti64x4::<1>(
                        _mm512_castsi256_si512(bits(which)),
                        bits(2 + which),
                    );
                    _mm512_test_epi8_mask(fifth, bits)
                };
                let sixteen = _mm512_set1_epi8(16);
                [
                    _mm512_mask_add_epi8(low, bit(0), low, sixteen),
                    _mm512_mask_add_epi8(high, bit(1), high, sixteen),
                ]
            }
            _ => panic!("a kind whose codes lie in another order than their columns"),
        };
    }
    match ID {
        Id::IQ4_NL => look_up(&IQ4_CODES, &mut out),
        Id::MXFP4 => look_up(&E2M1_CODES, &mut out),
        _ => {}
    }
    out
}

/// The low and the high nibbles of bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(bytes: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi8(15);
    [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
}

/// The nibbles of four blocks of 32 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn blocks<const BYTES: usize>(data: &[u8], at: usize, index: usize) -> __m512i {
    let block = |block: usize| short(data, (4 * index + block) * BYTES + at);
    let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(0)), block(1));
    let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(2)), block(3));
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// The sums of sixteen blocks, in order, from products of eight vectors of codes in the order of a kind
/// with a token's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn sums_of_blocks<const ID: u8>(weights: &[__m512i; 8], x: &[[i8; 64]; 8]) -> __m512i {
    let zero = _mm512_setzero_si512();
    let product =
        |sum, index: usize| _mm512_dpbusd_epi32(sum, weights[index], super::load_bytes(&x[index]));
    match const { Order::of(ID) } {
        Order::Columns => {
            let partial = std::array::from_fn(|index| product(zero, index));
            super::add_across(&partial)
        }
        Order::EvenOdd | Order::Halves => {
            // Four lanes are a block, of which each vector has four.
            let four: [__m512i; 4] =
                std::array::from_fn(|index| product(product(zero, 2 * index), 2 * index + 1));
            let sums = if const { matches!(ID, Id::IQ4_NL | Id::MXFP4) } {
                super::add_fours(&four)
            } else {
                // At most 2 * 4 * 15 * 127 in a lane, and twice that after the first addition.
                add_pairs(add_pairs(four[0], four[1]), add_pairs(four[2], four[3]))
            };
            // A quarter of it has blocks i, i + 4, i + 8, i + 12.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, sums)
        }
        Order::Blocks => {
            // Eight lanes are a block: at most 4 * 31 * 127 in one, and twice that after the first addition.
            let pairs: [__m512i; 4] = std::array::from_fn(|index| {
                add_pairs(product(zero, 2 * index), product(zero, 2 * index + 1))
            });
            let (a, b) = (add_pairs(pairs[0], pairs[1]), add_pairs(pairs[2], pairs[3]));
            let sums = super::add_quarters(a, b);
            // Blocks 0, 1, 4, 5, then 2, 3, 6, 7, and as many again.
            let order = _mm512_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
            _mm512_permutexvar_epi32(order, sums)
        }
    }
}

/// Adds neighbours of `a` and of `b`, which fit 16 bits: two sums of `a`, then two of `b`, in each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_pairs(a: __m512i, b: __m512i) -> __m512i {
    _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1))
}
