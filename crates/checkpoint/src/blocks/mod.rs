//! The block formats of GGUF files: a row is whole blocks, each of some values with their scales.
//!
//! Byte offsets are those of the ggml structures; 16-bit floats and integers are little-endian. Decoding
//! is the plain meaning of each format, tested against recorded values of the `gguf` package.

mod codebooks;
mod lattice;

use half::f16;

/// A block format of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 4-bit codes around zero.
    Q4_0,
    /// 4-bit codes with a minimum.
    Q4_1,
    /// 5-bit codes around zero.
    Q5_0,
    /// 5-bit codes with a minimum.
    Q5_1,
    /// 8-bit integers.
    Q8_0,
    /// 2-bit codes in super-blocks.
    Q2K,
    /// 3-bit codes in super-blocks.
    Q3K,
    /// 4-bit codes in super-blocks.
    Q4K,
    /// 5-bit codes in super-blocks.
    Q5K,
    /// 6-bit codes in super-blocks.
    Q6K,
    /// 4-bit codes into a table of uneven steps.
    Iq4Nl,
    /// The same in super-blocks.
    Iq4Xs,
    /// 4-bit floats with a power of two for each 32.
    Mxfp4,
    /// 4-bit floats with an 8-bit float for each 16.
    Nvfp4,
    /// Lattice points of about 2.1 bits a value.
    Iq2Xxs,
    /// Lattice points of about 2.3 bits a value.
    Iq2Xs,
    /// Lattice points of about 2.6 bits a value.
    Iq2S,
    /// Lattice points of about 3.1 bits a value.
    Iq3Xxs,
    /// Lattice points of about 3.4 bits a value.
    Iq3S,
    /// Lattice points of about 1.6 bits a value.
    Iq1S,
    /// Lattice points of about 1.8 bits a value.
    Iq1M,
    /// Values -1, 0, 1, five to a byte.
    Tq1_0,
    /// Values -1, 0, 1, four to a byte.
    Tq2_0,
}

impl BlockType {
    /// All formats with their number in GGUF files.
    const NUMBERS: [(u32, Self); 23] = [
        (2, Self::Q4_0),
        (3, Self::Q4_1),
        (6, Self::Q5_0),
        (7, Self::Q5_1),
        (8, Self::Q8_0),
        (10, Self::Q2K),
        (11, Self::Q3K),
        (12, Self::Q4K),
        (13, Self::Q5K),
        (14, Self::Q6K),
        (20, Self::Iq4Nl),
        (23, Self::Iq4Xs),
        (39, Self::Mxfp4),
        (40, Self::Nvfp4),
        (16, Self::Iq2Xxs),
        (17, Self::Iq2Xs),
        (22, Self::Iq2S),
        (18, Self::Iq3Xxs),
        (21, Self::Iq3S),
        (19, Self::Iq1S),
        (29, Self::Iq1M),
        (34, Self::Tq1_0),
        (35, Self::Tq2_0),
    ];

