//! The prefix cache: states of sequences that began as others did, so that only what is new is computed.
//!
//! A prefix is known by a hash of all its tokens, block by block ([`key`]). Keys and values are kept of
//! every block of a sequence; recurrent states, which are large and change with every token, only at
//! some ends of blocks ([`trail`]). A sequence is taken up at the last end of a block up to which there
//! are all keys and values, and at which there is a state. What is taken up has the bits that computing
//! it would have given, so the cache changes no answer.
//!
//! Entries are in memory ([`memory`]) and, if a directory is given, on the drive ([`disk`]), each within
//! a bound.

mod disk;
pub(crate) mod file;
pub(crate) mod key;
mod memory;
pub(crate) mod stats;
pub(crate) mod trail;

use std::borrow::Cow;
use std::path::PathBuf;

use compute::{Backend, STATE_BLOCK};
use model::{Decoder, SavedParts, SavedShape};

use crate::error::Error;
use crate::prefix_cache::disk::Disk;
use crate::prefix_cache::key::Key;
use crate::prefix_cache::memory::Memory;
use crate::prefix_cache::stats::PrefixCacheStats;
use crate::runner::{Runner, State};

/// What the prefix cache may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixCacheOptions {
    /// Bytes of memory; they are part of the memory budget.
    pub memory_bytes: u64,
    /// Where it is kept for other processes and later runs; several may share the directory.
    pub directory: Option<PathBuf>,
    /// Bytes of the files in the directory, of all models together.
    pub disk_bytes: u64,
}

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The keys and values of the last block of a prefix.
    KeysAndValues,
    /// The recurrent states after a prefix.
    Recurrent,
}

/// Names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EntryId {
    /// The prefix.
    pub(crate) key: Key,
    pub(crate) kind: Kind,
}

fn keys_and_values(key: Key) -> EntryId {
    EntryId { key, kind: Kind::KeysAndValues }
}

fn recurrent(key: Key) -> EntryId {
    EntryId { key, kind: Kind::Recurrent }
}

/// What entries of a model are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shapes {
    pub(crate) keys_and_values: SavedShape,
    pub(crate) recurrent: SavedShape,
}

impl Shapes {
    /// Those of a model on a device.
    pub(crate) fn new<M, V, B: Backend>(decoder: &Decoder<M, V>, backend: &B) -> Self {
        Self {
            keys_and_values: decoder.kv_block_shape(backend),
            recurrent: decoder.snapshot_shape(backend),
        }
    }

    fn of(&self, kind: Kind) -> SavedShape {
        match kind {
            Kind::KeysAndValues => self.keys_and_values,
            Kind::Recurrent => self.recurrent,
        }
    }

    /// Whether there are recurrent states; without, a sequence can be taken up after any block.
    fn has_recurrent(&self) -> bool {
        self.recurrent.n_parts > 0
    }

    /// The least that memory must hold to be of any use: an entry of each kind.
    pub(crate) fn least_memory(&self) -> u64 {
        Memory::cost(self.keys_and_values.bytes()) + Memory::cost(self.recurrent.bytes())
    }
}

/// Where a sequence is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Memory,
    MemoryAndDrive,
}

/// Recurrent states of a sequence that its keys and values leave room for: that at the end of its prompt,
/// and that at its end.
const LATEST_STATES: usize = 2;

/// The prefix cache of an engine.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    root: Key,
    shapes: Shapes,
    memory: Memory,
    disk: Option<Disk>,
    stats: PrefixCacheStats,
}

/// How much of a sequence was found.
pub(crate) struct Restored {
    /// Blocks whose state was taken up.
    pub(crate) n_blocks: usize,
    /// Blocks of which there are keys and values, if they are more: another sequence went on from there.
    pub(crate) branch: Option<usize>,
}

impl PrefixCache {
    /// For a model and build of this identity.
    pub(crate) fn new(
        options: &PrefixCacheOptions,
        root: Key,
        shapes: Shapes,
    ) -> Result<Self, Error> {
        let disk = options.directory.as_ref().map(|directory| {
            let disk = Disk::open(directory, options.disk_bytes, root, shapes);
            disk.map_err(|source| Error::PrefixCacheDirectory { path: directory.clone(), source })
        });
        Ok(Self {
            root,
            shapes,
            memory: Memory::new(options.memory_bytes),
            disk: disk.transpose()?,
            stats: PrefixCacheStats::default(),
        })
    }

