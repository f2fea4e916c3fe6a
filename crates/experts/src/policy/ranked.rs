//! Policies that give each key a rank; the lowest of those that may leave does.

use std::collections::HashMap;

use super::Policy;

/// Least recently used leaves first.
#[derive(Debug)]
pub struct Lru(Ranks);

impl Lru {
    /// For so many keys.
    pub fn new(n_keys: usize) -> Self {
        Self(Ranks::new(n_keys))
    }
}

/// Least often used leaves first; of two alike, the one used less recently.
#[derive(Debug)]
pub struct Lfu(Ranks);

impl Lfu {
    /// For so many keys.
    pub fn new(n_keys: usize) -> Self {
        Self(Ranks::new(n_keys))
    }
}

/// Frequency and recency together: a key is worth the sum over its uses of `2^-age`, where ages are
/// counted in half-lives, and the key that is worth least leaves first.
///
/// As all keys age alike, their order changes only when one is used, so the rank kept is the
/// logarithm of the worth at time zero. Keys that are not in memory keep their rank: they are the
/// ghosts that other policies keep lists for. A prompt's chunk counts for what it is: an expert that
/// many rows want is worth many uses, one that a single row wants leaves soon, so sweeping through all
/// experts once leaves the popular ones in place.
#[derive(Debug)]
pub struct Frecency {
    ranks: Ranks,
    /// Uses of all keys so far.
    clock: f64,
    uses_per_half_life: f64,
}

impl Frecency {
    /// Uses of an average key until an old use counts half. On recorded routing, 4 to 64 differ by
    /// a tenth of a point of hit rate (`docs/experiments.md`); fewer follow a change of
    /// subject sooner.
    pub const USES_PER_HALF_LIFE: f64 = 4.0;

    /// For so many keys, with a half-life of so many uses of each.
    pub fn new(n_keys: usize, uses_per_half_life: f64) -> Self {
        let ranks = Ranks::new(n_keys);
        Self { ranks, clock: 0.0, uses_per_half_life: uses_per_half_life * n_keys as f64 }
    }
}

/// Who is used again last leaves first: the best that can be done, for those who know the future.
#[derive(Debug)]
pub struct Belady {
    ranks: Ranks,
    /// For each key, when it is used, latest first.
    future: HashMap<u32, Vec<usize>>,
}

impl Belady {
    /// For so many keys and all uses that will come.
    pub fn new(n_keys: usize, uses: impl DoubleEndedIterator<Item = u32>) -> Self {
        let mut future: HashMap<u32, Vec<usize>> = HashMap::new();
        for (time, key) in uses.rev().enumerate() {
            // Counted from the end: what is used last has the lowest time.
            future.entry(key).or_default().push(time + 1);
        }
        Self { ranks: Ranks::new(n_keys), future }
    }
}

impl Policy for Lru {
    fn used(&mut self, key: u32, _: u32) {
        self.0.set(key, 0.0);
    }

    fn may_leave(&mut self, key: u32) {
        self.0.insert(key);
    }

    fn must_stay(&mut self, key: u32) {
        self.0.remove(key);
    }

    fn take_victim(&mut self) -> Option<u32> {
        self.0.pop()
    }
}

impl Policy for Lfu {
    fn used(&mut self, key: u32, uses: u32) {
        self.0.set(key, self.0.get(key).max(0.0) + f64::from(uses));
    }

    fn may_leave(&mut self, key: u32) {
        self.0.insert(key);
    }

    fn must_stay(&mut self, key: u32) {
        self.0.remove(key);
    }

    fn take_victim(&mut self) -> Option<u32> {
        self.0.pop()
    }
}

impl Policy for Frecency {
    fn used(&mut self, key: u32, uses: u32) {
        self.clock += f64::from(uses);
        let old = self.ranks.get(key);
        let new = self.clock / self.uses_per_half_life + f64::from(uses.max(1)).log2();
        // log2(2^old + 2^new) without leaving the range of numbers.
        let rank = old.max(new) + (-(old - new).abs()).exp2().ln_1p() * std::f64::consts::LOG2_E;
        self.ranks.set(key, rank);
    }

