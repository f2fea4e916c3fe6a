//! Stored bytes to codes, scales and biases of a chunk, in plain loops that the compiler turns into
//! vector code. This is what each format means to integer kernels; faster forms are tested against it.

use checkpoint::{FloatType, decode_floats};
use half::f16;

use crate::cpu::integer::{BLOCK, CHUNK, Kind, LANES, Stored};

/// A chunk of a row, unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) codes: [u8; CHUNK],
    pub(crate) scales: [f32; LANES],
    pub(crate) biases: [f32; LANES],
    /// Small factors of each 16 columns; 1 unless [`Kind::has_subs`].
    pub(crate) subs: [i16; 2 * LANES],
    /// Small factors of the biases of each 16 columns; 1 unless the kind has some.
    pub(crate) mins: [i16; 2 * LANES],
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            codes: [0; CHUNK],
            scales: [0.0; LANES],
            biases: [0.0; LANES],
            subs: [1; 2 * LANES],
            mins: [1; 2 * LANES],
        }
    }
}

/// The values of the IQ4 formats, moved up by 128.
pub(crate) const IQ4_CODES: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// Twice the values of E2M1, moved up by 128.
pub(crate) const E2M1_CODES: [u8; 16] =
    [128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116];

/// Unpacks a whole chunk.
#[inline(always)]
pub(crate) fn unpack(kind: Kind, stored: Stored<'_>, out: &mut Chunk) {
    match kind {
        Kind::Affine { bits, group, scales } => affine(bits, group, scales, stored, out),
        Kind::Q8_0 => small_blocks::<34>(stored.data, out, |block, codes| {
            for (code, byte) in codes.iter_mut().zip(&block[2..]) {
                *code = byte ^ 0x80;
            }
            [half(block, 0), 0.0]
        }),
        Kind::Q4_0 => small_blocks::<18>(stored.data, out, |block, codes| {
            nibbles(&block[2..], codes, |code| code);
            [half(block, 0), 0.0]
        }),
        Kind::Q4_1 => small_blocks::<20>(stored.data, out, |block, codes| {
            nibbles(&block[4..], codes, |code| code);
            [half(block, 0), half(block, 2)]
        }),
        Kind::Q5_0 => small_blocks::<22>(stored.data, out, |block, codes| {
            nibbles(&block[6..], codes, |code| code);
            fifth_bits(block, 2, codes);
            [half(block, 0), 0.0]
        }),
        Kind::Q5_1 => small_blocks::<24>(stored.data, out, |block, codes| {
            nibbles(&block[8..], codes, |code| code);
            fifth_bits(block, 4, codes);
            [half(block, 0), half(block, 2)]
        }),
        Kind::Iq4Nl => small_blocks::<18>(stored.data, out, |block, codes| {
            nibbles(&block[2..], codes, |code| IQ4_CODES[usize::from(code)]);
            [half(block, 0), 0.0]
        }),
        Kind::Mxfp4 => small_blocks::<17>(stored.data, out, |block, codes| {
            nibbles(&block[1..], codes, |code| E2M1_CODES[usize::from(code)]);
            [half_power_of_two(block[0]), 0.0]
        }),
        Kind::Q2K => super_blocks::<84>(stored.data, out, q2_k),
        Kind::Q3K => super_blocks::<110>(stored.data, out, q3_k),
        Kind::Q4K => super_blocks::<144>(stored.data, out, q4_k),
        Kind::Q5K => super_blocks::<176>(stored.data, out, q5_k),
        Kind::Q6K => super_blocks::<210>(stored.data, out, q6_k),
        Kind::Iq4Xs => super_blocks::<136>(stored.data, out, iq4_xs),
    }
}

