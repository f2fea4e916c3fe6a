//! The inner loops, and the instructions that they are written for.
//!
//! CPU features are looked at once, at run time, and select a table of functions. Every version keeps
//! to the same order of additions per result. Products of numbers have eight running sums, element `i`
//! into sum `i % 8`, added up at the end by [`sum_lanes`]; those of low-bit codes are defined in
//! [`crate::cpu::integer`]. So a result does not depend on how work was cut into calls; between versions
//! it differs, for numbers only, by fused or separate rounding of products.

use checkpoint::{FloatType, Format};

use crate::cpu::integer::{BlocksMut, Rows, Tokens};
use crate::cpu::math::Math;
use crate::cpu::scalar;
use crate::cpu::scores::Scores;

/// Running sums of one result.
pub(crate) type Lanes = [f32; 8];
/// Weight rows of a tile.
pub(crate) const TILE_ROWS: usize = 4;
/// Token rows of a tile.
pub(crate) const TILE_TOKENS: usize = 3;
/// Running sums of a tile: those of weight row `r` and token `t` at `t * TILE_ROWS + r`.
pub(crate) type TileSums = [Lanes; TILE_ROWS * TILE_TOKENS];

/// Instructions that kernels can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// None in particular.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with dot products of bytes (AVX-VNNI).
    AvxVnni,
    /// x86-64 with AVX-512: F, BW, DQ, VL, VNNI and VBMI.
    Avx512,
    /// 64-bit Arm.
    Neon,
    /// 64-bit Arm with dot products of bytes.
    NeonDotprod,
    /// The same with products of matrices of bytes (i8mm).
    NeonI8mm,
}

impl Isa {
    /// What this machine has, the best first.
    pub fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512vbmi")
            {
                available.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avxvnni") {
                available.push(Self::AvxVnni);
            }
            available.push(Self::Avx2);
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    available.push(Self::NeonI8mm);
                }
                available.push(Self::NeonDotprod);
            }
            available.push(Self::Neon);
        }
        available.push(Self::Scalar);
        available
    }

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }
}

/// A tile of a matrix product: some weight rows times some token rows over the same columns.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// Decoded weights; row `r` begins at `r * weight_stride`.
    pub(crate) weights: &'a [f32],
    pub(crate) weight_stride: usize,
    /// Activations; row `t` begins at `t * token_stride`.
    pub(crate) tokens: &'a [f32],
    pub(crate) token_stride: usize,
    /// At most [`TILE_ROWS`].
    pub(crate) n_rows: usize,
    /// At most [`TILE_TOKENS`].
    pub(crate) n_tokens: usize,
    pub(crate) cols: usize,
}

/// Format, data, scales, biases, and where the values go.
type Dequantize = fn(Format, &[u8], &[u8], &[u8], &mut [f32]);

/// The inner loops for certain instructions.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Adds the products of a tile to its running sums. The columns before were a multiple of eight.
    pub(crate) dot_tile: fn(Tile<'_>, &mut TileSums),
    /// Decodes whole groups of a row, as [`checkpoint::dequantize_row`] does.
    pub(crate) dequantize: Dequantize,
    /// `out[r] = row_r . x` for consecutive stored rows, in the order of additions of [`Kernels::dot_tile`].
    pub(crate) dot_floats: fn(FloatType, &[u8], &[f32], &mut [f32]),
    /// `sum of x * y`.
    pub(crate) dot: fn(&[f32], &[f32]) -> f32,
    /// `out[j] = row_j . x` for consecutive rows as wide as `x`.
    pub(crate) dots: fn(&[f32], &[f32], &mut [f32]),
    /// `out[q * keys + k] = query_q . key_k`, with the bits of [`Kernels::dots`].
    pub(crate) scores: fn(Scores<'_>, &mut [f32]),
    /// Elementary functions.
    pub(crate) math: &'static Math,
    /// Quantises whole blocks of columns, as [`crate::cpu::integer::quantize_portable`] does.
    pub(crate) quantize: fn(&[f32], BlocksMut<'_>),
    /// `out[token * n_rows + row]`, as [`crate::cpu::integer`] defines it.
    pub(crate) multiply: fn(&Rows<'_>, &Tokens<'_>, &mut [f32]),
    /// `out_i += sum over j of weights[i][j] * row_j`, j rising, for the given number of vectors `out_i`
    /// in `out`, consecutive rows as wide as them, and weights of (vectors, rows). Elements of a vector
    /// do not meet, so the width of vector instructions leaves no trace.
    pub(crate) weighted_sums: fn(usize, &[f32], &[f32], &mut [f32]),
}

impl Kernels {
    /// `out += sum over j of weights[j] * row_j`.
    pub(crate) fn weighted_sum(&self, weights: &[f32], rows: &[f32], out: &mut [f32]) {
        (self.weighted_sums)(1, weights, rows, out);
    }

    /// The table of an instruction set that this machine has; `None` if it has not.
    pub(crate) fn of(isa: Isa) -> Option<&'static Self> {
        if !Isa::available().contains(&isa) {
            return None;
        }
        match isa {
            Isa::Scalar => Some(&scalar::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&crate::cpu::avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(&crate::cpu::avx2::VNNI_KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some(&crate::cpu::avx2::AVX512_KERNELS),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&crate::cpu::neon::KERNELS),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some(&crate::cpu::neon::DOTPROD_KERNELS),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some(&crate::cpu::neon::I8MM_KERNELS),
            #[cfg(not(all(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => None,
        }
    }
}

/// Adds up running sums, always in this order.
pub(crate) fn sum_lanes(lanes: &Lanes) -> f32 {
    let [a, b, c, d, e, f, g, h] = *lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}
