//! What the engine did since the server started, as metrics and the page tell it.

use engine::{Scheduler, Step, Usage};

/// Sums over everything that was computed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Generations that run.
    pub(crate) running: usize,
    /// Requests that wait for their turn.
    pub(crate) waiting: usize,
    /// Generations that can run at once.
    pub(crate) capacity: usize,
    /// Tokens that were generated.
    pub(crate) generated: u64,
    /// What all passes cost.
    pub(crate) usage: Usage,
}

impl Facts {
    /// Adds a token.
    pub(crate) fn add(&mut self, step: &Step) {
        self.generated += u64::from(step.token.is_some());
    }

    /// Takes over what the scheduler counts itself.
    pub(crate) fn update(&mut self, scheduler: &Scheduler) {
        self.capacity = scheduler.capacity();
        self.usage = *scheduler.engine().usage();
    }
}