#[inline(always)]
fn affine(bits: u8, group: u16, float: FloatType, stored: Stored<'_>, out: &mut Chunk) {
    match bits {
        2 => affine_codes::<2>(stored.data, &mut out.codes),
        3 => affine_codes::<3>(stored.data, &mut out.codes),
        4 => affine_codes::<4>(stored.data, &mut out.codes),
        5 => affine_codes::<5>(stored.data, &mut out.codes),
        6 => affine_codes::<6>(stored.data, &mut out.codes),
        _ => out.codes.copy_from_slice(stored.data),
    }
    affine_parameters(group, float, stored, out);
}

#[inline(always)]
fn affine_parameters(group: u16, float: FloatType, stored: Stored<'_>, out: &mut Chunk) {
    let blocks_per_group = usize::from(group) / BLOCK;
    let n_groups = LANES / blocks_per_group;
    for (bytes, values) in [(stored.scales, &mut out.scales), (stored.biases, &mut out.biases)] {
        let mut groups = [0.0; LANES];
        decode_floats(float, bytes, &mut groups[..n_groups]);
        for (index, value) in values.iter_mut().enumerate() {
            *value = groups[index / blocks_per_group];
        }
    }
}

/// Scales and biases alone, of kinds whose codes are unpacked by vector instructions.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn unpack_parameters(kind: Kind, stored: Stored<'_>, out: &mut Chunk) {
    match kind {
        Kind::Affine { group, scales, .. } => affine_parameters(group, scales, stored, out),
        Kind::Q8_0 => {
            for (scale, block) in out.scales.iter_mut().zip(stored.data.as_chunks::<34>().0) {
                *scale = half(block, 0);
            }
        }
        Kind::Q4K => super_blocks::<144>(stored.data, out, |block, mut out| {
            scales_of(block, &mut out);
        }),
        // No other kind is unpacked like that.
        _ => unpack(kind, stored, out),
    }
}

/// Eight codes at a time: their bits are a whole number of bytes.
#[inline(always)]
fn affine_codes<const BITS: usize>(data: &[u8], codes: &mut [u8; CHUNK]) {
    let groups = data.as_chunks::<BITS>().0.iter().zip(codes.as_chunks_mut::<8>().0);
    for (bytes, codes) in groups {
        let mut stream = [0; 8];
        stream[..BITS].copy_from_slice(bytes);
        let stream = u64::from_le_bytes(stream);
        for (index, code) in codes.iter_mut().enumerate() {
            *code = (stream >> (index * BITS)) as u8 & ((1 << BITS) - 1);
        }
    }
}

/// Blocks of 32 values: `decode` writes codes and gives scale and bias.
#[inline(always)]
fn small_blocks<const BYTES: usize>(
    data: &[u8],
    out: &mut Chunk,
    decode: impl Fn(&[u8; BYTES], &mut [u8; BLOCK]) -> [f32; 2],
) {
    let codes = out.codes.as_chunks_mut::<BLOCK>().0;
    for (index, (block, codes)) in data.as_chunks::<BYTES>().0.iter().zip(codes).enumerate() {
        [out.scales[index], out.biases[index]] = decode(block, codes);
    }
}

/// The part of a chunk that a super-block of 256 values fills.
struct SuperBlock<'a> {
    codes: &'a mut [u8; 256],
    scales: &'a mut [f32; 8],
    biases: &'a mut [f32; 8],
    subs: &'a mut [i16; 16],
    mins: &'a mut [i16; 16],
}

#[inline(always)]
fn super_blocks<const BYTES: usize>(
    data: &[u8],
    out: &mut Chunk,
    decode: impl Fn(&[u8; BYTES], SuperBlock<'_>),
) {
    let codes = out.codes.as_chunks_mut().0.iter_mut();
    let scales = out.scales.as_chunks_mut().0.iter_mut().zip(out.biases.as_chunks_mut().0);
    let factors = out.subs.as_chunks_mut().0.iter_mut().zip(out.mins.as_chunks_mut().0);
    let places = codes.zip(scales.zip(factors));
    for (block, (codes, ((scales, biases), (subs, mins)))) in
        data.as_chunks::<BYTES>().0.iter().zip(places)
    {
        decode(block, SuperBlock { codes, scales, biases, subs, mins });
    }
}

#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `2^(exponent - 127) / 2`: E2M1 codes are doubled. The two smallest are not normal numbers.
#[inline(always)]
pub(crate) fn half_power_of_two(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000,
        1 => 0x0040_0000,
        _ => u32::from(exponent - 1) << 23,
    })
}

