//! Who is next: a bounded queue with a lane for each client, served in turn.

use std::collections::VecDeque;

/// Waiting entries of many clients. Each client in turn gives one, so that who asks for much waits for
/// himself and not the others for him.
#[derive(Debug)]
pub(crate) struct FairQueue<C, T> {
    /// Clients that wait for something, the next one first.
    lanes: VecDeque<(C, VecDeque<T>)>,
    len: usize,
    limit: usize,
}

impl<C: PartialEq, T> FairQueue<C, T> {
    /// An empty queue for so many entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self { lanes: VecDeque::new(), len: 0, limit }
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether so many more would be too many.
    pub(crate) fn is_full_for(&self, more: usize) -> bool {
        self.len + more > self.limit
    }

    /// Adds an entry; the caller has asked whether there is room.
    pub(crate) fn push(&mut self, client: C, entry: T) {
        self.len += 1;
        match self.lanes.iter_mut().find(|lane| lane.0 == client) {
            Some(lane) => lane.1.push_back(entry),
            None => self.lanes.push_back((client, VecDeque::from([entry]))),
        }
    }

    /// Takes the next entry.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (client, mut lane) = self.lanes.pop_front()?;
        let entry = lane.pop_front()?;
        self.len -= 1;
        if !lane.is_empty() {
            self.lanes.push_back((client, lane));
        }
        Some(entry)
    }

    /// Removes entries.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for (_, lane) in &mut self.lanes {
            lane.retain_mut(&mut keep);
        }
        self.lanes.retain(|lane| !lane.1.is_empty());
        self.len = self.lanes.iter().map(|lane| lane.1.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut FairQueue<&str, u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn clients_take_turns_and_keep_their_own_order() {
        let mut queue = FairQueue::new(10);
        for entry in [1, 2, 3, 4] {
            queue.push("many", entry);
        }
        queue.push("one", 10);
        queue.push("two", 20);
        queue.push("two", 21);
        assert_eq!(drain(&mut queue), [1, 10, 20, 2, 21, 3, 4]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn who_comes_again_does_not_overtake() {
        let mut queue = FairQueue::new(10);
        queue.push("a", 1);
        queue.push("b", 2);
        assert_eq!(queue.pop(), Some(1));
        queue.push("a", 3);
        assert_eq!(drain(&mut queue), [2, 3]);
    }

    #[test]
    fn the_bound_counts_all_and_what_is_removed_makes_room() {
        let mut queue = FairQueue::new(3);
        assert!(!queue.is_full_for(3) && queue.is_full_for(4));
        for entry in 0..3 {
            queue.push("a", entry);
        }
        assert!(queue.is_full_for(1));
        queue.retain(|entry| *entry != 1);
        assert_eq!(queue.len(), 2);
        assert!(!queue.is_full_for(1));
        assert_eq!(drain(&mut queue), [0, 2]);
    }
}
