//! Where the time of a GPU went while tokens were decoded one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Event, Kind};

/// Where the time of a GPU went in the passes of a single token, from the beginning of each to that of the next.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelReport {
    /// How many such passes there were.
    pub tokens: u64,
    /// The time of all of them.
    pub wall: Duration,
    /// In it no kernel ran between kernels that were handed over together.
    pub between_kernels: Duration,
    /// In it no kernel ran before the first of those that were handed over together, or after all.
    pub between_submissions: Duration,
    /// By how much the GPU's clock may be off the host's, at the end.
    pub uncertainty: Duration,
    /// The kernels by name, those that took most time first.
    pub kernels: Vec<KernelTotal>,
}

/// All runs of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTotal {
    /// Its name.
    pub name: &'static str,
    /// How often it ran.
    pub count: u64,
    /// How long, in all.
    pub time: Duration,
}

impl KernelReport {
    /// Of events in the order of time.
    pub(crate) fn of(events: &[Event]) -> Option<Self> {
        let mut totals: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        let mut kernels =
            events.iter().filter(|event| matches!(event.kind, Kind::Kernel { .. })).peekable();
        let mut passes = events.iter().filter(|event| event.kind == Kind::Pass).peekable();
        let (mut tokens, mut wall, mut between, mut waiting) = (0, 0, 0, 0);
        let mut uncertainty_ns = 0;
        while let Some(pass) = passes.next() {
            if pass.amount != 1 {
                continue;
            }
            let end_ns = passes.peek().map_or(pass.end_ns, |next| next.begin_ns);
            while kernels.next_if(|kernel| kernel.begin_ns < pass.begin_ns).is_some() {}
            let mut free_since = pass.begin_ns;
            while let Some(kernel) = kernels.next_if(|kernel| kernel.begin_ns < end_ns) {
                let gap = kernel.begin_ns.saturating_sub(free_since);
                match kernel.kind {
                    Kind::Kernel { is_first: false } => between += gap,
                    _ => waiting += gap,
                }
                let (count, time) = totals.entry(kernel.name).or_default();
                *count += 1;
                *time += kernel.end_ns.saturating_sub(kernel.begin_ns);
                free_since = kernel.end_ns;
                uncertainty_ns = kernel.amount;
            }
            waiting += end_ns.saturating_sub(free_since);
            wall += end_ns.saturating_sub(pass.begin_ns);
            tokens += 1;
        }
        if totals.is_empty() {
            return None;
        }
        let total =
            |(name, (count, time))| KernelTotal { name, count, time: Duration::from_nanos(time) };
        let mut kernels: Vec<KernelTotal> = totals.into_iter().map(total).collect();
        kernels.sort_by_key(|kernel| std::cmp::Reverse(kernel.time));
        Some(Self {
            tokens,
            wall: Duration::from_nanos(wall),
            between_kernels: Duration::from_nanos(between),
            between_submissions: Duration::from_nanos(waiting),
            uncertainty: Duration::from_nanos(uncertainty_ns),
            kernels,
        })
    }
}
