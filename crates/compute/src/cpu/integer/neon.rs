//! Integer products for 64-bit Arm: chunks are unpacked by loops that are compiled for each kind, the
//! most used ones by vector instructions, and multiplied by `sdot` where the machine has it. The sums of
//! four blocks are added across together, and scales apply to four blocks at once. Many tokens have a way
//! of their own ([`panel`]), which is twice as fast by `smmla` where there is that.

#![expect(unsafe_code, reason = "vector instructions")]

mod panel;

use std::arch::aarch64::*;
use std::arch::asm;

use crate::cpu::integer::activations::BlocksMut;
use crate::cpu::integer::id::{Id, for_kind};
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::portable::{TokenChunk, multiply_with};
use crate::cpu::integer::unpack::{Chunk, unpack, unpack_parameters};
use crate::cpu::integer::{BLOCK, Kind, LANES, Rows, Stored, Tokens, quantize_portable};

/// See [`crate::cpu::integer::portable::multiply`]; for machines with dot products.
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn multiply_dotprod(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    for_kind!(rows.kind, dotprod_kind(rows, tokens, out));
}

/// The same for machines that also have products of matrices.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(crate) fn multiply_i8mm(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    if tokens.n < panel::MANY {
        multiply_dotprod(rows, tokens, out);
        return;
    }
    for_kind!(rows.kind, i8mm_kind(rows, tokens, out));
}

/// Adds products to sums by an instruction: as that, because the intrinsics are not stable in all
/// compilers that check this.
macro_rules! add_products {
    ($instruction:literal, $sum:expr, $weights:expr, $codes:expr) => {{
        let mut sum: int32x4_t = $sum;
        // SAFETY: the caller has the instruction, which reads and writes registers only.
        unsafe {
            asm!(
                $instruction,
                sum = inout(vreg) sum,
                weights = in(vreg) $weights,
                codes = in(vreg) $codes,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }};
}

/// Two groups of four rows; columns are taken four at a time.
#[target_feature(enable = "neon,dotprod")]
fn dotprod_many<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    panel::multiply::<ID, 2, 4>(rows, tokens, out, |sums, half, codes| {
        macro_rules! step {
            ($index:literal, $instruction:literal) => {
                for r in 0..2 {
                    // SAFETY: the array has sixteen bytes.
                    let weights = unsafe { vld1q_s8(half[2 * $index + r].as_ptr()) };
                    for t in 0..4 {
                        sums[r][t] = add_products!($instruction, sums[r][t], weights, codes[t]);
                    }
                }
            };
        }
        step!(0, "sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.4b[0]");
        step!(1, "sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.4b[1]");
        step!(2, "sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.4b[2]");
        step!(3, "sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.4b[3]");
    });
}

/// Four groups of two rows; columns are taken eight at a time, for two tokens.
#[target_feature(enable = "neon,dotprod,i8mm")]
fn i8mm_kind<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    panel::multiply::<ID, 4, 2>(rows, tokens, out, |sums, half, codes| {
        let [a, b, c, d] = [
            vreinterpretq_s64_s8(codes[0]),
            vreinterpretq_s64_s8(codes[1]),
            vreinterpretq_s64_s8(codes[2]),
            vreinterpretq_s64_s8(codes[3]),
        ];
        let pairs = [[vzip1q_s64(a, b), vzip1q_s64(c, d)], [vzip2q_s64(a, b), vzip2q_s64(c, d)]];
        for (step, pairs) in pairs.iter().enumerate() {
            for r in 0..4 {
                // SAFETY: the array has sixteen bytes.
                let weights = unsafe { vld1q_s8(half[4 * step + r].as_ptr()) };
                for t in 0..2 {
                    sums[r][t] = add_products!(
                        "smmla {sum:v}.4s, {weights:v}.16b, {codes:v}.16b",
                        sums[r][t],
                        weights,
                        pairs[t]
                    );
                }
            }
        }
    });
}

