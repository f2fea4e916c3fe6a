//! What a policy would have hit: recorded routing against a number of slots, without reading anything.

use crate::policy::{Belady, Policy};
use crate::trace::Trace;

/// What a simulation counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimulatedHits {
    /// Experts that were in memory when they were asked for.
    pub hits: u64,
    /// Experts that would have been read.
    pub misses: u64,
}

impl SimulatedHits {
    /// Share of the experts that were in memory; `None` when none was asked for.
    pub fn hit_rate(&self) -> Option<f64> {
        let asked = self.hits + self.misses;
        (asked > 0).then(|| self.hits as f64 / asked as f64)
    }
}

/// Which experts are in memory in the midst of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Residents<'a> {
    first_keys: &'a [u32],
    is_held: &'a [bool],
}

impl Residents<'_> {
    /// Whether an expert of a layer is in memory.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn holds(&self, layer: usize, expert: u32) -> bool {
        self.is_held[(self.first_keys[layer] + expert) as usize]
    }
}

/// Answers the requests of a trace from `n_slots` slots as the store does. Requests before `skip` warm
/// the slots and are not counted.
pub fn simulate(
    trace: &Trace,
    policy: &mut dyn Policy,
    n_slots: usize,
    skip: usize,
) -> SimulatedHits {
    simulate_watched(trace, policy, n_slots, skip, |_, _| ())
}

/// The same, and calls `watch` before each request that counts, with its index in the trace and what
/// is in memory then.
pub fn simulate_watched(
    trace: &Trace,
    policy: &mut dyn Policy,
    n_slots: usize,
    skip: usize,
    mut watch: impl FnMut(usize, Residents<'_>),
) -> SimulatedHits {
    let (first_keys, n_keys) = trace.first_keys();
    let mut is_held = vec![false; n_keys];
    let mut n_held = 0;
    let mut counts = SimulatedHits::default();
    let mut missing = Vec::new();
    // In use by the request, in the order in which they would be computed.
    let mut in_use = std::collections::VecDeque::new();
    for (index, request) in trace.requests.iter().enumerate() {
        if index >= skip {
            watch(index, Residents { first_keys: &first_keys, is_held: &is_held });
        }
        missing.clear();
        for &(expert, uses) in &request.experts {
            let key = first_keys[request.layer] + expert;
            policy.used(key, uses);
            if is_held[key as usize] {
                policy.must_stay(key);
                in_use.push_back(key);
            } else {
                missing.push(key);
            }
        }
        if index >= skip {
            counts.hits += in_use.len() as u64;
            counts.misses += missing.len() as u64;
        }
        for &key in &missing {
            if n_held < n_slots {
                n_held += 1;
            } else {
                let victim = policy.take_victim().or_else(|| {
                    // All slots are in use: the first is computed and let go of.
                    policy.may_leave(in_use.pop_front()?);
                    policy.take_victim()
                });
                let Some(victim) = victim else { continue };
                is_held[victim as usize] = false;
            }
            is_held[key as usize] = true;
            in_use.push_back(key);
        }
        for key in in_use.drain(..) {
            policy.may_leave(key);
        }
    }
    counts
}

/// The same for the policy that knows the future: no other can do better.
pub fn simulate_belady(trace: &Trace, n_slots: usize, skip: usize) -> SimulatedHits {
    let (first_keys, n_keys) = trace.first_keys();
    let uses = trace.requests.iter().flat_map(|request| {
        request.experts.iter().map(|&(expert, _)| first_keys[request.layer] + expert)
    });
    simulate(trace, &mut Belady::new(n_keys, uses), n_slots, skip)
}
