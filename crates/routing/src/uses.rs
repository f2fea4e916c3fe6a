//! How much each expert is used.

use engine::cache::Trace;

/// Uses of every expert by rows, layer by layer; layers without routed experts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Of each layer the uses of its experts.
    pub layers: Vec<Vec<u64>>,
}

impl Uses {
    /// Counts a trace.
    pub fn count(trace: &Trace) -> Self {
        let mut layers: Vec<Vec<u64>> =
            trace.experts.iter().map(|&count| vec![0; count as usize]).collect();
        for request in &trace.requests {
            for &(expert, uses) in &request.experts {
                layers[request.layer][expert as usize] += u64::from(uses);
            }
        }
        Self { layers }
    }

    /// Experts of a layer of which the uses are as many as if all were used alike: `exp` of the entropy
    /// of the shares. Equal to the number of experts when all are used alike, 1 when only one is.
    pub fn effective_experts(counts: &[u64]) -> f64 {
        let total: u64 = counts.iter().sum();
        let shares = counts.iter().filter(|&&count| count > 0);
        let entropy: f64 =
            shares.map(|&count| count as f64 / total as f64).map(|share| -share * share.ln()).sum();
        if total == 0 { 0.0 } else { entropy.exp() }
    }
}

/// Uses in falling order, of one layer or of several together.
pub fn by_popularity(counts: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut counts: Vec<u64> = counts.into_iter().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

/// The share of all uses that the hottest 1, 2, 3, .. experts cover; empty when nothing was used.
pub fn coverage(counts: impl IntoIterator<Item = u64>) -> Vec<f64> {
    let counts = by_popularity(counts);
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Vec::new();
    }
    let mut sum = 0;
    let shares = counts.iter().map(|count| {
        sum += count;
        sum as f64 / total as f64
    });
    shares.collect()
}

/// How many of the hottest experts cover a share of the uses.
pub fn experts_for(coverage: &[f64], share: f64) -> usize {
    coverage.iter().position(|&covered| covered >= share - 1e-12).map_or(0, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_of_a_small_layer() {
        let curve = coverage([1, 5, 0, 4]);
        assert_eq!(curve, [0.5, 0.9, 1.0, 1.0]);
        assert_eq!([0.5, 0.6, 0.9, 1.0].map(|share| experts_for(&curve, share)), [1, 2, 2, 3]);
        assert!(coverage([0, 0]).is_empty());
    }

    #[test]
    fn effective_experts_count_what_is_used_alike() {
        assert!((Uses::effective_experts(&[7, 7, 0, 7]) - 3.0).abs() < 1e-12);
        assert_eq!(Uses::effective_experts(&[9, 0]), 1.0);
        assert_eq!(Uses::effective_experts(&[0, 0]), 0.0);
    }
}