    /// Appends the keys of the blocks of `tokens` that have none yet.
    pub(crate) fn extend_chain(&self, tokens: &[u32], keys: &mut Vec<Key>) {
        self.root.extend_chain(tokens, keys);
    }

    /// Takes up the longest known beginning of a sequence of `n_tokens` with these keys in a fresh
    /// state.
    pub(crate) fn restore(
        &mut self,
        runner: &dyn Runner,
        state: &mut State,
        fresh: &dyn Fn() -> State,
        keys: &[Key],
        n_tokens: usize,
    ) -> Restored {
        self.stats.lookups += 1;
        self.stats.tokens += n_tokens as u64;
        let known = |key: &&Key| self.contains(keys_and_values(**key));
        let n_known = keys.iter().take_while(known).count();
        let mut end = n_known;
        // A file that turns out to be no good is gone at the next turn.
        while let Some(n_blocks) = self.last_state(&keys[..end]) {
            let keys = &keys[..n_blocks];
            // What is read from the drive shall not push out what is in memory.
            self.touch(keys);
            if self.load(runner, state, keys) {
                self.touch(keys);
                self.stats.hits += 1;
                self.stats.cached_tokens += (n_blocks * STATE_BLOCK) as u64;
                return Restored { n_blocks, branch: (n_known > n_blocks).then_some(n_known) };
            }
            // Memory is planned for one: this goes before the next is made.
            *state = Box::new(());
            *state = fresh();
            end = keys.iter().take_while(|key| self.contains(keys_and_values(**key))).count();
        }
        Restored { n_blocks: 0, branch: (n_known > 0).then_some(n_known) }
    }

    fn contains(&self, id: EntryId) -> bool {
        self.memory.contains(id) || self.disk.as_ref().is_some_and(|disk| disk.contains(id))
    }

    /// The number of blocks up to the last one after which a sequence can be taken up.
    fn last_state(&self, keys: &[Key]) -> Option<usize> {
        let index = match self.shapes.has_recurrent() {
            true => keys.iter().rposition(|key| self.contains(recurrent(*key)))?,
            false => keys.len().checked_sub(1)?,
        };
        Some(index + 1)
    }

    /// Puts a state together; `false` leaves it half done. The recurrent states come first, because
    /// keys and values that are read from the drive may push them out of memory.
    fn load(&mut self, runner: &dyn Runner, state: &mut State, keys: &[Key]) -> bool {
        let position = keys.len() * STATE_BLOCK;
        match keys.last().filter(|_| self.shapes.has_recurrent()) {
            None => runner.load_snapshot(state, position, &SavedParts::new()),
            Some(key) => {
                let Some(parts) = self.fetch(recurrent(*key)) else { return false };
                runner.load_snapshot(state, position, parts);
            }
        }
        for key in keys {
            let Some(parts) = self.fetch(keys_and_values(*key)) else { return false };
            runner.load_kv_block(state, parts);
        }
        true
    }

    /// An entry from memory, or from the drive into memory.
    fn fetch(&mut self, id: EntryId) -> Option<&SavedParts> {
        if !self.memory.contains(id) {
            let disk = self.disk.as_mut()?;
            self.memory.make_room(Memory::cost(self.shapes.of(id.kind).bytes()));
            self.memory.insert(id, disk.read(id)?, false);
        }
        self.memory.get(id)
    }

    /// Makes a sequence the one used last: its beginning most of all, because whatever follows is of no
    /// use without it.
    fn touch(&mut self, keys: &[Key]) {
        for key in keys.iter().rev() {
            self.memory.touch(recurrent(*key));
            self.memory.touch(keys_and_values(*key));
        }
    }

    /// Whether memory can hold so many snapshots; if so, it makes room for them.
    pub(crate) fn make_room_for_snapshots(&mut self, n: usize) -> bool {
        let cost = n as u64 * Memory::cost(self.shapes.recurrent.bytes());
        let fits = cost <= self.memory.limit();
        if fits {
            self.memory.make_room(cost);
        }
        fits
    }

    /// Whether recurrent states are to be kept at all.
    pub(crate) fn has_recurrent(&self) -> bool {
        self.shapes.has_recurrent()
    }

    /// Adds the recurrent states after a prefix; tells whether they were new.
    pub(crate) fn add_snapshot(&mut self, key: Key, parts: SavedParts, is_passing: bool) -> bool {
        self.memory.insert(recurrent(key), parts, is_passing)
    }

