//! The expert store: a fixed set of memory slots through which all routed experts move.

mod look_ahead;
mod warm;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{ExpertTable, MatrixLocation};
use compute::memory::{Arena, Block};
use compute::{ExpertWeights, LoadedExpert, Matrix};
use trace::{Kind, Recorder, Span};

use crate::files::DataFiles;
use crate::options::{Stats, StoreError, StoreOptions};
use crate::plan::ReadPlan;
use crate::policy::Policy;
use crate::prefault::Prefault;
use crate::reader::{Completion, Job, ReadError, Reader, ReaderReport, Urgency, make_reader};
use crate::trace::TraceWriter;

pub use look_ahead::LookAhead;

/// A fixed set of memory slots through which all routed experts move.
///
/// A request is answered as experts are there: those in memory at once, those that must be read as
/// their bytes arrive, while the caller computes. What a caller holds is never overwritten: a slot can
/// be reused only when nobody else refers to its block. Requests larger than the slots work too, as
/// long as the caller lets go of what it was given.
///
/// Requests and deliveries take no memory after warm-up, and a time that grows with their length and
/// the logarithm of the number of slots.
pub struct ExpertStore {
    files: Arc<DataFiles>,
    layers: Vec<ExpertTable>,
    /// The key of each layer's first expert; keys number the experts of all layers.
    first_keys: Vec<u32>,
    slot_bytes: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// How many slots were never used; they are the first in `free`, in their order.
    n_fresh: usize,
    prefault: Prefault,
    policy: Box<dyn Policy>,
    reader: Box<dyn Reader>,
    reader_report: ReaderReport,
    /// For each key the slot that holds it or that it is being read into.
    places: Vec<u32>,
    /// For each key the number of the request that asked for it last.
    asked_by: Vec<u32>,
    /// For each layer the number of its experts that have a place; twins do not count.
    n_in_memory: Vec<u32>,
    in_flight: usize,
    /// How many of those were begun by looking ahead.
    ahead_in_flight: usize,
    ahead: look_ahead::State,
    warm: warm::State,
    request: Request,
    /// Slots that were delivered and that the caller may still hold.
    held: Vec<u32>,
    stats: Stats,
    /// Until when the drive's busy time is counted.
    busy_until: Instant,
    recorder: Option<Recorder>,
    trace: Option<TraceWriter>,
}

/// No slot.
const NOWHERE: u32 = u32::MAX;

/// A slot. Its block is away while it is being read.
struct Slot {
    block: Option<Arc<Block>>,
    /// What it holds, or what is being read into it.
    key: u32,
    /// Whether it is owed to the caller.
    is_owed: bool,
    /// Whether it was read ahead, and no request has told yet whether in vain.
    is_ahead: bool,
    /// Whether it was read for the heat map, and nobody has asked for it yet.
    is_warm: bool,
}