    /// The format with a number of GGUF files.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::NUMBERS.iter().find(|(other, _)| *other == number).map(|(_, block)| *block)
    }

    /// The number of the format in GGUF files.
    pub fn number(self) -> u32 {
        let number =
            Self::NUMBERS.iter().find(|(_, block)| *block == self).map(|(number, _)| *number);
        number.expect("every format has a number")
    }

    /// Values of a block.
    pub const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Iq4Nl | Self::Mxfp4 => 32,
            Self::Nvfp4 => 64,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
            Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S | Self::Iq3Xxs | Self::Iq3S => 256,
            Self::Iq1S | Self::Iq1M | Self::Tq1_0 | Self::Tq2_0 => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
            Self::Mxfp4 => 17,
            Self::Nvfp4 => 36,
            Self::Iq2Xxs => 66,
            Self::Iq2Xs => 74,
            Self::Iq2S => 82,
            Self::Iq3Xxs => 98,
            Self::Iq3S => 110,
            Self::Iq1S => 50,
            Self::Iq1M => 56,
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
        }
    }

    /// The name that GGUF tools use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
            Self::Nvfp4 => "NVFP4",
            Self::Iq2Xxs => "IQ2_XXS",
            Self::Iq2Xs => "IQ2_XS",
            Self::Iq2S => "IQ2_S",
            Self::Iq3Xxs => "IQ3_XXS",
            Self::Iq3S => "IQ3_S",
            Self::Iq1S => "IQ1_S",
            Self::Iq1M => "IQ1_M",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
        }
    }

    /// Decodes whole blocks.
    ///
    /// # Panics
    /// If there are not as many values as the blocks hold.
    pub(crate) fn decode(self, data: &[u8], out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.values()), "a whole number of blocks");
        assert_eq!(data.len(), out.len() / self.values() * self.bytes(), "the bytes of the blocks");
        let decode = match self {
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
            Self::Iq4Nl => iq4_nl,
            Self::Iq4Xs => iq4_xs,
            Self::Mxfp4 => mxfp4,
            Self::Nvfp4 => nvfp4,
            Self::Iq2Xxs => lattice::iq2_xxs,
            Self::Iq2Xs => lattice::iq2_xs,
            Self::Iq2S => lattice::iq2_s,
            Self::Iq3Xxs => lattice::iq3_xxs,
            Self::Iq3S => lattice::iq3_s,
            Self::Iq1S => lattice::iq1_s,
            Self::Iq1M => lattice::iq1_m,
            Self::Tq1_0 => tq1_0,
            Self::Tq2_0 => tq2_0,
        };
        let blocks = data.chunks_exact(self.bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.values())) {
            decode(block, out);
        }
    }
}

/// The uneven steps of the IQ4 formats.
const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of a 4-bit float with two bits of exponent and one of mantissa (E2M1).
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The 16-bit float at an offset.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Nibbles in two halves: the low ones are the first half of the values.
fn nibbles(codes: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let half = codes.len();
    for (index, code) in codes.iter().enumerate() {
        out[index] = value(index, code & 15);
        out[half + index] = value(half + index, code >> 4);
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |_, code| scale * (f32::from(code) - 8.0));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, min) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, code| scale * f32::from(code) + min);
}

fn fifth_bit(block: &[u8], at: usize, index: usize) -> u8 {
    (block[at + index / 8] >> (index % 8) & 1) << 4
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let value = |index, code| f32::from(code | fifth_bit(block, 2, index)) - 16.0;
    nibbles(&block[6..], out, |index, code| scale * value(index, code));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, min) = (half(block, 0), half(block, 2));
    let value = |index, code| f32::from(code | fifth_bit(block, 4, index));
    nibbles(&block[8..], out, |index, code| scale * value(index, code) + min);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (out, code) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(*code as i8);
    }
}

/// Two bits of value `index` of a super-block: bytes of a half, four values each.
fn two_bits(codes: &[u8], index: usize) -> u8 {
    let (half, quarter, lane) = (index / 128, index % 128 / 32, index % 32);
    codes[32 * half + lane] >> (2 * quarter) & 3
}

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scale, min) = (half(block, 80), half(block, 82));
    for (index, out) in out.iter_mut().enumerate() {
        let scales = block[index / 16];
        let code = f32::from(two_bits(&block[16..80], index));
        *out = scale * f32::from(scales & 15) * code - min * f32::from(scales >> 4);
    }
}

fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high_bits, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    for (index, out) in out.iter_mut().enumerate() {
        let sub = index / 16;
        let low = if sub < 8 { scales[sub] & 15 } else { scales[sub - 8] >> 4 };
        let high = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let sub_scale = f32::from(low | high << 4) - 32.0;
        let has_high = high_bits[index % 32] >> (index / 32) & 1 == 1;
        let code = f32::from(two_bits(codes, index)) - if has_high { 0.0 } else { 4.0 };
        *out = scale * sub_scale * code;
    }
}