    /// Removes recurrent states that their session replaces and that nobody kept.
    pub(crate) fn remove_passing(&mut self, key: Key) {
        self.memory.remove_passing(recurrent(key));
    }

    /// Keeps what there is of a sequence: keys and values of its blocks, and its recurrent states.
    pub(crate) fn remember(
        &mut self,
        runner: &dyn Runner,
        state: &State,
        keys: &[Key],
        place: Where,
    ) {
        // First, while all states are in memory: keys and values may push them out.
        if place == Where::MemoryAndDrive {
            self.write(runner, state, keys);
        }
        for key in keys {
            self.memory.keep(recurrent(*key));
        }
        let block_cost = Memory::cost(self.shapes.keys_and_values.bytes());
        let state_cost = Memory::cost(self.shapes.recurrent.bytes());
        let has_state = |key: &&Key| self.memory.contains(recurrent(**key));
        let n_latest = keys.iter().filter(has_state).count().min(LATEST_STATES);
        let room = self.memory.limit().saturating_sub(n_latest as u64 * state_cost);
        let n_fitting = usize::try_from(room / block_cost).unwrap_or(usize::MAX);
        // Before, so that what is added pushes out none of it; and after, so that the beginning is used
        // last.
        self.touch_fitting(keys, n_fitting);
        for (block, key) in keys.iter().enumerate().take(n_fitting) {
            let id = keys_and_values(*key);
            if !self.memory.contains(id) {
                self.memory.make_room(block_cost);
                self.memory.insert(id, runner.save_kv_block(state, block), false);
            }
        }
        self.touch_fitting(keys, n_fitting);
    }

    /// Makes what memory holds of a sequence at once the entries used last, its beginning most of all:
    /// so many blocks, and the latest recurrent states.
    fn touch_fitting(&mut self, keys: &[Key], n_blocks: usize) {
        let mut n_states = 0;
        for (block, key) in keys.iter().enumerate().rev() {
            if n_states < LATEST_STATES && self.memory.contains(recurrent(*key)) {
                self.memory.touch(recurrent(*key));
                n_states += 1;
            }
            if block < n_blocks {
                self.memory.touch(keys_and_values(*key));
            }
        }
    }

    fn write(&mut self, runner: &dyn Runner, state: &State, keys: &[Key]) {
        let Some(disk) = &mut self.disk else { return };
        let memory = &self.memory;
        let has_recurrent = self.shapes.has_recurrent();
        let has_state = |key: &Key| memory.contains(recurrent(*key));
        // Keys and values up to the last state, as far as all of it fits.
        let block_bytes = disk.file_bytes(Kind::KeysAndValues);
        let state_bytes = if has_recurrent { disk.file_bytes(Kind::Recurrent) } else { 0 };
        let fits = |n: usize| n as u64 * block_bytes + state_bytes <= disk.limit();
        let ends = (1..=keys.len()).rev();
        let Some(end) =
            ends.filter(|&n| !has_recurrent || has_state(&keys[n - 1])).find(|&n| fits(n))
        else {
            return;
        };
        let mut room = disk.limit() - end as u64 * block_bytes;
        let mut entries = Vec::new();
        let mut blocks = Vec::new();
        for (block, key) in keys[..end].iter().enumerate().rev() {
            if has_recurrent && has_state(key) && room >= state_bytes {
                room -= state_bytes;
                entries.push(recurrent(*key));
                blocks.push(block);
            }
            entries.push(keys_and_values(*key));
            blocks.push(block);
        }
        entries.reverse();
        blocks.reverse();
        disk.write(&entries, &|index| match memory.get(entries[index]) {
            Some(parts) => Cow::Borrowed(parts),
            None => Cow::Owned(runner.save_kv_block(state, blocks[index])),
        });
    }

    /// Numbers for people.
    pub(crate) fn stats(&self) -> PrefixCacheStats {
        let mut stats = PrefixCacheStats {
            memory_bytes: self.memory.bytes(),
            entries: self.memory.len(),
            evictions: self.memory.n_evicted(),
            ..self.stats.clone()
        };
        if let Some(disk) = &self.disk {
            stats.disk_bytes = disk.bytes();
            stats.disk_reads = disk.n_read;
            stats.disk_writes = disk.n_written;
            stats.disk_skips = disk.n_skipped;
            stats.ignored = disk.ignored;
        }
        stats
    }
}
