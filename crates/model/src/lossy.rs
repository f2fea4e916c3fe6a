//! Savings that change what the model says: fewer experts a token, others than the router chose, their twins of
//! fewer bits, or another arithmetic than the device's own.
//!
//! All of them are off unless asked for, and then the routing is the router's to the bit. What they cost is
//! measured by `flash-moe eval`.

use std::fmt;

use compute::Routing;

/// How many times as many experts as are chosen a row's choice is looked for among, when experts in memory
/// are preferred.
const CANDIDATES: usize = 4;

/// Savings that change what the model says. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lossy {
    /// Use the best so many experts of a token, instead of as many as the model was trained with. Their
    /// weights are what the model's own rule makes of so many.
    pub experts_per_token: Option<usize>,
    /// Leave out experts whose share of the weights of a token's experts is below this; the others make up for
    /// them. The best one always stays. 0 leaves out none.
    pub expert_drop: f32,
    /// Let an expert in memory take the place of one that is not, when its router logit is at most so much
    /// smaller. The output then depends on what was computed before. 0 replaces none.
    pub cache_bias: f32,
    /// Let the CPU compute experts in the host's memory beside a GPU, in its own arithmetic, when that is
    /// sooner than moving them. The output then depends on what was computed before, within rounding.
    pub device_split: bool,
    /// Use the twin of an expert that is not in memory, where its share of the weights of a token's experts is
    /// at most this for all rows of a pass that use it. The output then depends on what was computed before. 0
    /// uses none.
    pub twin_share: f32,
}

impl Lossy {
    /// Whether there is any.
    pub fn is_on(&self) -> bool {
        *self != Self::default()
    }

    /// Whether other experts are used than the router chose, or other weights.
    pub(crate) fn changes_choice(&self) -> bool {
        Self { device_split: false, ..*self }.is_on()
    }

    /// What is wrong with the values, for a model that uses `top_k` experts a token.
    pub fn problem(&self, top_k: usize) -> Option<String> {
        match *self {
            Self { experts_per_token: Some(n), .. } if n == 0 || n > top_k => Some(format!(
                "the model uses {top_k} experts a token; from 1 to {top_k} can be asked for"
            )),
            Self { expert_drop, .. } if !(0.0..1.0).contains(&expert_drop) => Some(format!(
                "experts can be left out below a share from 0 to 1, not {expert_drop}"
            )),
            Self { cache_bias, .. } if !(0.0..=f32::MAX).contains(&cache_bias) => {
                Some(format!("experts in memory can be preferred by 0 or more, not {cache_bias}"))
            }
            Self { twin_share, .. } if !(0.0..=1.0).contains(&twin_share) => {
                Some(format!("twins can be used up to a share from 0 to 1, not {twin_share}"))
            }
            _ => None,
        }
    }

    /// The same for a model that uses `top_k` experts a token, of which as many are no saving.
    pub fn for_model(self, top_k: usize) -> Self {
        Self { experts_per_token: self.experts_per_token.filter(|&n| n < top_k), ..self }
    }

    /// Experts that a token uses at most, of a model that uses `top_k`.
    pub fn top_k(&self, top_k: usize) -> usize {
        self.experts_per_token.map_or(top_k, |n| n.min(top_k))
    }

    /// Among how many of the best experts a choice is looked for, if among more than are chosen.
    pub(crate) fn n_candidates(&self, top_k: usize, n_experts: usize) -> Option<usize> {
        (self.cache_bias > 0.0).then(|| (CANDIDATES * top_k).min(n_experts))
    }

    /// Leaves out experts of little weight.
    pub(crate) fn drop_experts(&self, routing: &mut Routing) {
        if self.expert_drop <= 0.0 {
            return;
        }
        let rows = routing.experts.chunks_exact_mut(routing.top_k);
        for (experts, weights) in rows.zip(routing.weights.chunks_exact_mut(routing.top_k)) {
            let sum: f32 = weights.iter().sum();
            let n_kept = weights.iter().filter(|&&weight| weight >= self.expert_drop * sum).count();
            let n_kept = n_kept.max(1);
            if n_kept < experts.len() {
                let scale = sum / weights[..n_kept].iter().sum::<f32>();
                weights[..n_kept].iter_mut().for_each(|weight| *weight *= scale);
                weights[n_kept..].fill(0.0);
                experts[n_kept..].fill(Routing::LEFT_OUT);
            }
        }
    }

    /// Whether experts have twins that may be used.
    pub(crate) fn has_twins(&self) -> bool {
        self.twin_share > 0.0
    }

