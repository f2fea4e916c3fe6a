//! Reading experts before they are asked for, while the drive is idle.
//!
//! **Few rows**: the next layer's router, applied to what this layer gave, predicts the next request.
//! What it predicts and is not in memory is read if predictions of that margin came true more often
//! than not; how often they do is counted whether they are read or not. A window of predictions whose
//! reads were not useful enough to pay for themselves puts prediction to sleep for a while. A prediction that
//! is told while a request is being read waits until that is done.
//!
//! **Many rows**: when a chunk uses nearly all experts of a layer, it will use nearly all of the next:
//! those not in memory are read in the order of the file while this layer computes. When it uses
//! fewer, those that several rows are predicted to use are read while the next mixer computes.
//!
//! What was read ahead stays until the next request tells whether it was of use. A request takes back
//! what has not begun to be read.

use std::collections::VecDeque;
use std::time::Instant;

use compute::Routing;

use super::{ExpertStore, NOWHERE, Slot};
use crate::reader::{Job, Urgency};

/// Whether experts are read before they are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LookAhead {
    /// While that pays.
    #[default]
    Auto,
    /// Whatever is predicted.
    On,
    /// Never.
    Off,
}

/// Most rows whose routing is predicted.
const MOST_ROWS: usize = 8;
/// Most experts of a layer that are read ahead for few rows.
const MOST_READS: usize = 8;
/// Share of predictions that must come true.
const LEAST_PRECISION: f32 = 0.5;
/// Share of a layer's experts used by a chunk from which the next layer is read whole.
const SWEEP_SHARE: f64 = 0.9;
/// Rows predicted to use an expert from which it is read for many rows.
const LEAST_COUNT: u32 = 2;
/// Share of what is read for many rows that must be of use.
const LEAST_SWEEP_PRECISION: f32 = 0.8;
/// Bytes read ahead for many rows at a time.
const SWEEP_BYTES: u64 = 256 << 20;
/// Predictions of a layer until it is judged whether they pay.
const WINDOW: u32 = 256;
/// Useful reads a prediction from which it pays: a read takes some ten times as long.
const LEAST_USEFUL: u32 = WINDOW / 10;
/// Requests for which prediction sleeps after its first failure, and at most.
const SLEEP: (u32, u32) = (1 << 10, 1 << 14);

/// What is known about predictions.
pub(super) struct State {
    mode: LookAhead,
    /// The layer that `predicted` and `slots` are about.
    layer: usize,
    /// Keys not in memory that were predicted, and the class of their margin.
    predicted: Vec<(u32, usize)>,
    /// Those of them that shall be read as soon as nobody waits for the drive, the last one last.
    wanted: VecDeque<u32>,
    /// Slots that were read ahead or are being so.
    slots: Vec<u32>,
    classes: [Class; CLASSES],
    /// Experts of a layer that the drive manages in the time there is.
    n_reads: usize,
    window: Window,
    asleep_for: u32,
    next_sleep: u32,
    /// While sweeping, the next of `sweep_keys`.
    sweep: Option<usize>,
    /// Keys to be read for many rows, in order of the file.
    sweep_keys: Vec<u32>,
    /// For each expert of a layer how many rows are predicted to use it.
    counts: Vec<u32>,
    /// Share of what was read for many rows that was of use, lately.
    sweep_precision: f32,
}

/// Classes of margins, of half a power of two each.
const CLASSES: usize = 8;

/// Predictions of about the same margin.
#[derive(Clone, Copy)]
struct Class {
    /// Share that came true, lately.
    precision: f32,
}

#[derive(Clone, Copy, Default)]
struct Window {
    predictions: u32,
    useful: u32,
    wasted: u32,
}

impl State {
    pub(super) fn new(mode: LookAhead, n_slots: usize, widest: usize) -> Self {
        Self {
            mode,
            layer: 0,
            predicted: Vec::with_capacity(MOST_ROWS * 16),
            wanted: VecDeque::with_capacity(MOST_READS),
            slots: Vec::with_capacity(n_slots),
            // A fair chance until it is known better.
            classes: [Class { precision: 0.6 }; CLASSES],
            n_reads: 2,
            window: Window::default(),
            asleep_for: 0,
            next_sleep: SLEEP.0,
            sweep: None,
            sweep_keys: Vec::with_capacity(widest),
            counts: Vec::with_capacity(widest),
            sweep_precision: 1.0,
        }
    }

    /// Judges the window when it is full.
    fn judge(&mut self) {
        let Window { predictions, useful, wasted } = self.window;
        if predictions < WINDOW || self.mode != LookAhead::Auto {
            return;
        }
        self.window = Window::default();
        if useful >= LEAST_USEFUL.max(wasted) {
            self.next_sleep = SLEEP.0;
        } else {
            self.asleep_for = self.next_sleep;
            self.next_sleep = (2 * self.next_sleep).min(SLEEP.1);
        }
    }
}

