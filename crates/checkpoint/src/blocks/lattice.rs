//! Formats whose codes are points of a lattice: a code book's entry gives the magnitudes of four or
//! eight values at once, and signs are kept beside it.

use half::f16;

use super::codebooks;
use super::half;

/// Magnitudes of the coordinates of the two-bit formats.
const IQ2_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Magnitudes of the coordinates of `IQ3_XXS`.
const IQ3_XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Magnitudes of the coordinates of `IQ3_S`.
const IQ3_S_VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// By how much the one-bit formats shift the points -1, 0, 1.
const IQ1_DELTA: f32 = 0.125;

/// Eight values of a two-bit point, negative where a bit of `signs` is set.
fn signed_eight(point: u16, signs: u8, scale: f32, out: &mut [f32]) {
    for (index, out) in out.iter_mut().enumerate() {
        let magnitude = scale * IQ2_VALUES[usize::from(point >> (2 * index) & 3)];
        *out = if signs >> index & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// Four values of a three-bit point, negative where a bit of `signs` is set.
fn signed_four(point: u16, values: &[f32; 8], signs: u8, scale: f32, out: &mut [f32]) {
    for (index, out) in out.iter_mut().enumerate() {
        let magnitude = scale * values[usize::from(point >> (3 * index) & 7)];
        *out = if signs >> index & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// Eight signs of which seven are stored: their number is even.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn short(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The four-bit scale of a sub-block, two to a byte.
fn nibble(scales: &[u8], sub: usize) -> f32 {
    f32::from(scales[sub / 2] >> (4 * (sub % 2)) & 15)
}

pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let codes = &block[2 + 8 * sub..][..8];
        let extra = word(codes, 4);
        let scale = scale * (0.5 + (extra >> 28) as f32) * 0.25;
        for (part, out) in out.chunks_exact_mut(8).enumerate() {
            let point = codebooks::IQ2_XXS[usize::from(codes[part])];
            signed_eight(point, even_signs(extra >> (7 * part)), scale, out);
        }
    }
}

pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let (scale, scales) = (half(block, 0), &block[66..]);
    for (part, out) in out.chunks_exact_mut(8).enumerate() {
        let code = short(block, 2 + 2 * part);
        let point = codebooks::IQ2_XS[usize::from(code & 511)];
        let scale = scale * (0.5 + nibble(scales, part / 2)) * 0.25;
        signed_eight(point, even_signs(u32::from(code >> 9)), scale, out);
    }
}

pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let (codes, signs, high, scales) =
        (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (part, out) in out.chunks_exact_mut(8).enumerate() {
        let high = usize::from(high[part / 4] >> (2 * (part % 4)) & 3);
        let point = codebooks::IQ2_S[usize::from(codes[part]) | high << 8];
        let scale = scale * (0.5 + nibble(scales, part / 2)) * 0.25;
        signed_eight(point, signs[part], scale, out);
    }
}

pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let (scale, codes) = (half(block, 0), &block[2..66]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let extra = word(block, 66 + 4 * sub);
        let scale = scale * (0.5 + (extra >> 28) as f32) * 0.5;
        for (part, out) in out.chunks_exact_mut(4).enumerate() {
            let point = codebooks::IQ3_XXS[usize::from(codes[8 * sub + part])];
            let signs = even_signs(extra >> (7 * (part / 2))) >> (4 * (part % 2));
            signed_four(point, &IQ3_XXS_VALUES, signs, scale, out);
        }
    }
}

pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let (codes, high, signs, scales) =
        (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for (part, out) in out.chunks_exact_mut(4).enumerate() {
        let high = usize::from(high[part / 8] >> (part % 8) & 1);
        let point = codebooks::IQ3_S[usize::from(codes[part]) | high << 8];
        let scale = scale * (1.0 + 2.0 * nibble(scales, part / 8));
        signed_four(point, &IQ3_S_VALUES, signs[part / 2] >> (4 * (part % 2)), scale, out);
    }
}

/// Eight values of a point of the one-bit formats.
fn shifted_eight(point: u16, delta: f32, scale: f32, out: &mut [f32]) {
    for (index, out) in out.iter_mut().enumerate() {
        *out = scale * (f32::from(point >> (2 * index) & 3) - 1.0 + delta);
    }
}

pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let (scale, codes) = (half(block, 0), &block[2..34]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let high = short(block, 34 + 2 * sub);
        let scale = scale * f32::from(2 * (high >> 12 & 7) + 1);
        let delta = if high & 0x8000 == 0 { IQ1_DELTA } else { -IQ1_DELTA };
        for (part, out) in out.chunks_exact_mut(8).enumerate() {
            let high = usize::from(high >> (3 * part) & 7);
            let point = codebooks::IQ1[usize::from(codes[4 * sub + part]) | high << 8];
            shifted_eight(point, delta, scale, out);
        }
    }
}

pub(super) fn iq1_m(block: &[u8], out: &mut [f32]) {
    let (codes, high, scales) = (&block[..32], &block[32..48], &block[48..]);
    // The upper bits of four words make one 16-bit float.
    let bits = (0..4).map(|index| short(scales, 2 * index) >> 12 << (4 * index));
    let scale = f16::from_bits(bits.fold(0, |all, part| all | part)).to_f32();
    for (part, out) in out.chunks_exact_mut(8).enumerate() {
        let sub = part / 2;
        let sub_scale = short(scales, 2 * (sub / 4)) >> (3 * (sub % 4)) & 7;
        let high = high[sub] >> (4 * (part % 2));
        let delta = if high & 8 == 0 { IQ1_DELTA } else { -IQ1_DELTA };
        let point = codebooks::IQ1[usize::from(codes[part]) | usize::from(high & 7) << 8];
        shifted_eight(point, delta, scale * f32::from(2 * sub_scale + 1), out);
    }
}
