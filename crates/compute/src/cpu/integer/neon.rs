//! Integer products for 64-bit Arm: chunks are unpacked by plain loops and multiplied here, by `sdot`
//! where the machine has it.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::aarch64::*;

use crate::cpu::integer::activations::BlocksMut;
use crate::cpu::integer::portable::{TokenChunk, add_block, multiply_with};
use crate::cpu::integer::unpack::Chunk;
use crate::cpu::integer::{BLOCK, LANES, Rows, Tokens, quantize_portable};

/// See [`crate::cpu::integer::portable::multiply`]; for machines with dot products.
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn multiply_dotprod(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    multiply_with(rows, tokens, out, |rows, chunk, x, lanes| {
        add_chunk(rows, chunk, x, lanes, |weights, codes| {
            // SAFETY: the caller has these features.
            unsafe { vdotq_s32(vdupq_n_s32(0), weights, codes) }
        });
    });
}

/// See [`crate::cpu::integer::portable::multiply`]; for any 64-bit Arm machine.
#[target_feature(enable = "neon")]
pub(crate) fn multiply(rows: &Rows<'_>, tokens: &Tokens<'_>, out: &mut [f32]) {
    multiply_with(rows, tokens, out, |rows, chunk, x, lanes| {
        add_chunk(rows, chunk, x, lanes, |weights, codes| {
            // SAFETY: the caller has these features.
            unsafe {
                let low = vmull_s8(vget_low_s8(weights), vget_low_s8(codes));
                let high = vmull_high_s8(weights, codes);
                vpadalq_s16(vpaddlq_s16(low), high)
            }
        });
    });
}

/// Adds the products of a chunk to the lanes of a result. `dot` multiplies sixteen signed codes with
/// sixteen others and adds the products up in four sums, in any way.
#[inline(always)]
fn add_chunk(
    rows: &Rows<'_>,
    chunk: &Chunk,
    x: TokenChunk<'_>,
    lanes: &mut [f32; LANES],
    dot: impl Fn(int8x16_t, int8x16_t) -> int32x4_t,
) {
    let kind = rows.kind;
    // Codes of eight bits are moved down to fit a signed byte.
    let shift = if kind.is_wide() { 128 } else { 0 };
    let zero = kind.zero() - shift;
    for (block, lane) in lanes.iter_mut().enumerate() {
        let (mut isum, mut bsum) = (0, 0);
        for half in 0..2 {
            let index = 2 * block + half;
            let at = index * BLOCK / 2;
            let weights: &[u8; 16] = chunk.codes[at..].first_chunk().expect("half a block");
            let codes: &[i8; 16] = x.codes[at..].first_chunk().expect("half a block");
            // SAFETY: sixteen bytes are readable in both; the loads need no alignment.
            let dot = unsafe {
                let weights = veorq_u8(vld1q_u8(weights.as_ptr()), vdupq_n_u8(shift as u8));
                vaddvq_s32(dot(vreinterpretq_s8_u8(weights), vld1q_s8(codes.as_ptr())))
            };
            let sum = i32::from(x.sums[index]);
            isum += i32::from(chunk.subs[index]) * (dot - zero * sum);
            bsum += i32::from(chunk.mins[index]) * sum;
        }
        let weights = [chunk.scales[block], chunk.biases[block]];
        *lane = add_block(*lane, weights, x.scales[block], isum, bsum);
    }
}

/// See [`quantize_portable`], which the compiler turns into vector code here.
#[target_feature(enable = "neon")]
pub(crate) fn quantize(x: &[f32], out: BlocksMut<'_>) {
    quantize_portable(x, out);
}
