//! Which expert leaves when another needs its slot.
//!
//! Policies know experts by **key**: their number over all layers. So they remember experts that are
//! not in memory, too, and a returning one is judged by all it has done. The store and the simulator
//! drive the same code.

mod clock;
mod ranked;

pub use clock::Clock;
pub use ranked::{Belady, Frecency, Lfu, Lru};

/// An eviction policy over keys.
///
/// Its user says which keys are in memory and not in use: only those can be victims.
pub trait Policy: Send {
    /// A key was asked for, in memory or not, by so many rows of a batch.
    fn used(&mut self, key: u32, uses: u32);
    /// A key in memory is not in use (any more); it is no mistake to say so twice.
    fn may_leave(&mut self, key: u32);
    /// A key in memory is in use.
    fn must_stay(&mut self, key: u32);
    /// The key that should leave, of those that may; it is not in memory from then on.
    fn take_victim(&mut self) -> Option<u32>;
    /// What a key's uses are worth now, as a logarithm to base 2 of a number of uses; `None` for a key
    /// that was never used, and from policies that do not count.
    fn worth(&self, _key: u32) -> Option<f64> {
        None
    }
    /// Begins with what a key was worth in an earlier life, if the policy counts.
    fn recall(&mut self, _key: u32, _worth: f64) {}
}

/// Which policy chooses the expert that leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Frequency and recency: uses counted with weights that halve as others are used.
    #[default]
    Frecency,
    /// Least recently used.
    Lru,
    /// Least frequently used, ever.
    Lfu,
    /// First in, first out, with a second chance for who was used meanwhile.
    Clock,
}

impl PolicyKind {
    /// All policies.
    pub const ALL: [Self; 4] = [Self::Lru, Self::Lfu, Self::Clock, Self::Frecency];

    /// A short name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frecency => "frecency",
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Clock => "clock",
        }
    }

    /// A policy over so many keys.
    pub fn build(self, n_keys: usize) -> Box<dyn Policy> {
        match self {
            Self::Frecency => Box::new(Frecency::new(n_keys, Frecency::USES_PER_HALF_LIFE)),
            Self::Lru => Box::new(Lru::new(n_keys)),
            Self::Lfu => Box::new(Lfu::new(n_keys)),
            Self::Clock => Box::new(Clock::new(n_keys)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hits of a trace of keys in a cache of so many.
    fn hits(policy: &mut dyn Policy, capacity: usize, trace: &[u32]) -> usize {
        let mut held = std::collections::BTreeSet::new();
        let mut hits = 0;
        for &key in trace {
            policy.used(key, 1);
            if held.contains(&key) {
                hits += 1;
                policy.must_stay(key);
            } else {
                if held.len() == capacity {
                    let victim = policy.take_victim().expect("all but this one may leave");
                    assert!(held.remove(&victim), "{victim} was there");
                }
                held.insert(key);
            }
            policy.may_leave(key);
        }
        hits
    }

    /// Zipf-like draws from 200 keys whose order of popularity changes after half of them.
    fn draws(n: usize) -> Vec<u32> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as f64 / f64::from(1_u32 << 31)
        };
        let key = |index: usize| {
            let rank = (200_f64.powf(next()) - 1.0) as u32;
            if index < n / 2 { rank } else { 199 - rank }
        };
        (0..n).map(key).collect()
    }

    #[test]
    fn the_right_one_leaves() {
        let trace = [1, 2, 3, 1, 4, 1, 2, 4, 5, 1];
        let hits = |mut policy: Box<dyn Policy>| hits(policy.as_mut(), 3, &trace);
        // 4 replaces 2, 2 replaces 3, 5 replaces 1: the last 1 misses.
        assert_eq!(hits(PolicyKind::Lru.build(6)), 3);
        // 5 replaces 2 or 4, and 1 stays.
        assert_eq!(hits(PolicyKind::Lfu.build(6)), 4);
        assert_eq!(hits(PolicyKind::Frecency.build(6)), 4);
        assert_eq!(hits(Box::new(Belady::new(6, trace.into_iter()))), 5);
    }

    #[test]
    fn nobody_beats_the_one_who_knows_the_future() {
        let trace = draws(20_000);
        let best = hits(&mut Belady::new(200, trace.iter().copied()), 20, &trace);
        for kind in PolicyKind::ALL {
            let hits = hits(kind.build(200).as_mut(), 20, &trace);
            assert!(hits < best && hits > best / 3, "{}: {hits} of {best}", kind.name());
        }
    }

    #[test]
    fn frecency_follows_a_change_that_frequency_does_not() {
        let trace = draws(20_000);
        let of = |kind: PolicyKind| hits(kind.build(200).as_mut(), 20, &trace);
        let [lru, lfu, clock, frecency] = PolicyKind::ALL.map(of);
        assert!(frecency > lru.max(lfu).max(clock), "{frecency} of {lru}, {lfu}, {clock}");
    }

    #[test]
    fn a_sweep_leaves_the_popular_ones_in_place() {
        let mut policy = Frecency::new(100, Frecency::USES_PER_HALF_LIFE);
        for key in 0..10 {
            policy.used(key, 40);
            policy.may_leave(key);
        }
        for key in 10..100 {
            policy.used(key, 1);
            policy.may_leave(key);
            assert_eq!(policy.take_victim(), Some(key));
        }
    }

    #[test]
    fn who_must_stay_does() {
        for kind in PolicyKind::ALL {
            let mut policy = kind.build(4);
            for key in [2, 0, 3] {
                policy.used(key, 1);
                policy.may_leave(key);
                policy.may_leave(key);
            }
            policy.must_stay(2);
            assert_eq!(policy.take_victim(), Some(0), "{}", kind.name());
            policy.may_leave(2);
            policy.must_stay(3);
            assert_eq!(policy.take_victim(), Some(2));
            assert_eq!(policy.take_victim(), None);
        }
    }
}
