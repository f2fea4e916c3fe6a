//! Who is next: a bounded queue with a lane for each client, served in turn.

use std::collections::VecDeque;

/// Waiting entries of many clients, and places for entries that are being made. Each client in turn gives one,
/// so that who asks for much waits for himself and not the others for him.
#[derive(Debug)]
pub(crate) struct FairQueue<C, T> {
    /// Clients that wait for something, the next one first.
    lanes: VecDeque<Lane<C, T>>,
    limit: usize,
    next_place: u64,
}

#[derive(Debug)]
struct Lane<C, T> {
    client: C,
    entries: VecDeque<T>,
    /// The oldest first, each with the number of its entries.
    places: Vec<(Place, usize)>,
}

impl<C, T> Lane<C, T> {
    fn weight(&self) -> usize {
        self.entries.len() + self.places.iter().map(|place| place.1).sum::<usize>()
    }
}

/// A place for entries that are being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl<C: PartialEq, T> FairQueue<C, T> {
    /// An empty queue for so many entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self { lanes: VecDeque::new(), limit, next_place: 0 }
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.entries.len()).sum()
    }

    /// The most entries.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Keeps a place for so many entries. Where there is no room, the newest of the client that waits for most
    /// must go, unless it would then wait for less than this one; they are returned.
    pub(crate) fn reserve(&mut self, client: C, n: usize) -> Option<(Place, Vec<T>)> {
        let total: usize = self.lanes.iter().map(Lane::weight).sum();
        let excess = (total + n).saturating_sub(self.limit);
        let own = self.lanes.iter().find(|lane| lane.client == client).map_or(0, Lane::weight);
        let mut evicted = Vec::new();
        if excess > 0 {
            let longest = self.lanes.iter_mut().max_by_key(|lane| lane.weight())?;
            let after = longest.weight().checked_sub(excess)?;
            if after < own + n {
                return None;
            }
            while longest.weight() > after {
                if longest.places.pop().is_none() {
                    evicted.extend(longest.entries.pop_back());
                }
            }
        }
        let place = Place(self.next_place);
        self.next_place += 1;
        self.lane(client).places.push((place, n));
        Some((place, evicted))
    }

    /// Gives a place up; `false` when it was lost to others.
    pub(crate) fn give_up(&mut self, place: Place) -> bool {
        let mut is_held = false;
        for lane in &mut self.lanes {
            lane.places.retain(|held| {
                is_held |= held.0 == place;
                held.0 != place
            });
        }
        self.drop_empty();
        is_held
    }

    /// Adds an entry; the caller has given up a place for it.
    pub(crate) fn push(&mut self, client: C, entry: T) {
        self.lane(client).entries.push_back(entry);
    }

    /// Takes the next entry.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let next = self.lanes.iter().position(|lane| !lane.entries.is_empty())?;
        let mut lane = self.lanes.remove(next)?;
        let entry = lane.entries.pop_front();
        if lane.weight() > 0 {
            self.lanes.push_back(lane);
        }
        entry
    }

    /// Removes entries.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for lane in &mut self.lanes {
            lane.entries.retain_mut(&mut keep);
        }
        self.drop_empty();
    }

    /// The lane of a client, which is the last if it is new.
    fn lane(&mut self, client: C) -> &mut Lane<C, T> {
        let known = self.lanes.iter().position(|lane| lane.client == client);
        let index = known.unwrap_or_else(|| {
            self.lanes.push_back(Lane { client, entries: VecDeque::new(), places: Vec::new() });
            self.lanes.len() - 1
        });
        &mut self.lanes[index]
    }

    fn drop_empty(&mut self) {
        self.lanes.retain(|lane| lane.weight() > 0);
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
    fn the_bound_counts_places_and_what_is_removed_makes_room() {
        let mut queue = FairQueue::new(3);
        assert!(queue.reserve("a", 4).is_none());
        let (place, _) = queue.reserve("a", 1).expect("there is room");
        queue.push("a", 0);
        queue.push("a", 1);
        assert!(queue.reserve("a", 1).is_none(), "a place is as good as an entry");
        assert_eq!(queue.len(), 2);
        assert!(queue.give_up(place) && !queue.give_up(place));
        queue.push("a", 2);
        assert!(queue.reserve("a", 1).is_none());
        queue.retain(|entry| *entry != 1);
        assert!(queue.reserve("a", 1).is_some());
        assert_eq!(drain(&mut queue), [0, 2]);
    }

    #[test]
    fn who_fills_the_queue_locks_nobody_out() {
        let mut queue = FairQueue::new(4);
        for entry in [1, 2, 3] {
            queue.push("many", entry);
        }
        let (lost, _) = queue.reserve("many", 1).expect("there is room");
        let (first, evicted) = queue.reserve("one", 1).expect("many has more");
        assert_eq!((queue.give_up(lost), evicted), (false, vec![]), "the newest is the place");
        assert!(queue.give_up(first));
        queue.push("one", 10);
        let (_, evicted) = queue.reserve("two", 1).expect("many has more");
        assert_eq!(evicted, [3]);
        assert!(queue.reserve("two", 1).is_none(), "many would have less than two has");
        assert!(queue.reserve("many", 1).is_none(), "nobody has more");
        assert_eq!(drain(&mut queue), [1, 10, 2]);
    }
}