#[target_feature(enable = "neon,dotprod")]
fn dotprod_kind<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    if tokens.n >= panel::MANY {
        dotprod_many::<ID>(rows, tokens, out);
        return;
    }
    multiply_with(rows, tokens, out, unpack_kind::<ID>, |_, chunk, x, lanes| {
        add_chunk::<ID>(chunk, x, lanes, |sum, weights, codes| {
            add_products!("sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.16b", sum, weights, codes)
        });
    });
}

/// See [`crate::cpu::integer::portable::multiply`]; for any 64-bit Arm machine.
#[target_feature(enable = "neon")]
pub(crate) fn multiply(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    for_kind!(rows.kind, multiply_kind(rows, tokens, out));
}

#[target_feature(enable = "neon")]
fn multiply_kind<const ID: u8>(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    multiply_with(rows, tokens, out, unpack_kind::<ID>, |_, chunk, x, lanes| {
        add_chunk::<ID>(chunk, x, lanes, |sum, weights, codes| {
            let low = vmull_s8(vget_low_s8(weights), vget_low_s8(codes));
            let high = vmull_high_s8(weights, codes);
            vpadalq_s16(vpadalq_s16(sum, low), high)
        });
    });
}

/// Unpacks a whole chunk of the kind with this number.
#[inline(always)]
fn unpack_kind<const ID: u8>(kind: Kind, stored: Stored<'_>, out: &mut Chunk) {
    let codes = out.codes.as_chunks_mut::<BLOCK>().0;
    match ID {
        Id::Q8_0 => {
            for (block, codes) in stored.data.as_chunks::<34>().0.iter().zip(codes) {
                for (bytes, codes) in block[2..].as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
                    // SAFETY: the caller has NEON.
                    unsafe { store(codes, veorq_u8(load(bytes), vdupq_n_u8(128))) };
                }
            }
        }
        Id::Q4_K => {
            let blocks = stored.data.as_chunks::<144>().0;
            for (block, codes) in blocks.iter().zip(codes.as_chunks_mut::<8>().0) {
                let bytes = block[16..].as_chunks::<32>().0;
                for (bytes, codes) in bytes.iter().zip(codes.as_chunks_mut::<2>().0) {
                    let [low, high] = codes;
                    let places = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
                    for (bytes, (low, high)) in bytes.as_chunks().0.iter().zip(places) {
                        // SAFETY: the caller has NEON.
                        unsafe {
                            let bytes = load(bytes);
                            store(low, vandq_u8(bytes, vdupq_n_u8(15)));
                            store(high, vshrq_n_u8::<4>(bytes));
                        }
                    }
                }
            }
        }
        Id::A4 => {
            for (bytes, codes) in stored.data.as_chunks().0.iter().zip(codes) {
                let (first, second) = codes.split_at_mut(16);
                // SAFETY: the caller has NEON.
                unsafe {
                    let bytes = load(bytes);
                    let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
                    store(first.first_chunk_mut().expect("16 codes"), vzip1q_u8(low, high));
                    store(second.first_chunk_mut().expect("16 codes"), vzip2q_u8(low, high));
                }
            }
        }
        Id::A8 => out.codes.copy_from_slice(stored.data),
        Id::A2 | Id::A3 | Id::A5 | Id::A6 => {
            unpack(kind, stored, out);
            return;
        }
        // Without values that are only known when the program runs.
        _ => {
            unpack(const { Id::kind(ID) }, stored, out);
            return;
        }
    }
    unpack_parameters(kind, stored, out);
}

