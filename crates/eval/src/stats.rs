//! Intervals of confidence, at 95 %.

use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// The 97.5th percentile of the normal distribution.
const Z: f64 = 1.959_964;

/// An interval that holds the true value in 95 of 100 such experiments.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The interval of a proportion (Wilson's); all of it when there are no trials.
pub fn proportion(successes: u64, trials: u64) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let middle = p + Z * Z / (2.0 * n);
    let reach = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    Interval { low: ((middle - reach) / scale).max(0.0), high: ((middle + reach) / scale).min(1.0) }
}

/// The mean difference of pairs and its interval, from the normal distribution of means.
pub fn paired_difference(differences: &[f64]) -> (f64, Interval) {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n.max(1.0);
    let squares = differences.iter().map(|it| (it - mean) * (it - mean)).sum::<f64>();
    let reach = if n > 1.0 { Z * (squares / (n - 1.0) / n).sqrt() } else { f64::INFINITY };
    (mean, Interval { low: mean - reach, high: mean + reach })
}

/// The interval of `sum of numerators / sum of denominators` by a bootstrap over whole documents, because the
/// tokens of a document depend on each other. Documents are drawn within each stratum, as many as it has.
/// The seed is fixed: the same documents give the same interval.
pub(crate) fn ratio(strata: &[Vec<(f64, f64)>]) -> Interval {
    let mut random = SplitMix64(0);
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (mut over, mut under) = (0.0, 0.0);
            for stratum in strata {
                for _ in stratum {
                    let (a, b) = stratum[random.below(stratum.len())];
                    over += a;
                    under += b;
                }
            }
            over / under
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((RESAMPLES - 1) as f64 * share).round() as usize];
    Interval { low: at(0.025), high: at(0.975) }
}

/// Random numbers (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, as even as 64 bits allow.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportions_have_wilsons_intervals() {
        // Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
        let close = |interval: Interval, low: f64, high: f64| {
            assert!((interval.low - low).abs() < 5e-5, "{interval:?}");
            assert!((interval.high - high).abs() < 5e-5, "{interval:?}");
        };
        close(proportion(81, 263), 0.2553, 0.3662);
        close(proportion(15, 148), 0.0624, 0.1605);
        close(proportion(0, 20), 0.0, 0.1611);
        close(proportion(1, 29), 0.0061, 0.1718);
    }

    #[test]
    fn a_bootstrap_agrees_with_the_normal_distribution_and_repeats_itself() {
        let mut random = SplitMix64(7);
        let units: Vec<(f64, f64)> =
            (0..400).map(|_| ((random.next() >> 11) as f64 / (1_u64 << 53) as f64, 1.0)).collect();
        let values: Vec<f64> = units.iter().map(|unit| unit.0).collect();
        let (mean, normal) = paired_difference(&values);
        let interval = ratio(std::slice::from_ref(&units));
        assert_eq!(interval, ratio(&[units]));
        assert!(interval.low < mean && mean < interval.high);
        let widths = (interval.high - interval.low) / (normal.high - normal.low);
        assert!((0.9..1.1).contains(&widths), "{interval:?} beside {normal:?}");
    }
}
