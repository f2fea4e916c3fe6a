//! The expert store: a fixed set of memory slots through which all routed experts move.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{ExpertLocation, ExpertTable, Extent, MatrixLocation};
use compute::memory::{Arena, Block};
use compute::{ExpertWeights, LoadedExpert, Matrix};
use trace::{Kind, Recorder, Span};

use crate::files::{DataFiles, IoError};
use crate::plan::ReadPlan;
use crate::policy::{Fifo, Lru, Policy};
use crate::reader::{Completion, Job, ReadError, Reader};

/// Which policy chooses the expert that leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used.
    #[default]
    Lru,
    /// First in, first out: a baseline for comparisons.
    Fifo,
}

/// How an expert store works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of all slots together, at most.
    pub cache_bytes: u64,
    /// Threads that read.
    pub io_threads: usize,
    /// Which expert leaves.
    pub policy: PolicyKind,
    /// Who is told of every read.
    pub recorder: Option<Recorder>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { cache_bytes: 0, io_threads: 4, policy: PolicyKind::default(), recorder: None }
    }
}

/// What moving experts cost since the store was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Experts that were in memory when they were asked for.
    pub hits: u64,
    /// Experts that had to be read.
    pub misses: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Time that the caller waited for the drive.
    pub drive_wait: Duration,
    /// Time in which at least one expert was being read.
    pub drive_busy: Duration,
}

/// Why the store cannot be made, or an expert not be delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Too little memory for even the fewest slots.
    #[error(
        "{cache_bytes} bytes hold fewer than {} experts of {slot_bytes} bytes",
        ExpertStore::MIN_SLOTS
    )]
    TooSmall {
        /// The bytes given.
        cache_bytes: u64,
        /// Bytes of a slot.
        slot_bytes: u64,
    },
    /// Memory or threads could not be had.
    #[error("the slots of {bytes} bytes or their reading threads could not be set up: {source}")]
    Setup {
        /// Bytes of all slots.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A read failed.
    #[error("expert {expert} of layer {layer} could not be read: {source}")]
    Read {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: u32,
        /// Why.
        source: IoError,
    },
    /// A scale or bias is infinite or not a number.
    #[error(
        "expert {expert} of layer {layer} has scales that are not finite, in {}\n\
         hint: the file is damaged; fetch it again",
        .path.display()
    )]
    NotFinite {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: u32,
        /// The file with its gate projection.
        path: PathBuf,
    },
    /// The caller holds every slot, so nothing can be read.
    #[error("all {n_slots} expert slots are held while another expert is wanted")]
    AllHeld {
        /// Number of slots.
        n_slots: usize,
    },
    /// No thread is left that could read.
    #[error("the reading threads have ended")]
    ReadersGone,
}

/// A fixed set of memory slots through which all routed experts move.
///
/// A request is answered expert by expert: those in memory at once, those that must be read as their
/// bytes arrive, while the caller computes. What a caller holds is never overwritten: a slot can be
/// reused only when nobody else refers to its block. Requests larger than the slots work too, as long
/// as the caller lets go of what it was given.
pub struct ExpertStore {
    files: Arc<DataFiles>,
    layers: Vec<ExpertTable>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    policy: Box<dyn Policy>,
    reader: Reader,
    /// For each layer and expert the slot that holds it or that it is being read into.
    places: Vec<Vec<Option<u32>>>,
    in_flight: usize,
    request: Request,
    stats: Stats,
    /// Until when the drive's busy time is counted.
    busy_until: Instant,
    recorder: Option<Recorder>,
}

/// A slot. Its block is away while it is being read.
struct Slot {
    block: Option<Arc<Block>>,
    plan: Option<ReadPlan>,
    layer: usize,
    expert: u32,
}

/// What is still owed to the caller.
#[derive(Default)]
struct Request {
    layer: usize,
    /// In memory; the weights are held so that they cannot leave before they are delivered.
    ready: Vec<LoadedExpert>,
    /// Being read.
    expected: Vec<u32>,
    /// Not yet begun to be read, for want of a slot.
    waiting: VecDeque<u32>,
}

impl ExpertStore {
    /// One expert is computed while the next is read.
    pub const MIN_SLOTS: usize = 2;