/// Adds the products of a chunk to the lanes of a result. `dot` multiplies sixteen signed codes with
/// sixteen others and adds the products to four sums, in any way.
#[inline(always)]
fn add_chunk<const ID: u8>(
    chunk: &Chunk,
    x: TokenChunk<'_>,
    lanes: &mut [f32; LANES],
    dot: impl Fn(int32x4_t, int8x16_t, int8x16_t) -> int32x4_t,
) {
    let kind = const { Id::kind(ID) };
    // Codes of eight bits are moved down to fit a signed byte.
    let shift = if kind.is_wide() { 128 } else { 0 };
    let zero = kind.zero() - shift;
    for first in (0..LANES).step_by(4) {
        // SAFETY: the caller has NEON.
        let mut block_sums = unsafe { [vdupq_n_s32(0); 4] };
        for (index, sum) in block_sums.iter_mut().enumerate() {
            for half in 0..2 {
                let at = 2 * (first + index) + half;
                let weights = chunk.codes.as_chunks().0[at];
                let codes: &[i8; 16] = &x.codes.as_chunks().0[at];
                // SAFETY: the caller has NEON; sixteen codes are readable.
                unsafe {
                    let weights = veorq_u8(load(&weights), vdupq_n_u8(shift as u8));
                    let weights = vreinterpretq_s8_u8(weights);
                    let codes = vld1q_s8(codes.as_ptr());
                    if kind.has_subs() {
                        let products = dot(vdupq_n_s32(0), weights, codes);
                        *sum = vmlaq_n_s32(*sum, products, i32::from(chunk.subs[at]));
                    } else {
                        *sum = dot(*sum, weights, codes);
                    }
                }
            }
        }
        let eight = |values: &[i16; 2 * LANES]| values.as_chunks::<8>().0[first / 4];
        let four = |values: &[f32; LANES]| values.as_chunks::<4>().0[first / 4];
        let (sums, subs, mins) = (eight(x.sums), eight(&chunk.subs), eight(&chunk.mins));
        let (weight_scales, scales) = (four(&chunk.scales), four(x.scales));
        let (biases, scaled_sums) = (four(&chunk.biases), four(x.scaled_sums));
        let lanes = &mut lanes.as_chunks_mut::<4>().0[first / 4];
        // SAFETY: the caller has NEON; what is loaded and stored are arrays of 16 bytes.
        unsafe {
            let [a, b, c, d] = block_sums;
            let mut isum = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            let sums = vld1q_s16(sums.as_ptr());
            if zero != 0 {
                let sums = block_products(vld1q_s16(subs.as_ptr()), sums);
                isum = vmlsq_n_s32(isum, sums, zero);
            }
            let products = vmulq_f32(vcvtq_f32_s32(isum), vld1q_f32(weight_scales.as_ptr()));
            let scales = vld1q_f32(scales.as_ptr());
            let mut sum = vfmaq_f32(vld1q_f32(lanes.as_ptr()), products, scales);
            let biases = vld1q_f32(biases.as_ptr());
            match kind.bias() {
                Bias::None => {}
                Bias::Block => sum = vfmaq_f32(sum, biases, vld1q_f32(scaled_sums.as_ptr())),
                Bias::Halves => {
                    let bsum = vcvtq_f32_s32(block_products(vld1q_s16(mins.as_ptr()), sums));
                    sum = vfmaq_f32(sum, biases, vmulq_f32(scales, bsum));
                }
            }
            vst1q_f32(lanes.as_mut_ptr(), sum);
        }
    }
}

/// Products of small integers, those of the two halves of a block added up.
///
/// # Safety
/// The machine must have NEON.
#[inline(always)]
unsafe fn block_products(a: int16x8_t, b: int16x8_t) -> int32x4_t {
    // SAFETY: as the caller says.
    unsafe {
        let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
        vpaddq_s32(low, vmull_high_s16(a, b))
    }
}

/// # Safety
/// The machine must have NEON.
#[inline(always)]
unsafe fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: as the caller says; the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// # Safety
/// The machine must have NEON.
#[inline(always)]
unsafe fn store(out: &mut [u8; 16], bytes: uint8x16_t) {
    // SAFETY: as the caller says; the store needs no alignment.
    unsafe { vst1q_u8(out.as_mut_ptr(), bytes) };
}

/// See [`quantize_portable`], which the compiler turns into vector code here.
#[target_feature(enable = "neon")]
pub(crate) fn quantize(x: &[f32], out: BlocksMut<'_>) {
    quantize_portable(x, out);
}