/// Nibbles in two halves: the low ones are the first 16 codes.
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [u8], value: impl Fn(u8) -> u8) {
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

#[inline(always)]
fn fifth_bits(block: &[u8], at: usize, codes: &mut [u8; BLOCK]) {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    for (index, code) in codes.iter_mut().enumerate() {
        *code |= ((bits >> index) as u8 & 1) << 4;
    }
}

/// Six-bit scales and minima of Q4_K and Q5_K, as bytes.
#[inline(always)]
pub(crate) fn scales_and_mins(bytes: &[u8; 12]) -> [[u8; 8]; 2] {
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (scales, mins, rest) = (word(0), word(4), word(8));
    let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    let join = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    [
        join(scales & 0x3f3f_3f3f, rest & 0x0f0f_0f0f | high(scales)),
        join(mins & 0x3f3f_3f3f, rest >> 4 & 0x0f0f_0f0f | high(mins)),
    ]
}

#[inline(always)]
fn scales_of(block: &[u8], out: &mut SuperBlock<'_>) {
    let (scale, min) = (half(block, 0), -half(block, 2));
    let [scales, mins] = scales_and_mins(block[4..].first_chunk().expect("twelve bytes follow"));
    for index in 0..8 {
        out.scales[index] = scale * f32::from(scales[index]);
        out.biases[index] = min * f32::from(mins[index]);
    }
}

#[inline(always)]
fn q4_k(block: &[u8; 144], mut out: SuperBlock<'_>) {
    scales_of(block, &mut out);
    for (bytes, codes) in block[16..].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        for (index, byte) in bytes.iter().enumerate() {
            codes[index] = byte & 15;
            codes[32 + index] = byte >> 4;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], mut out: SuperBlock<'_>) {
    scales_of(block, &mut out);
    let high = &block[16..48];
    for pair in 0..4 {
        let (bytes, codes) = (&block[48 + 32 * pair..][..32], &mut out.codes[64 * pair..][..64]);
        for index in 0..32 {
            codes[index] = bytes[index] & 15 | (high[index] >> (2 * pair) & 1) << 4;
            codes[32 + index] = bytes[index] >> 4 | (high[index] >> (2 * pair + 1) & 1) << 4;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: SuperBlock<'_>) {
    out.scales.fill(half(block, 208));
    for (sub, &scale) in out.subs.iter_mut().zip(&block[192..208]) {
        *sub = i16::from(scale as i8);
    }
    for part in 0..2 {
        let (low, high) = (&block[64 * part..][..64], &block[128 + 32 * part..][..32]);
        let codes = &mut out.codes[128 * part..][..128];
        for index in 0..64 {
            let high = high[index % 32] >> (2 * (index / 32));
            codes[index] = low[index] & 15 | (high & 3) << 4;
            codes[64 + index] = low[index] >> 4 | (high >> 4 & 3) << 4;
        }
    }
}

/// Four codes of two bits to a byte: quarters of 32 values.
#[inline(always)]
fn two_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * quarter) & 3;
            }
        }
    }
}

#[inline(always)]
fn q2_k(block: &[u8; 84], out: SuperBlock<'_>) {
    out.scales.fill(half(block, 80));
    out.biases.fill(-half(block, 82));
    for (index, byte) in block[..16].iter().enumerate() {
        out.subs[index] = i16::from(byte & 15);
        out.mins[index] = i16::from(byte >> 4);
    }
    two_bits(&block[16..80], out.codes);
}

