//! What the engine did since the server started, as metrics and the page tell it.

use engine::{Scheduler, SchedulerStats, Usage};

/// Sums over everything that was computed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Requests that wait for their turn.
    pub(crate) waiting: usize,
    /// Generations that can run at once.
    pub(crate) capacity: usize,
    /// What the scheduler counts.
    pub(crate) scheduler: SchedulerStats,
    /// What all passes cost.
    pub(crate) usage: Usage,
}

impl Facts {
    /// As things are now.
    pub(crate) fn of(scheduler: &Scheduler) -> Self {
        Self {
            waiting: 0,
            capacity: scheduler.capacity(),
            scheduler: scheduler.stats(),
            usage: *scheduler.engine().usage(),
        }
    }
}
