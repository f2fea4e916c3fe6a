//! What caches of several sizes would hit, and what reading ahead would add to that.

use engine::cache::{self, PolicyKind, SimulatedHits, Trace};

use crate::look_ahead::{CLASSES, Count, Guess};

/// Policies that are compared, in order; the last knows the future.
pub const POLICIES: [&str; 5] = [
    PolicyKind::Lru.name(),
    PolicyKind::Lfu.name(),
    PolicyKind::Clock.name(),
    PolicyKind::Frecency.name(),
    "belady",
];
/// The place among [`POLICIES`] of the one that the engine uses.
pub const DEFAULT_POLICY: usize = 3;

/// What a cache of some size would have hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Experts that have room.
    pub slots: usize,
    /// Hits by policy, in the order of [`POLICIES`].
    pub hits: [SimulatedHits; POLICIES.len()],
}

impl CacheSize {
    /// Simulates all policies on the requests from `skip` on, with the ones before as a warm-up.
    pub fn simulate(trace: &Trace, slots: usize, skip: usize) -> Self {
        let n_keys = n_experts(trace);
        let run =
            |kind: PolicyKind| cache::simulate(trace, kind.build(n_keys).as_mut(), slots, skip);
        let [lru, lfu, clock, frecency] =
            [PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Clock, PolicyKind::Frecency].map(run);
        let belady = cache::simulate_belady(trace, slots, skip);
        Self { slots, hits: [lru, lfu, clock, frecency, belady] }
    }
}

/// Experts of all layers.
pub fn n_experts(trace: &Trace) -> usize {
    trace.experts.iter().map(|&count| count as usize).sum()
}

/// What reading ahead would do for a cache of the engine's policy. The reads are not simulated: what
/// is read ahead takes no other expert's place, and comes in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadAhead {
    /// Layers ahead, from 1.
    pub stride: usize,
    /// Experts that are not in memory when they are asked for, without reading ahead.
    pub misses: u64,
    /// Those of them that are guessed, with a margin at which more guesses come true than not.
    pub useful: u64,
    /// Guesses of such margins, not in memory, that do not come true.
    pub wasted: u64,
}

/// Guesses for the requests of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guesses {
    /// By stride from 1: for each request of the trace what was guessed so many layers before; nothing
    /// where the layer has too few before it.
    pub strides: Vec<Vec<Vec<Guess>>>,
}

/// Measures what reading ahead by each stride would do.
pub fn read_ahead(trace: &Trace, guesses: &Guesses, slots: usize, skip: usize) -> Vec<ReadAhead> {
    let mut policy = PolicyKind::default().build(n_experts(trace));
    // Guesses of experts that are not in memory, by stride and class.
    let mut counts = vec![[Count::default(); CLASSES]; guesses.strides.len()];
    let watch = |index: usize, residents: cache::Residents<'_>| {
        let request = &trace.requests[index];
        for (counts, guesses) in counts.iter_mut().zip(&guesses.strides) {
            for guess in &guesses[index] {
                if residents.holds(request.layer, guess.expert) {
                    continue;
                }
                let count = &mut counts[guess.class as usize];
                let is_right = request.experts.iter().any(|&(expert, _)| expert == guess.expert);
                count.all += 1;
                count.right += u64::from(is_right);
            }
        }
    };
    let hits = cache::simulate_watched(trace, policy.as_mut(), slots, skip, watch);
    let sums = counts.iter().enumerate().map(|(index, counts)| {
        let sure = counts.iter().filter(|count| 2 * count.right >= count.all);
        let (right, all) = sure.fold((0, 0), |sum, c| (sum.0 + c.right, sum.1 + c.all));
        ReadAhead { stride: index + 1, misses: hits.misses, useful: right, wasted: all - right }
    });
    sums.collect()
}

#[cfg(test)]
mod tests {
    use engine::cache::TracedRequest;

    use super::*;

    #[test]
    fn only_what_is_missing_and_sure_is_read_ahead() {
        let request = |expert| TracedRequest { layer: 0, experts: vec![(expert, 1)] };
        let trace = Trace {
            slot_bytes: 1,
            experts: vec![4],
            requests: [0, 1, 0, 2, 3].map(request).to_vec(),
        };
        let guess = |expert, class| vec![Guess { expert, class }];
        // The first comes true; the next two are in memory; the fourth comes true; the last is of a
        // class that was never right.
        let made = [guess(0, 7), guess(0, 7), guess(0, 7), guess(2, 3), guess(1, 0)];
        let guesses = Guesses { strides: vec![made.to_vec()] };
        let all = read_ahead(&trace, &guesses, 2, 0);
        let [only] = &all[..] else { panic!("one stride") };
        assert_eq!((only.stride, only.misses, only.useful, only.wasted), (1, 4, 2, 0));
        let size = CacheSize::simulate(&trace, 2, 0);
        assert_eq!(size.hits.map(|hits| hits.hits), [1; 5]);
    }
}