impl ExpertStore {
    /// Whether a prediction of the routing of so many rows in a layer to come would be of use.
    pub fn wants_prediction(&mut self, layer: usize, n_rows: usize) -> bool {
        let ahead = &mut self.ahead;
        let is_whole = self.n_in_memory[layer] as usize == self.layers[layer].n_experts();
        let is_off = ahead.mode == LookAhead::Off || ahead.sweep.is_some();
        let is_wanted = if is_off || is_whole {
            false
        } else if n_rows > MOST_ROWS {
            let is_trusted =
                ahead.mode == LookAhead::On || ahead.sweep_precision >= LEAST_SWEEP_PRECISION;
            if !is_trusted {
                // Distrust fades, so that what failed for one prompt is tried again.
                ahead.sweep_precision += (1.0 - ahead.sweep_precision) / 256.0;
            }
            is_trusted
        } else {
            ahead.asleep_for = ahead.asleep_for.saturating_sub(1);
            ahead.asleep_for == 0
        };
        if !is_wanted {
            self.warm();
        }
        is_wanted
    }

    /// Tells the predicted routing of a layer to come; `is_held` tells which experts will not be asked for,
    /// because a device has them. Reads begin when nobody waits for the drive: at once, or when all of a
    /// request that was made before was read.
    pub fn look_ahead(&mut self, layer: usize, routing: &Routing, is_held: &dyn Fn(u32) -> bool) {
        let (begin, elsewhere) = (Instant::now(), self.stats.elsewhere());
        self.settle_look_ahead(None);
        self.ahead.layer = layer;
        if routing.experts.len() > MOST_ROWS * routing.top_k {
            self.sweep_predicted(layer, routing, is_held);
            self.book(begin, elsewhere);
            return;
        }
        self.ahead.window.predictions += 1;
        // The surest of all rows first.
        for rank in 0..routing.top_k {
            let rows = routing.experts.chunks_exact(routing.top_k);
            for (experts, weights) in rows.zip(routing.weights.chunks_exact(routing.top_k)) {
                let key = self.first_keys[layer] + experts[rank];
                let ahead = &mut self.ahead;
                let is_known = self.places[key as usize] != NOWHERE
                    || is_held(experts[rank])
                    || ahead.predicted.iter().any(|&(known, _)| known == key);
                if is_known {
                    continue;
                }
                let margin = weights[rank] / weights[routing.top_k - 1].max(f32::MIN_POSITIVE);
                let class = ((2.0 * margin.log2()) as usize).min(CLASSES - 1);
                ahead.predicted.push((key, class));
                let is_sure = ahead.classes[class].precision >= LEAST_PRECISION;
                if (is_sure || ahead.mode == LookAhead::On) && ahead.wanted.len() < ahead.n_reads {
                    ahead.wanted.push_back(key);
                }
            }
        }
        self.read_wanted();
        self.warm();
        self.book(begin, elsewhere);
    }

    /// Begins to read what is predicted, if nobody waits for the drive.
    pub(super) fn read_wanted(&mut self) {
        let is_idle = self.in_flight == self.warm.in_flight + self.ahead_in_flight
            && self.request.waiting.is_empty();
        if !is_idle || self.ahead.wanted.is_empty() {
            return;
        }
        while let Some(key) = self.ahead.wanted.pop_front() {
            // It may have been asked for meanwhile.
            if self.places[key as usize] == NOWHERE && !self.read_ahead(key) {
                break;
            }
        }
        self.begin_reads();
    }

    /// Goes on reading the next layer while a large chunk computes this one.
    pub(super) fn sweep(&mut self) {
        let Some(mut next) = self.ahead.sweep else { return };
        if !self.request.waiting.is_empty() {
            return;
        }
        let most = (SWEEP_BYTES / self.slot_bytes.max(1)).max(1) as usize;
        let mut is_any = false;
        while self.ahead_in_flight < most
            && let Some(&key) = self.ahead.sweep_keys.get(next)
        {
            if self.places[key as usize] == NOWHERE {
                if !self.read_ahead(key) {
                    break;
                }
                is_any = true;
            }
            next += 1;
        }
        self.ahead.sweep = Some(next);
        if is_any {
            self.begin_reads();
        }
    }

    /// Begins to sweep through what several rows are predicted to use.
    fn sweep_predicted(&mut self, layer: usize, routing: &Routing, is_held: &dyn Fn(u32) -> bool) {
        let State { counts, sweep_keys, sweep, .. } = &mut self.ahead;
        counts.clear();
        counts.resize(self.layers[layer].len(), 0);
        routing.experts.iter().for_each(|&expert| counts[expert as usize] += 1);
        sweep_keys.clear();
        let likely = (0..)
            .zip(counts.iter())
            .filter(|&(expert, &count)| count >= LEAST_COUNT && !is_held(expert));
        sweep_keys.extend(likely.map(|(expert, _)| self.first_keys[layer] + expert));
        *sweep = Some(0);
        self.sweep();
    }

