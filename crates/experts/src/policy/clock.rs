//! First in, first out, with a second chance: the cheapest approximation of LRU.

use std::collections::VecDeque;

use super::Policy;

/// First in, first out, with a second chance for who was used since the hand passed.
#[derive(Debug)]
pub struct Clock {
    /// Keys in memory, beginning at the hand.
    ring: VecDeque<u32>,
    keys: Vec<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_in_ring: bool,
    may_leave: bool,
    was_used: bool,
}

impl Clock {
    /// For so many keys.
    pub fn new(n_keys: usize) -> Self {
        Self { ring: VecDeque::with_capacity(n_keys), keys: vec![State::default(); n_keys] }
    }
}

impl Policy for Clock {
    fn used(&mut self, key: u32, _: u32) {
        let state = &mut self.keys[key as usize];
        state.was_used = state.is_in_ring;
    }

    fn may_leave(&mut self, key: u32) {
        let state = &mut self.keys[key as usize];
        state.may_leave = true;
        if !state.is_in_ring {
            state.is_in_ring = true;
            self.ring.push_back(key);
        }
    }

    fn must_stay(&mut self, key: u32) {
        self.keys[key as usize].may_leave = false;
    }

    fn take_victim(&mut self) -> Option<u32> {
        // The first round takes away second chances.
        for _ in 0..2 * self.ring.len() {
            let key = self.ring.pop_front()?;
            let state = &mut self.keys[key as usize];
            if state.may_leave && !state.was_used {
                *state = State::default();
                return Some(key);
            }
            state.was_used &= !state.may_leave;
            self.ring.push_back(key);
        }
        None
    }
}