    /// Replaces what `placed` held by the choices of `routing` with `n_experts + e` in the place of every
    /// expert `e` whose twin is used: one that is not in memory and weighs little in all rows. Where one row
    /// wants the expert itself it is read anyway, and all rows use it.
    pub(crate) fn place_twins(
        &self,
        routing: &Routing,
        n_experts: usize,
        is_resident: impl Fn(u32) -> bool,
        placed: &mut PlacedTwins,
    ) {
        let PlacedTwins { routing: placed, is_heavy } = placed;
        is_heavy.clear();
        is_heavy.resize(n_experts, false);
        let rows = routing.experts.chunks_exact(routing.top_k);
        for (experts, weights) in rows.zip(routing.weights.chunks_exact(routing.top_k)) {
            let most = self.twin_share * weights.iter().sum::<f32>();
            for (&expert, &weight) in experts.iter().zip(weights) {
                if expert != Routing::LEFT_OUT && weight > most {
                    is_heavy[expert as usize] = true;
                }
            }
        }
        placed.top_k = routing.top_k;
        placed.weights.clone_from(&routing.weights);
        placed.experts.clear();
        placed.experts.extend(routing.experts.iter().map(|&expert| {
            let is_kept =
                expert == Routing::LEFT_OUT || is_heavy[expert as usize] || is_resident(expert);
            if is_kept { expert } else { n_experts as u32 + expert }
        }));
    }

    /// Chooses `top_k` experts of each row from more `candidates`: the best, but for those that are not in
    /// memory and have a replacement there. The least of a row are replaced first, each by the best that is
    /// left.
    pub(crate) fn prefer_residents(
        &self,
        candidates: &Routing,
        (top_k, normalise): (usize, bool),
        is_resident: impl Fn(u32) -> bool,
        routing: &mut Routing,
    ) {
        let tolerance = (-self.cache_bias).exp();
        routing.top_k = top_k;
        routing.experts.clear();
        routing.weights.clear();
        let rows = candidates.experts.chunks_exact(candidates.top_k);
        for (experts, weights) in rows.zip(candidates.weights.chunks_exact(candidates.top_k)) {
            let first = routing.experts.len();
            routing.experts.extend_from_slice(&experts[..top_k]);
            routing.weights.extend_from_slice(&weights[..top_k]);
            let (chosen, chosen_weights) =
                (&mut routing.experts[first..], &mut routing.weights[first..]);
            // Where the next replacement is looked for. A rank that finds none within the tolerance ends the
            // search, because those above it weigh more.
            let mut next = top_k;
            for rank in (0..top_k).rev().filter(|&rank| !is_resident(experts[rank])) {
                while next < experts.len() && !is_resident(experts[next]) {
                    next += 1;
                }
                if next == experts.len() || weights[next] < weights[rank] * tolerance {
                    break;
                }
                (chosen[rank], chosen_weights[rank]) = (experts[next], weights[next]);
                next += 1;
            }
            sort_by_weight(chosen, chosen_weights);
            if normalise {
                let sum: f32 = chosen_weights.iter().sum();
                chosen_weights.iter_mut().for_each(|weight| *weight /= sum);
            }
        }
    }
}

/// Choices with twins in the place of some experts, and the memory to find them.
#[derive(Debug, Default)]
pub(crate) struct PlacedTwins {
    pub(crate) routing: Routing,
    /// For each expert whether some row weighs it too much for its twin.
    is_heavy: Vec<bool>,
}

/// Puts a row in order of falling weight; of equals, the lower index first.
fn sort_by_weight(experts: &mut [u32], weights: &mut [f32]) {
    for end in 1..experts.len() {
        let mut place = end;
        while place > 0
            && weights[place - 1]
                .total_cmp(&weights[place])
                .then(experts[place].cmp(&experts[place - 1]))
                .is_lt()
        {
            experts.swap(place - 1, place);
            weights.swap(place - 1, place);
            place -= 1;
        }
    }
}