    /// Begins to read an expert that nobody asked for, if there is a slot.
    fn read_ahead(&mut self, key: u32) -> bool {
        let Some(slot) = self.take_slot() else { return false };
        let job = self.job(key, slot, Urgency::Ahead);
        self.slots[slot as usize].is_ahead = true;
        self.ahead.slots.push(slot);
        self.ahead_in_flight += 1;
        self.stats.ahead_reads += 1;
        self.reader.submit(job);
        true
    }

    /// Takes back what was to be read ahead or for the heat map and has not begun; before a request is
    /// looked at.
    pub(super) fn take_back_ahead(&mut self) {
        let mut n_taken = 0;
        while self.in_flight > 0 {
            let Some(Job { slot, block, .. }) = self.reader.take_back() else { break };
            self.in_flight -= 1;
            let entry = &mut self.slots[slot as usize];
            let Slot { key, is_ahead, is_warm, .. } = *entry;
            (entry.block, entry.is_ahead, entry.is_warm) = (Some(block), false, false);
            self.forget_place(key);
            self.free.push(slot);
            if is_warm {
                self.take_back_warm(key);
            } else {
                n_taken += 1;
                // One that was settled meanwhile counts no more.
                self.ahead_in_flight -= usize::from(is_ahead);
                self.stats.ahead_reads -= 1;
            }
        }
        if n_taken > 0 {
            let slots = &self.slots;
            self.ahead.slots.retain(|&slot| slots[slot as usize].is_ahead);
            self.ahead.n_reads = (self.ahead.n_reads - 1).max(1);
        }
    }

    /// Compares what was predicted with what was asked for, and lets go of what was read in vain; in
    /// the midst of a request for a layer, or for none.
    pub(super) fn settle_look_ahead(&mut self, layer: Option<usize>) {
        let Self { ahead, slots, policy, stats, asked_by, request, .. } = self;
        ahead.wanted.clear();
        let is_due = layer == Some(ahead.layer);
        let was_asked = |key: u32| is_due && asked_by[key as usize] == request.number;
        for (key, class) in ahead.predicted.drain(..) {
            if is_due {
                let came_true = f32::from(u8::from(was_asked(key)));
                let precision = &mut ahead.classes[class].precision;
                *precision += (came_true - *precision) / 64.0;
            }
        }
        let n_begun = ahead.slots.len();
        let (mut n_late, before) = (0, ahead.window);
        for slot in ahead.slots.drain(..) {
            let entry = &mut slots[slot as usize];
            // Its read may have failed meanwhile.
            if !std::mem::replace(&mut entry.is_ahead, false) {
                continue;
            }
            if entry.block.is_none() {
                self.ahead_in_flight -= 1;
            }
            if was_asked(entry.key) {
                stats.ahead_useful += 1;
                ahead.window.useful += 1;
                continue;
            }
            ahead.window.wasted += 1;
            match entry.block {
                Some(_) => policy.may_leave(entry.key),
                // It delays the reads that somebody waits for.
                None => n_late += 1,
            }
        }
        if ahead.sweep.take().is_some() {
            // A sweep tells nothing about the predictions of few rows.
            let useful = (ahead.window.useful - before.useful) as f32;
            let wasted = (ahead.window.wasted - before.wasted) as f32;
            if is_due && useful + wasted > 0.0 {
                let precision = useful / (useful + wasted);
                ahead.sweep_precision += (precision - ahead.sweep_precision) / 8.0;
            }
            ahead.window = before;
        } else if n_late > 0 {
            ahead.n_reads = (ahead.n_reads - 1).max(1);
        } else if n_begun == ahead.n_reads {
            ahead.n_reads = (ahead.n_reads + 1).min(MOST_READS);
        }
        ahead.judge();
    }

    /// Whether nothing is to be read before it is asked for.
    pub(super) fn is_look_ahead_off(&self) -> bool {
        self.ahead.mode == LookAhead::Off
    }

    /// Whether the next layer is being read whole.
    pub(super) fn is_sweeping(&self) -> bool {
        self.ahead.sweep.is_some()
    }

    /// Begins to sweep through the next layer if this one is used nearly whole; twins do not count.
    pub(super) fn plan_sweep(&mut self, layer: usize, n_asked: usize) {
        let is_wide = n_asked as f64 >= SWEEP_SHARE * self.layers[layer].n_experts() as f64;
        let next = (layer + 1..self.layers.len()).find(|&next| !self.layers[next].is_empty());
        if let Some(next) = next
            && self.ahead.mode != LookAhead::Off
            && is_wide
            && self.n_in_memory[next] < self.layers[next].n_experts() as u32
        {
            (self.ahead.layer, self.ahead.sweep) = (next, Some(0));
            let first = self.first_keys[next];
            self.ahead.sweep_keys.clear();
            self.ahead.sweep_keys.extend(first..first + self.layers[next].n_experts() as u32);
        }
    }
}