#[inline(always)]
fn q3_k(block: &[u8; 110], out: SuperBlock<'_>) {
    out.scales.fill(half(block, 108));
    *out.subs = q3_k_subs(block[96..].first_chunk().expect("twelve bytes follow"));
    two_bits(&block[32..96], out.codes);
    for (group, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, high) in codes.iter_mut().zip(&block[..32]) {
            *code |= (high >> group & 1) << 2;
        }
    }
}

/// Six-bit factors of Q3_K.
#[inline(always)]
pub(crate) fn q3_k_subs(scales: &[u8; 12]) -> [i16; 16] {
    std::array::from_fn(|sub| {
        let low = if sub < 8 { scales[sub] & 15 } else { scales[sub - 8] >> 4 };
        let high = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        i16::from(low | high << 4) - 32
    })
}

#[inline(always)]
fn iq4_xs(block: &[u8; 136], out: SuperBlock<'_>) {
    *out.scales = iq4_xs_scales(block[..8].first_chunk().expect("eight bytes"));
    for (bytes, codes) in block[8..].chunks_exact(16).zip(out.codes.chunks_exact_mut(32)) {
        nibbles(bytes, codes, |code| IQ4_CODES[usize::from(code)]);
    }
}

#[inline(always)]
pub(crate) fn iq4_xs_scales(head: &[u8; 8]) -> [f32; 8] {
    let scale = half(head, 0);
    let high = u16::from_le_bytes([head[2], head[3]]);
    std::array::from_fn(|sub| {
        let low = head[4 + sub / 2] >> (4 * (sub % 2)) & 15;
        scale * (f32::from(u16::from(low) | (high >> (2 * sub) & 3) << 4) - 32.0)
    })
}

#[cfg(test)]
mod tests {
    use checkpoint::{Affine, BlockType, Format, dequantize_row};

    use super::*;

    /// Every format that integer kernels read.
    pub(crate) fn formats() -> Vec<Format> {
        let mut formats: Vec<Format> = (0..64)
            .filter_map(BlockType::from_number)
            .map(Format::Block)
            .filter(|&format| Kind::of(format).is_some())
            .collect();
        for bits in [2, 3, 4, 5, 6, 8] {
            for (group, scales) in
                [(32, FloatType::F16), (64, FloatType::Bf16), (128, FloatType::F32)]
            {
                formats.push(Format::Affine(Affine { bits, group, scales }));
            }
        }
        formats
    }

    #[test]
    fn chunks_mean_what_the_formats_mean() {
        let mut seed = 1_u32;
        let mut byte = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        assert_eq!(formats().len(), 13 + 18);
        for format in formats() {
            let kind = Kind::of(format).expect("it is one of those");
            let data: Vec<u8> = (0..kind.chunk_bytes()).map(|_| byte() & 0x3b).collect();
            let mut scales = [(); 2].map(|()| -> Vec<u8> {
                (0..kind.chunk_scale_bytes()).map(|_| byte() & 0x3f).collect()
            });
            let [scales, biases] = &mut scales;
            assert_eq!(data.len(), format.row_bytes(CHUNK), "{format}");
            assert_eq!(scales.len(), format.scale_row_bytes(CHUNK), "{format}");
            let mut expected = [0.0; CHUNK];
            dequantize_row(format, &data, scales, biases, &mut expected);
            let mut chunk = Chunk::default();
            unpack(kind, Stored { data: &data, scales, biases }, &mut chunk);
            for (index, expected) in expected.iter().enumerate() {
                let (block, half) = (index / BLOCK, index / 16);
                let code = i32::from(chunk.codes[index]) - kind.zero();
                let product = i32::from(chunk.subs[half]) * code;
                let value = chunk.scales[block] * product as f32
                    + chunk.biases[block] * f32::from(chunk.mins[half]);
                let allowed = 1e-6 * expected.abs().max((chunk.scales[block] * 64.0).abs());
                assert!(
                    (value - expected).abs() <= allowed,
                    "{format}: {value} for {expected} at {index}"
                );
            }
        }
    }
}