/// As options are written: `experts-per-token=4, expert-drop=0.05`.
impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { experts_per_token, expert_drop, cache_bias, device_split, twin_share } = self;
        let parts = [
            experts_per_token.map(|n| format!("experts-per-token={n}")),
            (*expert_drop > 0.0).then(|| format!("expert-drop={expert_drop}")),
            (*cache_bias > 0.0).then(|| format!("cache-bias={cache_bias}")),
            device_split.then(|| "device-split".to_owned()),
            (*twin_share > 0.0).then(|| format!("twin-share={twin_share}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(top_k: usize, experts: &[u32], weights: &[f32]) -> Routing {
        Routing { top_k, experts: experts.to_vec(), weights: weights.to_vec() }
    }

    #[test]
    fn experts_of_little_weight_are_left_out_and_made_up_for() {
        let lossy = Lossy { expert_drop: 0.2, ..Lossy::default() };
        let mut rows = routing(3, &[4, 2, 9, 1, 0, 5], &[0.5, 0.3, 0.1, 0.4, 0.3, 0.3]);
        lossy.drop_experts(&mut rows);
        assert_eq!(rows.experts, [4, 2, Routing::LEFT_OUT, 1, 0, 5]);
        assert!((rows.weights[0] - 0.5625).abs() < 1e-6 && (rows.weights[1] - 0.3375).abs() < 1e-6);
        assert_eq!(rows.weights[2..], [0.0, 0.4, 0.3, 0.3], "a row that keeps all stays as it was");
        assert_eq!([rows.n_used(0), rows.n_used(1)], [2, 3]);

        let mut even = routing(2, &[1, 2], &[0.5, 0.5]);
        Lossy { expert_drop: 0.9, ..Lossy::default() }.drop_experts(&mut even);
        assert_eq!((even.experts, even.weights), (vec![1, Routing::LEFT_OUT], vec![1.0, 0.0]));
    }

    #[test]
    fn experts_in_memory_replace_others_within_the_tolerance() {
        let candidates = routing(6, &[10, 11, 12, 13, 14, 15], &[0.3, 0.2, 0.16, 0.14, 0.12, 0.08]);
        let choose = |cache_bias: f32, residents: &[u32]| {
            let lossy = Lossy { cache_bias, ..Lossy::default() };
            let mut chosen = Routing::default();
            let is_resident = |expert| residents.contains(&expert);
            lossy.prefer_residents(&candidates, (3, true), is_resident, &mut chosen);
            let sum: f32 = chosen.weights.iter().sum();
            assert!((sum - 1.0).abs() < 1e-6, "{chosen:?}");
            assert!(chosen.weights.is_sorted_by(|a, b| a >= b), "{chosen:?}");
            chosen.experts
        };
        assert_eq!(choose(0.3, &[]), [10, 11, 12], "nothing else is in memory");
        assert_eq!(choose(0.3, &[10, 11, 12, 13]), [10, 11, 12], "all of them are");
        assert_eq!(choose(0.3, &[10, 11, 14]), [10, 11, 14], "ln(0.16 / 0.12) is 0.288");
        assert_eq!(choose(0.28, &[10, 11, 14]), [10, 11, 12]);
        assert_eq!(choose(1.0, &[13, 14]), [10, 13, 14], "the least go first");
        assert_eq!(choose(9.0, &[13, 14, 15]), [13, 14, 15]);
    }

    #[test]
    fn twins_take_the_place_of_experts_of_little_weight_that_are_not_in_memory() {
        let left_out = Routing::LEFT_OUT;
        let rows = routing(
            3,
            &[4, 2, 9, 4, 0, 2, 9, 1, left_out],
            &[0.5, 0.3, 0.2, 0.7, 0.2, 0.1, 1.5, 0.5, 0.0],
        );
        let place = |twin_share: f32, residents: &[u32]| {
            let lossy = Lossy { twin_share, ..Lossy::default() };
            let mut placed = PlacedTwins::default();
            // What is left from a pass before does not matter.
            for _ in 0..2 {
                let is_resident = |expert| residents.contains(&expert);
                lossy.place_twins(&rows, 10, is_resident, &mut placed);
            }
            assert_eq!(placed.routing.weights, rows.weights);
            placed.routing.experts
        };
        // A share of 0.25 of the last row is 0.5. Expert 2 is heavy in one row, and so is 9.
        assert_eq!(place(0.25, &[]), [4, 2, 9, 4, 10, 2, 9, 11, left_out]);
        assert_eq!(place(0.25, &[0]), [4, 2, 9, 4, 0, 2, 9, 11, left_out]);
        assert_eq!(place(0.3, &[1]), [4, 12, 9, 4, 10, 12, 9, 1, left_out]);
        assert_eq!(place(1.0, &[]), [14, 12, 19, 14, 10, 12, 19, 11, left_out]);
        assert_eq!(place(0.01, &[]), rows.experts);
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        let of = |lossy: Lossy| lossy.problem(6).is_some();
        assert!(!of(Lossy::default()));
        let experts = |n| Lossy { experts_per_token: Some(n), ..Lossy::default() };
        assert_eq!([0, 1, 6, 7].map(|n| of(experts(n))), [true, false, false, true]);
        let drop = |expert_drop| of(Lossy { expert_drop, ..Lossy::default() });
        assert_eq!([-0.1, 0.5, 1.0, f32::NAN].map(drop), [true, false, true, true]);
        let bias = |cache_bias| of(Lossy { cache_bias, ..Lossy::default() });
        assert_eq!([-0.1, 0.5, f32::INFINITY, f32::NAN].map(bias), [true, false, true, true]);
        let twin = |twin_share| of(Lossy { twin_share, ..Lossy::default() });
        assert_eq!([-0.1, 1.0, 1.1, f32::NAN].map(twin), [true, false, true, true]);
        let all = Lossy {
            experts_per_token: Some(4),
            expert_drop: 0.05,
            cache_bias: 0.5,
            device_split: true,
            twin_share: 0.1,
        };
        let text =
            "experts-per-token=4, expert-drop=0.05, cache-bias=0.5, device-split, twin-share=0.1";
        assert_eq!(all.to_string(), text);
        let split = Lossy { device_split: true, ..Lossy::default() };
        assert!(split.is_on() && !split.changes_choice() && all.changes_choice());
    }
}
