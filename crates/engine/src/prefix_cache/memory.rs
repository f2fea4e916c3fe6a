//! Entries in memory, within a bound: what was not used for longest leaves.

use std::collections::{BTreeMap, HashMap};

use model::SavedParts;

use crate::prefix_cache::EntryId;

/// What an entry takes beside its bytes: its places in two maps, its lists of parts.
const ENTRY_BYTES: u64 = 512;

/// Entries by use.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: u64,
    bytes: u64,
    entries: HashMap<EntryId, Entry>,
    /// Entries by the time of their last use.
    order: BTreeMap<u64, EntryId>,
    clock: u64,
    n_evicted: u64,
}

#[derive(Debug)]
struct Entry {
    parts: SavedParts,
    used: u64,
    /// Its session will replace it by a later one, unless somebody keeps it.
    is_passing: bool,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            bytes: 0,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            n_evicted: 0,
        }
    }

    /// What an entry with so many bytes takes.
    pub(crate) fn cost(bytes: u64) -> u64 {
        bytes + ENTRY_BYTES
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn n_evicted(&self) -> u64 {
        self.n_evicted
    }

    pub(crate) fn contains(&self, id: EntryId) -> bool {
        self.entries.contains_key(&id)
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&SavedParts> {
        self.entries.get(&id).map(|entry| &entry.parts)
    }

    /// Makes an entry the one used last, if it is there.
    pub(crate) fn touch(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.order.remove(&entry.used);
            self.clock += 1;
            entry.used = self.clock;
            self.order.insert(self.clock, id);
        }
    }

    /// Lets entries go until so much is free.
    pub(crate) fn make_room(&mut self, cost: u64) {
        while self.bytes + cost > self.limit {
            let Some((_, id)) = self.order.first_key_value() else {
                return;
            };
            self.remove(*id);
            self.n_evicted += 1;
        }
    }

    /// Adds an entry as the one used last, if it fits at all and is not there; tells whether it did.
    pub(crate) fn insert(&mut self, id: EntryId, parts: SavedParts, is_passing: bool) -> bool {
        let cost = cost_of(&parts);
        if cost > self.limit || self.contains(id) {
            return false;
        }
        self.make_room(cost);
        self.clock += 1;
        self.bytes += cost;
        self.order.insert(self.clock, id);
        self.entries.insert(id, Entry { parts, used: self.clock, is_passing });
        true
    }

    /// Keeps an entry that its session would have replaced.
    pub(crate) fn keep(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_passing = false;
        }
    }

    /// Removes an entry that nobody kept.
    pub(crate) fn remove_passing(&mut self, id: EntryId) {
        if self.entries.get(&id).is_some_and(|entry| entry.is_passing) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.order.remove(&entry.used);
            self.bytes -= cost_of(&entry.parts);
        }
    }
}

fn cost_of(parts: &SavedParts) -> u64 {
    Memory::cost(parts.iter().map(|part| part.len() as u64).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::Kind;
    use crate::prefix_cache::key::Key;

    fn id(n: u8) -> EntryId {
        EntryId { key: Key([n; 32]), kind: Kind::KeysAndValues }
    }

    #[test]
    fn the_bound_holds_and_the_longest_unused_leaves() {
        let cost = Memory::cost(1000);
        let mut memory = Memory::new(3 * cost);
        for n in 0..3 {
            assert!(memory.insert(id(n), vec![vec![0; 400], vec![0; 600]], false));
        }
        memory.touch(id(0));
        assert!(memory.insert(id(3), vec![vec![0; 1000]], false));
        assert!(!memory.insert(id(3), vec![vec![0; 1000]], false), "it is there");
        assert_eq!([0, 1, 2, 3].map(|n| memory.contains(id(n))), [true, false, true, true]);
        assert_eq!((memory.bytes(), memory.n_evicted()), (3 * cost, 1));
        assert!(!memory.insert(id(4), vec![vec![0; 5000]], false), "it never fits");
        assert_eq!(memory.len(), 3);
        memory.make_room(2 * cost);
        assert_eq!((memory.len(), memory.contains(id(3))), (1, true));
    }

    #[test]
    fn what_passes_is_removed_unless_somebody_keeps_it() {
        let mut memory = Memory::new(1 << 20);
        memory.insert(id(0), vec![vec![0]], true);
        memory.insert(id(1), vec![vec![0]], true);
        memory.keep(id(1));
        memory.remove_passing(id(0));
        memory.remove_passing(id(1));
        assert_eq!([0, 1].map(|n| memory.contains(id(n))), [false, true]);
    }
}
