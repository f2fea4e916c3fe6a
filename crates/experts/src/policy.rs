//! Which expert leaves when another needs its slot.

/// An eviction policy over slots. Every operation takes constant time, but for the slots that may not
/// leave, which [`Policy::victim`] passes over.
pub trait Policy: Send {
    /// A slot was filled with a new expert.
    fn insert(&mut self, slot: usize);
    /// A slot's expert was used.
    fn touch(&mut self, slot: usize);
    /// A slot is empty again.
    fn remove(&mut self, slot: usize);
    /// The slot whose expert should leave, of those that may.
    fn victim(&self, may_leave: &mut dyn FnMut(usize) -> bool) -> Option<usize>;
}

/// Least recently used leaves first.
#[derive(Debug)]
pub struct Lru(SlotList);

impl Lru {
    /// For so many slots.
    pub fn new(n_slots: usize) -> Self {
        Self(SlotList::new(n_slots))
    }
}

impl Policy for Lru {
    fn insert(&mut self, slot: usize) {
        self.0.push_back(slot);
    }

    fn touch(&mut self, slot: usize) {
        self.0.unlink(slot);
        self.0.push_back(slot);
    }

    fn remove(&mut self, slot: usize) {
        self.0.unlink(slot);
    }

    fn victim(&self, may_leave: &mut dyn FnMut(usize) -> bool) -> Option<usize> {
        self.0.iter().find(|&slot| may_leave(slot))
    }
}

/// First in leaves first: the baseline that any policy has to beat.
#[derive(Debug)]
pub struct Fifo(SlotList);

impl Fifo {
    /// For so many slots.
    pub fn new(n_slots: usize) -> Self {
        Self(SlotList::new(n_slots))
    }
}

impl Policy for Fifo {
    fn insert(&mut self, slot: usize) {
        self.0.push_back(slot);
    }

    fn touch(&mut self, _: usize) {}

    fn remove(&mut self, slot: usize) {
        self.0.unlink(slot);
    }

    fn victim(&self, may_leave: &mut dyn FnMut(usize) -> bool) -> Option<usize> {
        self.0.iter().find(|&slot| may_leave(slot))
    }
}

/// A list of slots, linked both ways inside two arrays. The entry behind the last slot is the list's
/// head: it precedes the first slot and follows the last.
#[derive(Debug)]
struct SlotList {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl SlotList {
    /// An empty list; a slot outside it is linked to itself.
    fn new(n_slots: usize) -> Self {
        let links: Vec<usize> = (0..=n_slots).collect();
        Self { next: links.clone(), previous: links }
    }

    fn head(&self) -> usize {
        self.next.len() - 1
    }

    fn push_back(&mut self, slot: usize) {
        let head = self.head();
        let last = self.previous[head];
        (self.previous[slot], self.next[slot]) = (last, head);
        self.next[last] = slot;
        self.previous[head] = slot;
    }

    fn unlink(&mut self, slot: usize) {
        let (previous, next) = (self.previous[slot], self.next[slot]);
        self.next[previous] = next;
        self.previous[next] = previous;
        (self.previous[slot], self.next[slot]) = (slot, slot);
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let head = self.head();
        let follow = move |&slot: &usize| Some(self.next[slot]).filter(|&next| next != head);
        std::iter::successors(follow(&head), follow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hits of a trace of keys in a cache with so many slots.
    fn hits(policy: &mut dyn Policy, n_slots: usize, trace: &[u32]) -> usize {
        let mut slots: Vec<u32> = Vec::new();
        let mut hits = 0;
        for &key in trace {
            if let Some(slot) = slots.iter().position(|&held| held == key) {
                policy.touch(slot);
                hits += 1;
            } else if slots.len() < n_slots {
                slots.push(key);
                policy.insert(slots.len() - 1);
            } else {
                let slot = policy.victim(&mut |_| true).expect("all may leave");
                policy.remove(slot);
                slots[slot] = key;
                policy.insert(slot);
            }
        }
        hits
    }

    #[test]
    fn the_right_one_leaves() {
        let trace = [1, 2, 3, 1, 4, 1, 2];
        // LRU: 4 replaces 2, so that 1 hits and 2 misses. FIFO: 4 replaces 1.
        assert_eq!(hits(&mut Lru::new(3), 3, &trace), 2);
        assert_eq!(hits(&mut Fifo::new(3), 3, &trace), 1);
    }

    #[test]
    fn recency_beats_order_of_arrival_on_popular_keys() {
        // Every other access goes to a few popular keys.
        let key = |i: u32| if i.is_multiple_of(2) { i / 2 % 6 } else { 100 + i * i % 199 };
        let trace: Vec<u32> = (0..4000).map(key).collect();
        let (lru, fifo) =
            (hits(&mut Lru::new(16), 16, &trace), hits(&mut Fifo::new(16), 16, &trace));
        assert!(lru > fifo, "LRU {lru}, FIFO {fifo}");
    }

    #[test]
    fn who_may_not_leave_is_passed_over() {
        let mut lru = Lru::new(4);
        for slot in [2, 0, 3] {
            lru.insert(slot);
        }
        assert_eq!(lru.victim(&mut |slot| slot != 2), Some(0));
        lru.touch(2);
        lru.remove(0);
        assert_eq!(lru.victim(&mut |_| true), Some(3));
        assert_eq!(lru.victim(&mut |_| false), None);
    }
}