    /// Sets up slots for as many experts as fit; for all of them if they do.
    pub fn new(
        files: Arc<DataFiles>,
        layers: Vec<ExpertTable>,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let slot_bytes = Self::slot_bytes(&layers);
        let n_experts: usize = layers.iter().map(ExpertTable::len).sum();
        let fitting = (options.cache_bytes / slot_bytes.max(1)) as usize;
        let n_slots = fitting.min(n_experts.max(Self::MIN_SLOTS));
        if n_slots < Self::MIN_SLOTS {
            let cache_bytes = options.cache_bytes;
            return Err(StoreError::TooSmall { cache_bytes, slot_bytes });
        }
        let bytes = slot_bytes * n_slots as u64;
        let setup = |source| StoreError::Setup { bytes, source };
        let mut arena = Arena::new(bytes as usize).map_err(setup)?;
        arena.advise_huge_pages();
        let slots = (0..n_slots).map(|_| {
            let block = arena.take(slot_bytes as usize).expect("the arena was sized for all slots");
            Slot { block: Some(Arc::new(block)), plan: None, layer: 0, expert: 0 }
        });
        let slots = slots.collect();
        let reader = Reader::new(&files, options.io_threads).map_err(setup)?;
        let policy: Box<dyn Policy> = match options.policy {
            PolicyKind::Lru => Box::new(Lru::new(n_slots)),
            PolicyKind::Fifo => Box::new(Fifo::new(n_slots)),
        };
        Ok(Self {
            files,
            places: layers.iter().map(|table| vec![None; table.len()]).collect(),
            layers,
            slots,
            free: (0..n_slots).rev().collect(),
            policy,
            reader,
            in_flight: 0,
            request: Request::default(),
            stats: Stats::default(),
            busy_until: Instant::now(),
            recorder: options.recorder.clone(),
        })
    }

    /// Bytes that a slot needs to hold any of the experts with the whole blocks around it.
    pub fn slot_bytes(layers: &[ExpertTable]) -> u64 {
        let experts = layers.iter().flat_map(|table| (0..table.len()).map(|e| table.get(e)));
        experts.map(|expert| plan_of(&expert).bytes() as u64).max().unwrap_or(0)
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// What moving experts cost since the store was made.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.files.is_direct()
    }

    /// Asks for distinct experts of a layer. Reads begin at once in as many slots as can be had. What
    /// was left of the request before is forgotten.
    pub fn request(&mut self, layer: usize, experts: &[u32]) -> Result<(), StoreError> {
        self.abandon();
        self.request.layer = layer;
        while let Some(completion) = self.reader.try_completion() {
            self.complete(completion)?;
        }
        // Hits are held before any miss takes a slot.
        for &expert in experts {
            match self.places[layer][expert as usize] {
                Some(slot) if self.slots[slot as usize].block.is_some() => {
                    self.stats.hits += 1;
                    self.policy.touch(slot as usize);
                    self.hold(slot as usize);
                }
                Some(_) => {
                    self.stats.misses += 1;
                    self.request.expected.push(expert);
                }
                None => {
                    self.stats.misses += 1;
                    self.request.waiting.push_back(expert);
                }
            }
        }
        self.submit();
        Ok(())
    }

    /// Replaces what `ready` held by the experts of the request that are in memory and not delivered
    /// yet: the hits first, then all that arrived meanwhile. Waits for the drive when there are none;
    /// leaves `ready` empty when all were delivered. After an error the rest of the request is
    /// forgotten; the store can be used again.
    pub fn next_ready(&mut self, ready: &mut Vec<LoadedExpert>) -> Result<(), StoreError> {
        ready.clear();
        let result = self.next_or_wait(ready);
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn next_or_wait(&mut self, ready: &mut Vec<LoadedExpert>) -> Result<(), StoreError> {
        loop {
            while let Some(completion) = self.reader.try_completion() {
                self.complete(completion)?;
            }
            self.submit();
            if !self.request.ready.is_empty() {
                ready.append(&mut self.request.ready);
                return Ok(());
            }
            if self.request.expected.is_empty() && self.request.waiting.is_empty() {
                return Ok(());
            }
            if self.in_flight == 0 {
                return Err(StoreError::AllHeld { n_slots: self.slots.len() });
            }
            let begin = Instant::now();
            let completion = self.reader.wait().map_err(|_| StoreError::ReadersGone)?;
            self.stats.drive_wait += begin.elapsed();
            self.complete(completion)?;
        }
    }

    /// Begins to read waiting experts while there are slots for them.
    fn submit(&mut self) {
        while let Some(&expert) = self.request.waiting.front() {
            let Some(slot) = self.take_slot() else { return };
            self.request.waiting.pop_front();
            self.request.expected.push(expert);
            let layer = self.request.layer;
            let location = self.layers[layer].get(expert as usize);
            let plan = plan_of(&location);
            self.places[layer][expert as usize] = Some(slot as u32);
            let entry = &mut self.slots[slot];
            (entry.layer, entry.expert) = (layer, expert);
            let block = entry.block.take().expect("a slot that was taken has its block");
            self.in_flight += 1;
            self.reader.submit(Job { slot, location, plan, block });
        }
    }

    /// An empty slot, or the one whose expert should leave.
    fn take_slot(&mut self) -> Option<usize> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slots = &self.slots;
        let is_unused =
            |slot: usize| slots[slot].block.as_ref().is_some_and(|b| Arc::strong_count(b) == 1);
        let slot = self.policy.victim(&mut { is_unused })?;
        self.policy.remove(slot);
        let Slot { layer, expert, .. } = self.slots[slot];
        self.places[layer][expert as usize] = None;
        Some(slot)
    }