/// What is still owed to the caller.
struct Request {
    layer: usize,
    /// Counts requests.
    number: u32,
    /// Slots of experts in memory.
    ready: Vec<u32>,
    /// Slots of experts being read.
    expected: Vec<u32>,
    n_expected: usize,
    /// Keys of experts not yet begun to be read, for want of a slot.
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
        let mut n_keys = 0;
        let first_keys = layers.iter().map(|table| {
            n_keys += table.len();
            (n_keys - table.len()) as u32
        });
        let first_keys = first_keys.collect();
        let widest = layers.iter().map(ExpertTable::len).max().unwrap_or(0);
        let fitting = (options.cache_bytes / slot_bytes.max(1)) as usize;
        let n_slots = fitting.min(n_keys.max(Self::MIN_SLOTS));
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
            let block = Some(Arc::new(block));
            Slot { block, key: 0, is_owed: false, is_ahead: false, is_warm: false }
        });
        let mut slots: Vec<Slot> = slots.collect();
        let prefault = Prefault::new(arena.pages(), slot_bytes as usize, n_slots);
        let blocks = slots.iter_mut().enumerate().map(|(i, slot)| (i as u32, &mut slot.block));
        let (reader, reader_report) =
            make_reader(options.reader, &files, n_slots, options.io_threads, &layers, blocks)
                .map_err(setup)?;
        let bytes_read = reader_report.probe.map_or(0, |probe| probe.bytes);
        Ok(Self {
            files,
            n_in_memory: vec![0; layers.len()],
            layers,
            first_keys,
            slot_bytes,
            slots,
            free: (0..n_slots as u32).rev().collect(),
            n_fresh: n_slots,
            prefault,
            policy: options.policy.build(n_keys),
            reader,
            reader_report,
            places: vec![NOWHERE; n_keys],
            asked_by: vec![0; n_keys],
            in_flight: 0,
            ahead_in_flight: 0,
            ahead: look_ahead::State::new(options.look_ahead, n_slots, widest),
            warm: warm::State::default(),
            request: Request {
                layer: 0,
                number: 0,
                ready: Vec::with_capacity(n_slots),
                expected: Vec::with_capacity(widest),
                n_expected: 0,
                waiting: VecDeque::with_capacity(widest),
            },
            held: Vec::with_capacity(n_slots),
            stats: Stats { bytes_read, ..Stats::default() },
            busy_until: Instant::now(),
            recorder: options.recorder.clone(),
            trace: None,
        })
    }

    /// Bytes that a slot needs to hold any of the experts with the whole blocks around it.
    pub fn slot_bytes(layers: &[ExpertTable]) -> u64 {
        let experts = layers.iter().flat_map(|table| (0..table.len()).map(|e| table.get(e)));
        experts.map(|expert| ReadPlan::of_expert(&expert).bytes() as u64).max().unwrap_or(0)
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// What moving experts cost since the store was made.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Tells that an expert that a device holds was used there: it counts as hot, and its slot here, if it has
    /// one, is for another.
    pub fn used_on_device(&mut self, layer: usize, expert: u32, uses: u32) {
        self.release();
        let key = self.first_keys[layer] + expert;
        self.policy.used(key, uses);
        let place = self.places[key as usize];
        let Some(slot) = self.slots.get_mut(place as usize) else { return };
        let is_held = slot.block.as_ref().is_none_or(|block| Arc::strong_count(block) > 1);
        if is_held || slot.is_owed || slot.is_ahead {
            return;
        }
        slot.is_warm = false;
        self.policy.must_stay(key);
        self.forget_place(key);
        self.free.push(place);
    }

    /// Counts anew: what was moved so far, to fill a device, says nothing about the work to come.
    pub fn forget_stats(&mut self) {
        self.stats = Stats::default();
    }

    /// Which experts are in a slot or on their way into one: of each layer in order, a flag for each of its
    /// experts, without twins.
    pub fn residents(&self) -> impl Iterator<Item = impl Iterator<Item = bool>> {
        self.layers.iter().zip(&self.first_keys).map(|(table, &first)| {
            let keys = first as usize..first as usize + table.n_experts();
            self.places[keys].iter().map(|&place| place != NOWHERE)
        })
    }

    /// Whether an expert, or a twin, is in a slot or on its way into one.
    pub fn is_resident(&self, layer: usize, expert: u32) -> bool {
        self.places[(self.first_keys[layer] + expert) as usize] != NOWHERE
    }

    /// How experts are read, and why so.
    pub fn reader(&self) -> &ReaderReport {
        &self.reader_report
    }

    /// Whether reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.files.is_direct()
    }

    /// Writes all requests from now on to `out`, as [`crate::Trace`] reads them.
    pub fn record_trace(&mut self, out: Box<dyn Write + Send>) {
        self.trace = Some(TraceWriter::new(out, &self.layers));
    }

    /// Whether requests are recorded.
    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Ends the recording and tells whether all could be written.
    pub fn finish_trace(&mut self) -> std::io::Result<()> {
        self.trace.take().map_or(Ok(()), TraceWriter::finish)
    }

    /// Asks for distinct experts of a layer or their twins, by their places in its table, each with the number
    /// of rows that use it. Reads begin at once in as many slots as can be had. What was left of the request
    /// before is forgotten.
    pub fn request(
        &mut self,
        layer: usize,
        experts: impl IntoIterator<Item = (u32, u32)>,
    ) -> Result<(), StoreError> {
        let (begin, elsewhere) = (Instant::now(), self.stats.elsewhere());
        self.abandon();
        self.release();
        let result = self.take_completions();
        self.take_back_ahead();
        self.judge_warm();
        self.request.layer = layer;
        self.request.number = self.request.number.wrapping_add(1);
        let mut n_asked = 0;
        if let Some(trace) = &mut self.trace {
            trace.begin(layer);
        }
        for (expert, uses) in experts {
            if let Some(trace) = &mut self.trace {
                trace.expert(expert, uses);
            }
            let key = self.first_keys[layer] + expert;
            assert!((expert as usize) < self.layers[layer].len(), "the layer has the expert");
            self.policy.used(key, uses);
            n_asked += usize::from(!self.book_uses(layer, expert as usize, u64::from(uses)));
            self.asked_by[key as usize] = self.request.number;
            let place = self.places[key as usize];
            let Some(slot) = self.slots.get_mut(place as usize) else {
                self.stats.misses += 1;
                self.request.waiting.push_back(key);
                continue;
            };
            slot.is_owed = true;
            if std::mem::replace(&mut slot.is_warm, false) {
                self.stats.warm_useful += 1;
                self.warm.in_flight -= usize::from(slot.block.is_none());
            }
            if slot.block.is_some() {
                // Hits stay before any miss takes a slot.
                self.stats.hits += 1;
                self.policy.must_stay(key);
                self.request.ready.push(place);
            } else {
                self.stats.misses += 1;
                self.request.expected.push(place);
                self.request.n_expected += 1;
            }
        }
        if let Some(trace) = &mut self.trace {
            trace.end();
        }
        self.settle_look_ahead(Some(layer));
        self.submit();
        self.plan_sweep(layer, n_asked);
        self.sweep();
        self.book(begin, elsewhere);
        result
    }

    /// Books uses of an expert or a twin; tells whether it is a twin.
    fn book_uses(&mut self, layer: usize, expert: usize, uses: u64) -> bool {
        let table = &self.layers[layer];
        let bytes = table.get(expert).bytes();
        self.stats.used_bytes += bytes * uses;
        let twin_of = expert.checked_sub(table.n_experts());
        if let Some(expert) = twin_of {
            self.stats.twin_uses += uses;
            let saved = table.get(expert).bytes().saturating_sub(bytes);
            self.stats.twin_saved_bytes += saved * uses;
        }
        twin_of.is_some()
    }

    /// Replaces what `ready` held by the experts of the request that are in memory and not delivered
    /// yet: the hits first, then all that arrived meanwhile. Waits for the drive when there are none;
    /// leaves `ready` empty when all were delivered. After an error the rest of the request is
    /// forgotten; the store can be used again.
    pub fn next_ready(&mut self, ready: &mut Vec<LoadedExpert>) -> Result<(), StoreError> {
        let (begin, elsewhere) = (Instant::now(), self.stats.elsewhere());
        ready.clear();
        let result = self.deliver_or_wait(ready);
        if result.is_err() {
            self.abandon();
        }
        self.book(begin, elsewhere);
        result
    }

    /// Books the time since `begin` that was not spent elsewhere.
    fn book(&mut self, begin: Instant, elsewhere: Duration) {
        let elsewhere = self.stats.elsewhere() - elsewhere;
        self.stats.bookkeeping += begin.elapsed().saturating_sub(elsewhere);
    }

    fn deliver_or_wait(&mut self, ready: &mut Vec<LoadedExpert>) -> Result<(), StoreError> {
        self.release();
        loop {
            self.take_completions()?;
            self.submit();
            self.sweep();
            self.read_wanted();
            if self.is_last_delivery() {
                self.warm();
            }
            if !self.request.ready.is_empty() {
                self.deliver(ready);
                return Ok(());
            }
            if self.request.n_expected == 0 && self.request.waiting.is_empty() {
                return Ok(());
            }
            if self.in_flight == 0 {
                return Err(StoreError::AllHeld { n_slots: self.slots.len() });
            }
            let begin = Instant::now();
            let completion = self.reader.wait().ok_or(StoreError::ReadersGone)?;
            self.stats.drive_wait += begin.elapsed();
            self.complete(completion)?;
        }
    }

    /// Begins to read waiting experts while there are slots for them.
    fn submit(&mut self) {
        let mut is_any = false;
        while let Some(&key) = self.request.waiting.front() {
            let Some(slot) = self.take_slot() else { break };
            is_any = true;
            self.request.waiting.pop_front();
            self.request.expected.push(slot);
            self.request.n_expected += 1;
            let job = self.job(key, slot, Urgency::Demand);
            self.slots[slot as usize].is_owed = true;
            self.reader.submit(job);
        }
        if is_any {
            self.begin_reads();
        }
    }

    fn begin_reads(&mut self) {
        let begin = Instant::now();
        self.reader.begin();
        self.stats.submitting += begin.elapsed();
    }

    /// The read of an expert into a slot that was taken.
    fn job(&mut self, key: u32, slot: u32, urgency: Urgency) -> Job {
        let (layer, twin_of) = (self.layer_of(key), self.twin_of(key));
        self.places[key as usize] = slot;
        self.n_in_memory[layer] += u32::from(twin_of.is_none());
        self.in_flight += 1;
        let location = self.layers[layer].get((key - self.first_keys[layer]) as usize);
        let entry = &mut self.slots[slot as usize];
        entry.key = key;
        let block = entry.block.take().expect("a slot that was taken has its block");
        Job { slot, location, block, urgency }
    }

    /// An empty slot, or the one whose expert should leave.
    fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            if self.free.len() < self.n_fresh {
                self.n_fresh = self.free.len();
                self.prefault.use_slot();
            }
            return Some(slot);
        }
        let victim = self.policy.take_victim()?;
        let slot = self.forget_place(victim);
        self.slots[slot as usize].is_warm = false;
        Some(slot)
    }

    fn forget_place(&mut self, key: u32) -> u32 {
        let (layer, twin_of) = (self.layer_of(key), self.twin_of(key));
        self.n_in_memory[layer] -= u32::from(twin_of.is_none());
        std::mem::replace(&mut self.places[key as usize], NOWHERE)
    }

    fn layer_of(&self, key: u32) -> usize {
        self.first_keys.partition_point(|&first| first <= key) - 1
    }

    /// Whose twin it is, if it is one.
    fn twin_of(&self, key: u32) -> Option<u32> {
        let layer = self.layer_of(key);
        (key - self.first_keys[layer]).checked_sub(self.layers[layer].n_experts() as u32)
    }

    fn take_completions(&mut self) -> Result<(), StoreError> {
        while self.in_flight > 0 {
            let begin = Instant::now();
            let completion = self.reader.try_completion();
            // The ring goes on with what waits for it.
            self.stats.submitting += begin.elapsed();
            let Some(completion) = completion else { break };
            self.complete(completion)?;
        }
        Ok(())
    }

    /// Takes back a block that was read.
    fn complete(&mut self, completion: Completion) -> Result<(), StoreError> {
        self.account(&completion);
        let Completion { slot, block, result, .. } = completion;
        self.in_flight -= 1;
        let entry = &mut self.slots[slot as usize];
        entry.block = Some(block);
        let (key, is_owed, is_ahead) = (entry.key, entry.is_owed, entry.is_ahead);
        self.ahead_in_flight -= usize::from(is_ahead);
        self.warm.in_flight -= usize::from(entry.is_warm);
        self.request.n_expected -= usize::from(is_owed);
        match result {
            Ok(bytes) => {
                self.stats.bytes_read += bytes;
                if is_owed {
                    self.request.ready.push(slot);
                } else if !is_ahead {
                    self.policy.may_leave(key);
                }
                Ok(())
            }
            Err(error) => {
                (entry.is_owed, entry.is_ahead, entry.is_warm) = (false, false, false);
                self.forget_place(key);
                self.free.push(slot);
                // Nobody waits for an expert that nobody asked for; who asks will be told.
                if is_owed { Err(self.read_error(key, error)) } else { Ok(()) }
            }
        }
    }

    /// Books the time of a read, and tells the recorder of it.
    fn account(&mut self, completion: &Completion) {
        let &Completion { slot, ref result, began: begin, ended: end, .. } = completion;
        self.stats.drive_busy += end.saturating_duration_since(begin.max(self.busy_until));
        self.busy_until = self.busy_until.max(end);
        if let Some(recorder) = &self.recorder {
            let key = self.slots[slot as usize].key;
            let layer = self.layer_of(key);
            let (name, expert) = match self.twin_of(key) {
                None => ("expert", key - self.first_keys[layer]),
                Some(expert) => ("twin", expert),
            };
            let (kind, layer, expert) = (Kind::Read { reader: 0 }, Some(layer), Some(expert));
            let amount = result.as_ref().copied().unwrap_or(0);
            recorder.record(&Span { kind, name, begin, end, layer, expert, amount });
        }
    }

    /// Gives the caller what is ready.
    fn deliver(&mut self, ready: &mut Vec<LoadedExpert>) {
        let Self { request, slots, layers, first_keys, held, .. } = self;
        let layer = request.layer;
        for slot in request.ready.drain(..) {
            let entry = &mut slots[slot as usize];
            entry.is_owed = false;
            held.push(slot);
            let block = entry.block.as_ref().expect("the slot is filled");
            let index = entry.key - first_keys[layer];
            ready.push(LoadedExpert { index, weights: weights(&layers[layer], index, block) });
        }
    }

    /// Lets those leave that the caller has let go of.
    fn release(&mut self) {
        let Self { slots, policy, held, .. } = self;
        held.retain(|&slot| {
            let Slot { block, key, is_owed, .. } = &slots[slot as usize];
            // One that is owed again will come back here.
            let is_held = !is_owed && block.as_ref().is_some_and(|b| Arc::strong_count(b) > 1);
            if !is_owed && !is_held {
                policy.may_leave(*key);
            }
            is_held
        });
    }

    /// Forgets what is still owed. Reads in flight go on and fill their slots.
    fn abandon(&mut self) {
        let Self { slots, held, request, .. } = self;
        for slot in request.ready.drain(..) {
            slots[slot as usize].is_owed = false;
            // The caller may still hold it from before.
            held.push(slot);
        }
        for slot in request.expected.drain(..) {
            slots[slot as usize].is_owed = false;
        }
        request.n_expected = 0;
        request.waiting.clear();
    }

    fn read_error(&self, key: u32, error: ReadError) -> StoreError {
        let layer = self.layer_of(key);
        let place = key - self.first_keys[layer];
        // The file tells whether it is its twin.
        let expert = self.twin_of(key).unwrap_or(place);
        match error {
            ReadError::Io(source) => StoreError::Read { layer, expert, source },
            ReadError::NotFinite => {
                let file = self.layers[layer].get(place as usize).gate.data.file;
                StoreError::NotFinite { layer, expert, path: self.files.path(file).to_owned() }
            }
        }
    }
}

/// The matrices of an expert whose bytes are in a block.
fn weights(table: &ExpertTable, expert: u32, block: &Arc<Block>) -> ExpertWeights {
    let location = table.get(expert as usize);
    let plan = ReadPlan::of_expert(&location);
    let mut part = 0;
    let mut matrix = |location: &MatrixLocation| {
        let n_parts = location.extents().count();
        let offset = |index: usize| if index < n_parts { plan.offset(part + index) } else { 0 };
        let offsets = [offset(0), offset(1), offset(2)];
        part += n_parts;
        Matrix::new(location.format, (location.rows, location.cols), Arc::clone(block), offsets)
    };
    ExpertWeights {
        gate: matrix(&location.gate),
        up: matrix(&location.up),
        down: matrix(&location.down),
    }
}