    fn may_leave(&mut self, key: u32) {
        self.ranks.insert(key);
    }

    fn must_stay(&mut self, key: u32) {
        self.ranks.remove(key);
    }

    fn take_victim(&mut self) -> Option<u32> {
        self.ranks.pop()
    }

    fn worth(&self, key: u32) -> Option<f64> {
        let rank = self.ranks.get(key);
        (rank > f64::NEG_INFINITY).then(|| rank - self.clock / self.uses_per_half_life)
    }

    fn recall(&mut self, key: u32, worth: f64) {
        self.ranks.set(key, worth + self.clock / self.uses_per_half_life);
    }
}

impl Policy for Belady {
    fn used(&mut self, key: u32, _: u32) {
        let times = self.future.get_mut(&key);
        let next = times.and_then(|times| {
            times.pop();
            times.last().copied()
        });
        self.ranks.set(key, next.unwrap_or(0) as f64);
    }

    fn may_leave(&mut self, key: u32) {
        self.ranks.insert(key);
    }

    fn must_stay(&mut self, key: u32) {
        self.ranks.remove(key);
    }

    fn take_victim(&mut self) -> Option<u32> {
        self.ranks.pop()
    }
}

/// Ranks of all keys, and a binary heap of those that may leave, lowest first. Of equal ranks the one
/// set earlier is lower.
#[derive(Debug)]
struct Ranks {
    ranks: Vec<(f64, u64)>,
    n_set: u64,
    heap: Vec<u32>,
    /// Where in the heap a key is.
    places: Vec<u32>,
}

const NOWHERE: u32 = u32::MAX;

impl Ranks {
    fn new(n_keys: usize) -> Self {
        Self {
            ranks: vec![(f64::NEG_INFINITY, 0); n_keys],
            n_set: 0,
            heap: Vec::with_capacity(n_keys),
            places: vec![NOWHERE; n_keys],
        }
    }

    fn get(&self, key: u32) -> f64 {
        self.ranks[key as usize].0
    }

    fn set(&mut self, key: u32, rank: f64) {
        self.n_set += 1;
        self.ranks[key as usize] = (rank, self.n_set);
        let place = self.places[key as usize];
        if place != NOWHERE {
            self.settle(place as usize);
        }
    }

    fn insert(&mut self, key: u32) {
        if self.places[key as usize] == NOWHERE {
            self.places[key as usize] = self.heap.len() as u32;
            self.heap.push(key);
            self.settle(self.heap.len() - 1);
        }
    }

    fn remove(&mut self, key: u32) {
        let place = self.places[key as usize];
        if place != NOWHERE {
            self.places[key as usize] = NOWHERE;
            self.heap.swap_remove(place as usize);
            if let Some(&moved) = self.heap.get(place as usize) {
                self.places[moved as usize] = place;
                self.settle(place as usize);
            }
        }
    }

    fn pop(&mut self) -> Option<u32> {
        let lowest = *self.heap.first()?;
        self.remove(lowest);
        Some(lowest)
    }

    /// Moves the key at a place up or down to where its rank belongs.
    fn settle(&mut self, mut place: usize) {
        while place > 0 && self.is_lower(place, (place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        loop {
            let mut lowest = place;
            for child in [2 * place + 1, 2 * place + 2] {
                if child < self.heap.len() && self.is_lower(child, lowest) {
                    lowest = child;
                }
            }
            if lowest == place {
                return;
            }
            self.swap(place, lowest);
            place = lowest;
        }
    }

    fn is_lower(&self, a: usize, b: usize) -> bool {
        self.ranks[self.heap[a] as usize] < self.ranks[self.heap[b] as usize]
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.places[self.heap[a] as usize] = a as u32;
        self.places[self.heap[b] as usize] = b as u32;
    }
}
