//! Elementary functions over slices, in plain loops that the compiler turns into vector code.
//!
//! Products and sums are rounded one by one, in one order, so every instruction set gives the same bits.

use crate::cpu::kernels::sum_lanes;

/// Loops compiled for an instruction set.
pub(crate) struct Math {
    /// `x = silu(x)`.
    pub(crate) silu: fn(&mut [f32]),
    /// `out *= silu(x)`.
    pub(crate) times_silu: fn(&mut [f32], &[f32]),
    /// `out *= sigmoid(x)`.
    pub(crate) times_sigmoid: fn(&mut [f32], &[f32]),
    /// `x = e^(scale * x - max)`; gives the sum.
    pub(crate) exp_below: fn(&mut [f32], f32, f32) -> f32,
    /// A causal convolution of four taps: `out = w0 x0 + w1 x1 + w2 x2 + w3 x3`, weights of (channels, 4).
    pub(crate) convolve4: fn(&[f32], [&[f32]; 4], &mut [f32]),
}

/// Makes the table of an instruction set from its features.
#[cfg(target_arch = "x86_64")]
macro_rules! math {
    ($($feature:literal)?) => {{
        $(#[target_feature(enable = $feature)])?
        fn silu(x: &mut [f32]) {
            crate::cpu::math::silu(x);
        }
        $(#[target_feature(enable = $feature)])?
        fn times_silu(out: &mut [f32], x: &[f32]) {
            crate::cpu::math::times_silu(out, x);
        }
        $(#[target_feature(enable = $feature)])?
        fn times_sigmoid(out: &mut [f32], x: &[f32]) {
            crate::cpu::math::times_sigmoid(out, x);
        }
        $(#[target_feature(enable = $feature)])?
        fn exp_below(x: &mut [f32], scale: f32, max: f32) -> f32 {
            crate::cpu::math::exp_below(x, scale, max)
        }
        $(#[target_feature(enable = $feature)])?
        fn convolve4(weights: &[f32], x: [&[f32]; 4], out: &mut [f32]) {
            crate::cpu::math::convolve4(weights, x, out);
        }
        // SAFETY (of all): a table is only used where its features are available.
        crate::cpu::math::Math {
            silu: |x| {
                // SAFETY: as said above.
                unsafe { silu(x) }
            },
            times_silu: |out, x| {
                // SAFETY: as said above.
                unsafe { times_silu(out, x) }
            },
            times_sigmoid: |out, x| {
                // SAFETY: as said above.
                unsafe { times_sigmoid(out, x) }
            },
            exp_below: |x, scale, max| {
                // SAFETY: as said above.
                unsafe { exp_below(x, scale, max) }
            },
            convolve4: |weights, x, out| {
                // SAFETY: as said above.
                unsafe { convolve4(weights, x, out) }
            },
        }
    }};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use math;

/// The table for any machine.
pub(crate) static PLAIN: Math = Math { silu, times_silu, times_sigmoid, exp_below, convolve4 };

/// `e^x` with an error of about one unit in the last place (Cephes' polynomial): 0 below -87.3, and no more
/// than `e^88.3`. NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it leaves no bits behind the point.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    // Comparisons, unlike `clamp`, compile to plain selections that let NaN through.
    let t = if x > HIGHEST { HIGHEST } else { x };
    let t = if t < LOWEST { LOWEST } else { t };
    let shifted = t * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = t - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let scale = f32::from_bits((exponent.wrapping_add(127) << 23) as u32);
    if x < LOWEST { 0.0 } else { p * scale }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
pub(crate) fn silu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x *= sigmoid(*x));
}

#[inline(always)]
pub(crate) fn times_silu(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out *= x * sigmoid(*x);
    }
}

#[inline(always)]
pub(crate) fn times_sigmoid(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out *= sigmoid(*x);
    }
}

#[inline(always)]
pub(crate) fn exp_below(x: &mut [f32], scale: f32, max: f32) -> f32 {
    x.iter_mut().for_each(|x| *x = exp(*x * scale - max));
    let mut lanes = [0.0; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    sum_lanes(&lanes)
}

#[inline(always)]
pub(crate) fn convolve4(weights: &[f32], [a, b, c, d]: [&[f32]; 4], out: &mut [f32]) {
    let inputs = a.iter().zip(b).zip(c.iter().zip(d));
    for ((out, weights), ((a, b), (c, d))) in
        out.iter_mut().zip(weights.as_chunks::<4>().0).zip(inputs)
    {
        *out = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_near() {
        for i in -8730..8830 {
            let x = i as f32 * 0.01 + 0.003;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 3e-7, "e^{x} is {exact}, not {ours}");
        }
        assert_eq!((exp(f32::NEG_INFINITY), exp(-90.0), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite());
        assert_eq!(exp(f32::INFINITY), exp(88.3));
    }

    #[test]
    fn sums_and_gates_are_what_they_say() {
        let mut x: Vec<f32> = (0..21).map(|i| i as f32 * 0.1).collect();
        let sum = exp_below(&mut x, 2.0, 4.0);
        let expected: f64 = (0..21).map(|i| (f64::from(i) * 0.2 - 4.0).exp()).sum();
        assert!((f64::from(sum) - expected).abs() < 1e-5, "{sum} is not {expected}");
        let mut gates = [1.0, -2.0, 100.0, -100.0];
        silu(&mut gates);
        for (ours, exact) in gates.iter().zip([0.731_058_6, -0.238_405_84, 100.0, 0.0]) {
            assert!((ours - exact).abs() < 1e-6, "{ours} is not {exact}");
        }
    }
}