/// Six-bit scale and minimum of a sub-block of Q4_K and Q5_K.
fn scale_and_min(scales: &[u8], sub: usize) -> (f32, f32) {
    let (scale, min) = if sub < 4 {
        (scales[sub] & 63, scales[sub + 4] & 63)
    } else {
        (
            scales[sub + 4] & 15 | scales[sub - 4] >> 6 << 4,
            scales[sub + 4] >> 4 | scales[sub] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// Calls `value` with the index, the nibble and the lane of each value: sub-blocks of 32 share bytes in
/// pairs, low nibbles first. Plain loops over lanes, which the compiler turns into vector code.
fn paired_nibbles(codes: &[u8], out: &mut [f32], value: impl Fn(usize, u8, usize) -> f32) {
    for (pair, (codes, out)) in codes.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (low, high) = out.split_at_mut(32);
        for (lane, (out, code)) in low.iter_mut().zip(codes).enumerate() {
            *out = value(2 * pair, code & 15, lane);
        }
        for (lane, (out, code)) in high.iter_mut().zip(codes).enumerate() {
            *out = value(2 * pair + 1, code >> 4, lane);
        }
    }
}

/// Scales and minima of the eight sub-blocks of Q4_K and Q5_K.
fn scales_and_mins(block: &[u8]) -> [(f32, f32); 8] {
    let (scale, min) = (half(block, 0), half(block, 2));
    std::array::from_fn(|sub| {
        let (sub_scale, sub_min) = scale_and_min(&block[4..16], sub);
        (scale * sub_scale, min * sub_min)
    })
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let scales = scales_and_mins(block);
    paired_nibbles(&block[16..], out, |sub, code, _| {
        let (scale, min) = scales[sub];
        scale * f32::from(code) - min
    });
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scales, high_bits) = (scales_and_mins(block), &block[16..48]);
    paired_nibbles(&block[48..], out, |sub, code, lane| {
        let (scale, min) = scales[sub];
        scale * f32::from(code | (high_bits[lane] >> sub & 1) << 4) - min
    });
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low_bits, high_bits, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    for (part, out) in out.chunks_exact_mut(128).enumerate() {
        let high_bits = &high_bits[32 * part..][..32];
        for (quarter, out) in out.chunks_exact_mut(32).enumerate() {
            let low_bits = &low_bits[64 * part + 32 * (quarter % 2)..][..32];
            let shift = 4 * (quarter / 2);
            let bits = low_bits.iter().zip(high_bits);
            let codes =
                bits.map(|(low, high)| low >> shift & 15 | (high >> (2 * quarter) & 3) << 4);
            let first_scale = 8 * part + 2 * quarter;
            for (lane, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                let sub_scale = f32::from(scales[first_scale + lane / 16] as i8);
                *out = scale * sub_scale * (f32::from(code) - 32.0);
            }
        }
    }
}

fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |_, code| scale * f32::from(IQ4_VALUES[usize::from(code)]));
}

fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + sub / 2] >> (4 * (sub % 2)) & 15;
        let sub_scale = f32::from(u16::from(low) | (high >> (2 * sub) & 3) << 4) - 32.0;
        let scale = scale * sub_scale;
        let codes = &block[8 + 16 * sub..][..16];
        nibbles(codes, out, |_, code| scale * f32::from(IQ4_VALUES[usize::from(code)]));
    }
}

/// Five ternary digits to a byte, the highest first: the byte is their value as a fraction of 256.
fn tq1_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    for (bytes, out) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        for (digit, out) in out.chunks_exact_mut(bytes.len()).enumerate() {
            for (out, byte) in out.iter_mut().zip(bytes) {
                let left = byte.wrapping_mul(3_u8.pow(digit as u32));
                *out = scale * (f32::from(((u16::from(left) * 3) >> 8) as u8) - 1.0);
            }
        }
    }
}

fn tq2_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 64);
    for (index, out) in out.iter_mut().enumerate() {
        *out = scale * (f32::from(two_bits(block, index)) - 1.0);
    }
}

fn mxfp4(block: &[u8], out: &mut [f32]) {
    // The exponent of a power of two, whose smallest is not a normal number.
    let scale = f64::from(block[0]) - 127.0;
    let scale = scale.exp2() as f32;
    nibbles(&block[1..], out, |_, code| E2M1[usize::from(code)] * scale);
}

fn nvfp4(block: &[u8], out: &mut [f32]) {
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        // Four bits of exponent, three of mantissa, no sign.
        let (exponent, mantissa) = (block[sub] >> 3 & 15, f32::from(block[sub] & 7) / 8.0);
        let scale = match exponent {
            0 => mantissa * (-6.0_f32).exp2(),
            _ => (1.0 + mantissa) * (f32::from(exponent) - 7.0).exp2(),
        };
        let codes = &block[4 + 8 * sub..][..8];
        nibbles(codes, out, |_, code| E2M1[usize::from(code)] * scale);
    }
}
