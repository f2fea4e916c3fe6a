//! A session: one mutable timeline of tokens with the state that they left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::prefix_cache::trail::Trail;
use crate::runner::State;

/// A sequence of tokens and the model's state after them. Made by [`crate::Engine::session`]; dropping
/// it frees its memory for another.
pub struct Session {
    pub(crate) tokens: Vec<u32>,
    pub(crate) state: State,
    pub(crate) context: usize,
    /// A failed pass leaves the state between two tokens.
    pub(crate) broken: bool,
    pub(crate) trail: Trail,
    _permit: Permit,
}

impl Session {
    pub(crate) fn new(state: State, context: usize, permit: Permit) -> Self {
        Self {
            tokens: Vec::with_capacity(context),
            state,
            context,
            broken: false,
            trail: Trail::default(),
            _permit: permit,
        }
    }

    /// The tokens computed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Most tokens that the session can hold.
    pub fn context(&self) -> usize {
        self.context
    }
}

/// The right to hold one of the sessions that memory was reserved for.
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Takes one of `limit` permits, of which `taken` counts those in use.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let take = |n: usize| (n < limit).then_some(n + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
