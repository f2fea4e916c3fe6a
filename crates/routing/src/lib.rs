//! What a model's routing is like, and what follows from it: how large a cache should be, and whether
//! reading ahead pays.
//!
//! [`Analysis::of_trace`] needs a recorded trace only. [`collect`] runs a text through a model and keeps
//! what its routers said layers earlier, from which [`LookAhead::measure`] tells how well experts can
//! be guessed. All of it is deterministic, and nothing here prints.

#![forbid(unsafe_code)]

mod caches;
mod collect;
mod compare;
mod locality;
mod look_ahead;
mod predictor;
mod uses;

pub use caches::{CacheSize, DEFAULT_POLICY, Guesses, POLICIES, ReadAhead, n_experts, read_ahead};
pub use collect::{Collected, STRIDES, Sample, SampledLayer, Shape, collect};
pub use compare::{Comparison, Method, compare};
pub use linear::Matrix;
pub use locality::{Locality, Overlap, top_k};
pub use look_ahead::{Accuracy, CLASSES, Count, Guess};
pub use predictor::LowRank;
pub use uses::{Uses, by_popularity, coverage, experts_for};

use engine::cache::Trace;

/// Sizes that are simulated, as shares of all experts.
const SHARES: [f64; 13] = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Sizes for which reading ahead is measured.
const READ_AHEAD_SHARES: [f64; 4] = [0.1, 0.25, 0.5, 0.75];

/// What a trace tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// Passes of the trace.
    pub n_passes: usize,
    /// Passes that warm the caches and are not counted for them: the first quarter.
    pub n_warming: usize,
    /// Index of the first request that counts for caches.
    pub skip: usize,
    /// How much each expert is used.
    pub uses: Uses,
    /// How soon it is used again.
    pub locality: Locality,
    /// What caches hit, from small to large.
    pub caches: Vec<CacheSize>,
}

impl Analysis {
    /// Analyses a trace; tells `progress` the share that is done.
    pub fn of_trace(trace: &Trace, mut progress: impl FnMut(f64)) -> Self {
        let passes = passes(trace);
        let n_warming = passes.len() / 4;
        let skip = passes.get(n_warming).copied().unwrap_or(0);
        let uses = Uses::count(trace);
        let locality = Locality::measure(trace);
        let sizes = slots_of_shares(trace, &SHARES);
        let caches = sizes.iter().enumerate().map(|(index, &slots)| {
            progress(index as f64 / sizes.len() as f64);
            CacheSize::simulate(trace, slots, skip)
        });
        let caches = caches.collect();
        Self { n_passes: passes.len(), n_warming, skip, uses, locality, caches }
    }
}

/// How well the next layers' experts can be guessed, and what that is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct LookAhead {
    /// The model's own routers as guesses 1, 2, .. layers ahead, on the whole text.
    pub strides: Vec<Accuracy>,
    /// By number of slots: what reading ahead would do, by stride.
    pub read_ahead: Vec<(usize, Vec<ReadAhead>)>,
    /// Other ways to guess one layer ahead, if the text is long enough to train on.
    pub comparison: Option<Comparison>,
}

impl LookAhead {
    /// Measures what was collected, with trained maps of so many ranks; tells `progress` how many layers
    /// were trained.
    pub fn measure(
        collected: &Collected,
        analysis: &Analysis,
        rank: usize,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Self {
        let Collected { trace, guesses, strides, .. } = collected;
        let sizes = slots_of_shares(trace, &READ_AHEAD_SHARES);
        let read_ahead = sizes
            .into_iter()
            .map(|slots| (slots, read_ahead(trace, guesses, slots, analysis.skip)));
        Self {
            strides: strides.clone(),
            read_ahead: read_ahead.collect(),
            comparison: compare(collected, rank, progress),
        }
    }
}

/// Index of each pass's first request: a pass begins where the layer does not rise.
pub fn passes(trace: &Trace) -> Vec<usize> {
    let is_begin = |&index: &usize| {
        index == 0 || trace.requests[index].layer <= trace.requests[index - 1].layer
    };
    (0..trace.requests.len()).filter(is_begin).collect()
}

/// Numbers of slots, each at least 1 and none twice.
fn slots_of_shares(trace: &Trace, shares: &[f64]) -> Vec<usize> {
    let n_experts = n_experts(trace) as f64;
    let mut slots: Vec<usize> =
        shares.iter().map(|share| ((share * n_experts) as usize).max(1)).collect();
    slots.dedup();
    slots
}
