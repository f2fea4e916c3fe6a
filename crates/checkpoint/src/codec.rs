//! Stored values to numbers and back, one row at a time: the plain meaning of every format.
//!
//! Kernels that multiply stored weights have their own faster forms, which are tested against this one.

use half::{bf16, f16};

use crate::format::{Affine, FloatType, Format};
use crate::location::{VectorLocation, VectorTransform};

/// Decodes as many values as `out` holds.
///
/// # Panics
/// If `bytes` has another length than those values.
pub fn decode_floats(dtype: FloatType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.size(), "as many bytes as values");
    match dtype {
        FloatType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        FloatType::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        FloatType::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

/// Encodes values, rounding to nearest, ties to even.
pub fn encode_floats(dtype: FloatType, values: &[f32], out: &mut Vec<u8>) {
    match dtype {
        FloatType::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        FloatType::F16 => {
            out.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
        }
        FloatType::Bf16 => {
            out.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
        }
    }
}

/// Decodes a vector to its effective values.
pub fn decode_vector(location: &VectorLocation, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; location.len];
    decode_floats(location.dtype, bytes, &mut values);
    for value in &mut values {
        *value = match location.transform {
            VectorTransform::Identity => *value,
            VectorTransform::AddOne => 1.0 + *value,
            VectorTransform::LogOfNegative => (-*value).ln(),
        };
    }
    values
}

/// Decodes a row of a matrix. `scales` and `biases` are empty for formats without them.
///
/// # Panics
/// If a part has another length than the format says for `out.len()` columns.
pub fn dequantize_row(format: Format, data: &[u8], scales: &[u8], biases: &[u8], out: &mut [f32]) {
    match format {
        Format::Float(dtype) => decode_floats(dtype, data, out),
        Format::Affine(affine) => dequantize_affine(affine, data, scales, biases, out),
        Format::Block(block) => block.decode(data, out),
    }
}

/// `w = scale * q + bias`.
fn dequantize_affine(affine: Affine, data: &[u8], scales: &[u8], biases: &[u8], out: &mut [f32]) {
    let group = usize::from(affine.group);
    unpack_codes(affine.bits, data, out);
    let size = affine.scales.size();
    let parameters = scales.chunks_exact(size).zip(biases.chunks_exact(size));
    assert_eq!(out.len() / group, parameters.len(), "a scale and a bias for each group");
    for (values, (scale, bias)) in out.chunks_exact_mut(group).zip(parameters) {
        let mut pair = [0.0; 2];
        decode_floats(affine.scales, scale, &mut pair[..1]);
        decode_floats(affine.scales, bias, &mut pair[1..]);
        for value in values {
            *value = *value * pair[0] + pair[1];
        }
    }
}

/// Reads the codes of a row from their bit stream, lowest bit first.
///
/// # Panics
/// If `data` has another length than `out.len()` codes.
pub fn unpack_codes(bits: u8, data: &[u8], out: &mut [f32]) {
    let bits = usize::from(bits);
    assert_eq!(data.len() * 8, out.len() * bits, "the codes of a row");
    let mask = (1 << bits) - 1;
    for (index, out) in out.iter_mut().enumerate() {
        let bit = index * bits;
        // A code of at most eight bits lies in at most two bytes.
        let low = u32::from(data[bit / 8]);
        let high = data.get(bit / 8 + 1).map_or(0, |&byte| u32::from(byte));
        *out = (((low | high << 8) >> (bit % 8)) & mask) as f32;
    }
}

/// A quantised row: codes, scales, biases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedRow {
    /// Packed codes.
    pub data: Vec<u8>,
    /// Scales in the format's type.
    pub scales: Vec<u8>,
    /// Biases in the format's type.
    pub biases: Vec<u8>,
}

/// Quantises values as MLX does on a CPU: the end of a group's range with the larger magnitude is met
/// exactly, and codes are computed with the scale and bias before these are rounded to their type.
pub fn quantize_affine(affine: Affine, values: &[f32], out: &mut QuantizedRow) {
    let group = usize::from(affine.group);
    assert!(values.len().is_multiple_of(group), "a whole number of groups");
    let largest = ((1_u32 << affine.bits) - 1) as f32;
    let mut codes = Vec::with_capacity(values.len());
    for values in values.chunks_exact(group) {
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut scale = ((high - low) / largest).max(1e-7);
        let edge = if low.abs() > high.abs() { low } else { high };
        if low.abs() <= high.abs() {
            scale = -scale;
        }
        let steps = (edge / scale).round_ties_even();
        let bias = if steps == 0.0 { 0.0 } else { edge };
        if steps != 0.0 {
            scale = edge / steps;
        }
        let code = |value: &f32| ((value - bias) / scale).round_ties_even().clamp(0.0, largest);
        codes.extend(values.iter().map(|value| code(value) as u8));
        encode_floats(affine.scales, &[scale], &mut out.scales);
        encode_floats(affine.scales, &[bias], &mut out.biases);
    }
    pack_codes(affine.bits, &codes, &mut out.data);
}

/// Writes codes as a bit stream, lowest bit first; a last byte that is not full is left out.
pub fn pack_codes(bits: u8, codes: &[u8], out: &mut Vec<u8>) {
    let (mut held, mut n_held) = (0_u32, 0);
    for &code in codes {
        held |= u32::from(code) << n_held;
        n_held += bits;
        while n_held >= 8 {
            out.push(held as u8);
            held >>= 8;
            n_held -= 8;
        }
    }
}

/// Whether none of the stored values is infinite or not a number: one look at each exponent. It runs
/// over the scales of every expert that is read.
pub fn are_finite(dtype: FloatType, bytes: &[u8]) -> bool {
    match dtype {
        FloatType::F32 => {
            let words = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            words.fold(true, |finite, word| finite & (word & 0x7f80_0000 != 0x7f80_0000))
        }
        FloatType::F16 => all_below(bytes, 0x7c00),
        FloatType::Bf16 => all_below(bytes, 0x7f80),
    }
}

/// Whether no 16-bit float has all bits of its exponent set. No early exit, so that it vectorises.
fn all_below(bytes: &[u8], exponent: u16) -> bool {
    let words = bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    words.fold(true, |finite, word| finite & (word & exponent != exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_is_what_floats_say() {
        for (value, finite) in
            [(1.5, true), (f32::MAX, true), (f32::NAN, false), (f32::INFINITY, false)]
        {
            for dtype in [FloatType::F32, FloatType::Bf16, FloatType::F16] {
                // The largest f32 rounds to infinity in the 16-bit types.
                if value == f32::MAX && dtype != FloatType::F32 {
                    continue;
                }
                let mut bytes = Vec::new();
                encode_floats(dtype, &[0.0, value, -1.0], &mut bytes);
                assert_eq!(are_finite(dtype, &bytes), finite, "{value} as {dtype:?}");
            }
        }
    }
}
