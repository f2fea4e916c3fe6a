//! The inner steps of the panel, written as instructions: four columns of eight rows times four tokens.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::cpu::integer::avx2::gemm::Words;

/// Loads a vector of weights and multiplies it with four codes of four tokens; sums stay in 16 bits.
macro_rules! narrow_step {
    ($weights:literal, $codes:literal) => {
        narrow_step!(@ $weights, $codes, "a" "b" "c" "d")
    };
    (@ $weights:literal, $codes:literal, $($token:literal)*) => {
        concat!(
            "vmovdqu {w}, [{weights} + ", $weights, "]\n",
            $(
                "vpbroadcastd {t}, dword ptr [{p", $token, "} + ", $codes, "]\n",
                "vpmaddubsw {t}, {w}, {t}\n",
                "vpaddw {", $token, "}, {", $token, "}, {t}\n",
            )*
        )
    };
}

/// The same with signed weights of eight bits; sums are of 32 bits.
macro_rules! wide_step {
    ($weights:literal, $codes:literal) => {
        wide_step!(@ $weights, $codes, "a" "b" "c" "d")
    };
    (@ $weights:literal, $codes:literal, $($token:literal)*) => {
        concat!(
            "vmovdqu {w}, [{weights} + ", $weights, "]\n",
            "vpabsb {m}, {w}\n",
            $(
                "vpbroadcastd {t}, dword ptr [{p", $token, "} + ", $codes, "]\n",
                "vpsignb {t}, {t}, {w}\n",
                "vpmaddubsw {t}, {m}, {t}\n",
                "vpmaddwd {t}, {t}, {ones}\n",
                "vpaddd {", $token, "}, {", $token, "}, {t}\n",
            )*
        )
    };
}

/// The same with weights that are not negative, by AVX-VNNI; sums are of 32 bits.
macro_rules! vnni_step {
    ($weights:literal, $codes:literal) => {
        vnni_step!(@ $weights, $codes, "a" "b" "c" "d")
    };
    (@ $weights:literal, $codes:literal, $($token:literal)*) => {
        concat!(
            "vmovdqu {w}, [{weights} + ", $weights, "]\n",
            $(
                "vpbroadcastd {t}, dword ptr [{p", $token, "} + ", $codes, "]\n",
                "{{vex}} vpdpbusd {", $token, "}, {w}, {t}\n",
            )*
        )
    };
}

/// Adds the products of some steps to the sums of four tokens. Written as instructions: left to itself
/// the compiler loads the codes of many steps first and spills them.
macro_rules! add_steps {
    ($($step:expr),*; $weights:expr, $codes:expr, $sums:expr ; $($operands:tt)*) => {{
        let [a, b, c, d] = $sums;
        // SAFETY: reads a vector of `weights` and four codes of each token for each step.
        unsafe {
            asm!(
                $($step,)*
                weights = in(reg) $weights,
                w = out(ymm_reg) _,
                t = out(ymm_reg) _,
                a = inout(ymm_reg) *a,
                b = inout(ymm_reg) *b,
                c = inout(ymm_reg) *c,
                d = inout(ymm_reg) *d,
                pa = in(reg) $codes[0].as_ptr(),
                pb = in(reg) $codes[1].as_ptr(),
                pc = in(reg) $codes[2].as_ptr(),
                pd = in(reg) $codes[3].as_ptr(),
                $($operands)*
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }};
}

/// Adds the products of a run of steps, two or a multiple of four, to the sums of four tokens.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_narrow(weights: &[Words], codes: [&[i8]; 4], sums: &mut [__m256i; 4]) {
    if let Ok(weights) = <&[Words; 2]>::try_from(weights) {
        let [a, b, c, d] = codes;
        let codes = [&a[..8], &b[..8], &c[..8], &d[..8]];
        add_steps!(
            narrow_step!("0", "0"),
            narrow_step!("32", "4");
            weights.as_ptr(), codes, sums;
        );
        return;
    }
    for (index, weights) in weights.as_chunks::<4>().0.iter().enumerate() {
        let [a, b, c, d] = codes;
        let four = 16 * index..16 * (index + 1);
        let codes = [&a[four.clone()], &b[four.clone()], &c[four.clone()], &d[four]];
        add_steps!(
            narrow_step!("0", "0"),
            narrow_step!("32", "4"),
            narrow_step!("64", "8"),
            narrow_step!("96", "12");
            weights.as_ptr(), codes, sums;
        );
    }
}

/// Adds the products of a multiple of four steps to the sums of four tokens.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_wide(weights: &[Words], codes: [&[i8]; 4], sums: &mut [__m256i; 4]) {
    for (index, weights) in weights.as_chunks::<4>().0.iter().enumerate() {
        let [a, b, c, d] = codes;
        let four = 16 * index..16 * (index + 1);
        let codes = [&a[four.clone()], &b[four.clone()], &c[four.clone()], &d[four]];
        add_steps!(
            wide_step!("0", "0"),
            wide_step!("32", "4"),
            wide_step!("64", "8"),
            wide_step!("96", "12");
            weights.as_ptr(), codes, sums;
            m = out(ymm_reg) _,
            ones = in(ymm_reg) _mm256_set1_epi16(1),
        );
    }
}

/// Adds the products of a multiple of four steps to the sums of four tokens. Weights are not negative.
///
/// # Safety
/// The machine must have AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn add_vnni(weights: &[Words], codes: [&[i8]; 4], sums: &mut [__m256i; 4]) {
    for (index, weights) in weights.as_chunks::<4>().0.iter().enumerate() {
        let [a, b, c, d] = codes;
        let four = 16 * index..16 * (index + 1);
        let codes = [&a[four.clone()], &b[four.clone()], &c[four.clone()], &d[four]];
        add_steps!(
            vnni_step!("0", "0"),
            vnni_step!("32", "4"),
            vnni_step!("64", "8"),
            vnni_step!("96", "12");
            weights.as_ptr(), codes, sums;
        );
    }
}

/// Adds the products of four weights each, which are not negative, and signed codes to eight sums.
///
/// # Safety
/// The machine must have AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dot_vnni(mut sums: __m256i, weights: __m256i, codes: __m256i) -> __m256i {
    // SAFETY: the caller has the instruction, which reads and writes registers only.
    unsafe {
        asm!(
            "{{vex}} vpdpbusd {sums}, {weights}, {codes}",
            sums = inout(ymm_reg) sums,
            weights = in(ymm_reg) weights,
            codes = in(ymm_reg) codes,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