    /// Takes back a block that was read.
    fn complete(&mut self, completion: Completion) -> Result<(), StoreError> {
        self.account(&completion);
        let Completion { slot, plan, block, result, .. } = completion;
        self.in_flight -= 1;
        let entry = &mut self.slots[slot];
        let (layer, expert) = (entry.layer, entry.expert);
        entry.block = Some(block);
        entry.plan = Some(plan);
        let is_expected = layer == self.request.layer && self.request.expected.contains(&expert);
        match result {
            Ok(bytes) => {
                self.stats.bytes_read += bytes;
                self.policy.insert(slot);
                if is_expected {
                    self.request.expected.retain(|&expected| expected != expert);
                    self.hold(slot);
                }
                Ok(())
            }
            Err(error) => {
                self.places[layer][expert as usize] = None;
                self.free.push(slot);
                // Nobody waits for an expert of a forgotten request; who asks again will be told.
                if is_expected { Err(self.read_error(layer, expert, error)) } else { Ok(()) }
            }
        }
    }

    /// Books the time of a read, and tells the recorder of it.
    fn account(&mut self, completion: &Completion) {
        let &Completion { slot, ref result, reader, began: begin, ended: end, .. } = completion;
        self.stats.drive_busy += end.saturating_duration_since(begin.max(self.busy_until));
        self.busy_until = self.busy_until.max(end);
        if let Some(recorder) = &self.recorder {
            let (kind, name) = (Kind::Read { reader }, "expert");
            let Slot { layer, expert, .. } = self.slots[slot];
            let (layer, expert) = (Some(layer), Some(expert));
            let amount = result.as_ref().copied().unwrap_or(0);
            recorder.record(&Span { kind, name, begin, end, layer, expert, amount });
        }
    }

    /// Makes the expert of a slot ready to be delivered.
    fn hold(&mut self, slot: usize) {
        let Slot { block, plan, layer, expert } = &self.slots[slot];
        let block = block.as_ref().expect("the slot is filled");
        let plan = plan.as_ref().expect("the slot was read by a plan");
        let location = self.layers[*layer].get(*expert as usize);
        let mut part = 0;
        let mut matrix = |location: &MatrixLocation| {
            let n_parts = location.extents().count();
            let offset = |index: usize| if index < n_parts { plan.offset(part + index) } else { 0 };
            let offsets = [offset(0), offset(1), offset(2)];
            part += n_parts;
            Matrix::new(location.format, (location.rows, location.cols), Arc::clone(block), offsets)
        };
        let weights = ExpertWeights {
            gate: matrix(&location.gate),
            up: matrix(&location.up),
            down: matrix(&location.down),
        };
        self.request.ready.push(LoadedExpert { index: *expert, weights });
    }

    /// Forgets what is still owed. Reads in flight go on and fill their slots.
    fn abandon(&mut self) {
        self.request.ready.clear();
        self.request.expected.clear();
        self.request.waiting.clear();
    }

    fn read_error(&self, layer: usize, expert: u32, error: ReadError) -> StoreError {
        match error {
            ReadError::Io(source) => StoreError::Read { layer, expert, source },
            ReadError::NotFinite => {
                let file = self.layers[layer].get(expert as usize).gate.data.file;
                StoreError::NotFinite { layer, expert, path: self.files.path(file).to_owned() }
            }
        }
    }
}

/// How an expert is read: its parts in the order gate, up, down, each with data, scales, biases.
fn plan_of(location: &ExpertLocation) -> ReadPlan {
    let extents: Vec<Extent> =
        location.matrices().into_iter().flat_map(MatrixLocation::extents).collect();
    ReadPlan::new(&extents)
}
