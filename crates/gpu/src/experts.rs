//! Experts on the device: how one lies in a slot, and the slots of a layer.

use std::borrow::Cow;

use checkpoint::Format;
use compute::{ExpertShape, ExpertUses, ExpertWeights, LoadedExpert, Matrix, MatrixShape};

use crate::device::{Buffer, Device, Moment, Part, Upload};
use crate::formats::{is_read_in_place, pack, part_bytes};
use crate::product::Operand;
use crate::scratch::Scratch;
use crate::weights::{WeightsError, check, place};

/// No slot.
const NOWHERE: u32 = u32::MAX;
/// After so many passes all counts of uses are halved, so that what was hot long ago can leave.
const HALVE_AFTER: u32 = 256;
/// Slots that experts pass through which are moved to the device for one use.
pub(crate) const TRANSIT_SLOTS: usize = 32;
/// Bits of a slot's number in a place; the others number its buffer.
const SLOT_BITS: u32 = 24;
/// Most slots of a buffer.
const MOST_SLOTS: u64 = 1 << SLOT_BITS;

/// How the experts of a layer lie in slots. All experts of a layer are stored alike.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExpertLayout {
    /// Gate, up, down.
    matrices: [Stored; 3],
    /// Bytes of a slot, a multiple of 16.
    pub(crate) bytes: u64,
}

/// A matrix of an expert in its slot.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    format: Format,
    rows: usize,
    cols: usize,
    /// Where codes, scales and biases begin, in bytes.
    parts: [u64; 3],
}

/// What the matrices of an expert in memory are like: gate, up, down.
pub(crate) fn shapes(weights: &ExpertWeights) -> [MatrixShape; 3] {
    [&weights.gate, &weights.up, &weights.down].map(|matrix| {
        let Matrix { format, rows, cols, .. } = *matrix;
        MatrixShape { format, rows, cols }
    })
}

impl ExpertLayout {
    /// The layout of experts of these shapes: gate, up, down.
    pub(crate) fn new(shapes: [MatrixShape; 3]) -> Result<Self, WeightsError> {
        let mut sizes = Vec::new();
        for MatrixShape { format, rows, cols } in shapes {
            check(format, cols)?;
            sizes.extend(part_bytes(format, rows, cols));
        }
        let (places, bytes) = place(&sizes);
        let stored = |index: usize| {
            let MatrixShape { format, rows, cols } = shapes[index];
            let parts = [0, 1, 2].map(|part| places[3 * index + part]);
            Stored { format, rows, cols, parts }
        };
        Ok(Self { matrices: [stored(0), stored(1), stored(2)], bytes })
    }

    /// How an expert lies in memory of the host, if kernels can read it there: from which byte of its block on,
    /// in steps of [`STEP`] bytes.
    ///
    /// [`STEP`]: ExpertLayout::STEP
    pub(crate) fn in_place(weights: &ExpertWeights) -> Option<(u64, Self)> {
        let matrices = [&weights.gate, &weights.up, &weights.down];
        let block = weights.gate.block();
        if !matrices.iter().all(|matrix| std::sync::Arc::ptr_eq(matrix.block(), block)) {
            return None;
        }
        let start = block.bytes().as_ptr() as usize;
        let mut parts = [[None; 3]; 3];
        for ((places, matrix), shape) in parts.iter_mut().zip(matrices).zip(shapes(weights)) {
            check(matrix.format, matrix.cols).ok()?;
            *places = [matrix.data(), matrix.scales(), matrix.biases()]
                .map(|bytes| (!bytes.is_empty()).then(|| (bytes.as_ptr() as usize - start) as u64));
            if !is_read_in_place(shape, places.map(Option::unwrap_or_default)) {
                return None;
            }
        }
        // Experts that lie alike at other places have one layout.
        let begin = parts.as_flattened().iter().flatten().min()? / Self::STEP * Self::STEP;
        let stored = |index: usize| {
            let MatrixShape { format, rows, cols } = shapes(weights)[index];
            let parts = parts[index].map(|at| at.map_or(0, |at| at - begin));
            Stored { format, rows, cols, parts }
        };
        Some((begin, Self { matrices: [stored(0), stored(1), stored(2)], bytes: Self::STEP }))
    }

    /// Bytes of a slot in the layout of [`ExpertLayout::in_place`]: an expert begins at any of them.
    pub(crate) const STEP: u64 = 16;

    /// Bytes of an expert's matrices.
    pub(crate) fn matrix_bytes(&self) -> u64 {
        let bytes = |matrix: &Stored| part_bytes(matrix.format, matrix.rows, matrix.cols);
        self.matrices.iter().flat_map(bytes).sum::<usize>() as u64
    }

    /// Inner width of the experts.
    pub(crate) fn intermediate(&self) -> usize {
        self.matrices[0].rows
    }

    /// Whether gate and up can be computed together.
    pub(crate) fn is_fused(&self) -> bool {
        self.matrices[0].format == self.matrices[1].format
    }

    /// Moves an expert into the slot that begins at a byte of a buffer, after the work of `after`, beside what
    /// is recorded later.
    pub(crate) fn upload(
        &self,
        device: &Device,
        weights: &ExpertWeights,
        (to, at): (&Buffer, u64),
        after: Moment,
    ) -> Upload {
        let matrices = [&weights.gate, &weights.up, &weights.down];
        let packed = matrices.map(pack);
        let mut parts = Vec::with_capacity(9);
        for ((stored, matrix), packed) in self.matrices.iter().zip(matrices).zip(&packed) {
            for (place, bytes) in stored.parts.iter().zip(&packed.parts) {
                // What is laid out anew is not where the block is.
                let block = matches!(bytes, Cow::Borrowed(_)).then(|| matrix.block());
                parts.push(Part { at: at + place, bytes, block });
            }
        }
        device.upload_parts(to, &parts, after)
    }

    fn operand<'a>(&self, slots: &'a Buffer, index: usize, up: Option<usize>) -> Operand<'a> {
        let words = |index: usize| self.matrices[index].parts.map(|at| (at / 4) as u32);
        let Stored { format, rows, cols, .. } = self.matrices[index];
        Operand {
            buffer: slots,
            format,
            rows,
            cols,
            parts: words(index),
            up: up.map(words),
            stride: (self.bytes / 4) as u32,
        }
    }

    /// Gate and up together.
    pub(crate) fn gate_up<'a>(&self, slots: &'a Buffer) -> Operand<'a> {
        self.operand(slots, 0, Some(1))
    }

    /// Gate alone.
    pub(crate) fn gate<'a>(&self, slots: &'a Buffer) -> Operand<'a> {
        self.operand(slots, 0, None)
    }

    /// Up alone.
    pub(crate) fn up<'a>(&self, slots: &'a Buffer) -> Operand<'a> {
        self.operand(slots, 1, None)
    }

    /// Down.
    pub(crate) fn down<'a>(&self, slots: &'a Buffer) -> Operand<'a> {
        self.operand(slots, 2, None)
    }
}

/// The slots of a layer, and which experts are in them.
#[derive(Debug)]
pub(crate) struct LayerSlots {
    pub(crate) layout: ExpertLayout,
    /// The slots in order, as many in each buffer as the device can reach at once; fewer in the last.
    buffers: Vec<Buffer>,
    slots_per_buffer: usize,
    /// For each expert its slot.
    places: Vec<u32>,
    /// The same on the device, as [`place_word`] says.
    table: Buffer,
    is_table_old: bool,
    /// For each slot its expert.
    holders: Vec<u32>,
    /// For each slot until when it is read.
    read_until: Vec<Moment>,
    /// For each expert how much it was used, halved now and then.
    uses: Vec<u32>,
    n_held: usize,
    passes: u32,
}

impl LayerSlots {
    /// Empty slots for as many of the experts as fit into so many bytes, in buffers of at most
    /// `buffer_bytes`.
    pub(crate) fn new(
        device: &Device,
        shape: &ExpertShape,
        bytes: u64,
        buffer_bytes: u64,
    ) -> Result<Self, WeightsError> {
        let layout = ExpertLayout::new(shape.matrices)?;
        let n_experts = shape.n_experts;
        let slots_per_buffer = (buffer_bytes / layout.bytes).min(MOST_SLOTS) as usize;
        if slots_per_buffer == 0 {
            return Err(WeightsError::TooLarge { bytes: layout.bytes, limit: buffer_bytes });
        }
        let n_slots = ((bytes / layout.bytes) as usize).min(n_experts);
        let begins = (0..n_slots).step_by(slots_per_buffer);
        let buffers = begins.map(|begin| {
            let n_slots = slots_per_buffer.min(n_slots - begin);
            device.buffer(layout.bytes * n_slots as u64)
        });
        Ok(Self {
            buffers: buffers.collect(),
            slots_per_buffer,
            layout,
            places: vec![NOWHERE; n_experts],
            table: device.buffer(4 * n_experts as u64),
            is_table_old: true,
            holders: vec![NOWHERE; n_slots],
            read_until: vec![Moment::default(); n_slots],
            uses: vec![0; n_experts],
            n_held: 0,
            passes: 0,
        })
    }

    /// How many experts it can hold.
    pub(crate) fn n_slots(&self) -> usize {
        self.holders.len()
    }

    /// How many experts the layer has.
    pub(crate) fn n_experts(&self) -> usize {
        self.places.len()
    }

    /// Whether every expert is held, each in the slot of its index.
    pub(crate) fn holds_all(&self) -> bool {
        self.n_held == self.places.len()
    }

    /// Whether every expert is in one buffer, in the slot of its index.
    pub(crate) fn is_plain(&self) -> bool {
        self.holds_all() && self.buffers.len() == 1
    }

    /// How many experts are held.
    pub(crate) fn n_held(&self) -> usize {
        self.n_held
    }

    /// The buffers of the slots.
    pub(crate) fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The buffer and the slot in it of an expert, if it is held.
    pub(crate) fn place(&self, expert: u32) -> Option<(usize, u32)> {
        let place = self.places[expert as usize];
        let per_buffer = self.slots_per_buffer as u32;
        (place != NOWHERE).then(|| ((place / per_buffer) as usize, place % per_buffer))
    }

    /// The table of places on the device, for `place.wgsl`.
    pub(crate) fn table(&mut self, device: &Device) -> &Buffer {
        if std::mem::take(&mut self.is_table_old) {
            let words = (0..self.places.len() as u32)
                .flat_map(|expert| place_word(self.place(expert)).to_le_bytes());
            device.write(&self.table, 0, &words.collect::<Vec<_>>());
        }
        &self.table
    }

    /// Counts the uses of a pass.
    pub(crate) fn count(&mut self, uses: &ExpertUses) {
        self.passes += 1;
        if self.passes.is_multiple_of(HALVE_AFTER) {
            self.uses.iter_mut().for_each(|uses| *uses /= 2);
        }
        for &expert in uses.distinct() {
            // A prompt counts an expert once: its rows say little about the tokens to come.
            self.uses[expert as usize] += 4;
        }
    }

    /// The slot that an expert should be taken into: one that is free, or one whose expert was used clearly
    /// less.
    fn slot_for(&self, expert: u32) -> Option<usize> {
        let n_slots = self.holders.len();
        if n_slots == self.places.len() {
            return Some(expert as usize);
        }
        if self.n_held < n_slots {
            return Some(self.n_held);
        }
        let uses_of = |slot: &usize| self.uses[self.holders[*slot] as usize];
        let coldest = (0..n_slots).min_by_key(uses_of)?;
        (uses_of(&coldest) + 4 < self.uses[expert as usize]).then_some(coldest)
    }

    /// Whether [`LayerSlots::hold`] would take an expert, or has it.
    pub(crate) fn wants(&self, expert: u32) -> bool {
        self.place(expert).is_some() || self.slot_for(expert).is_some()
    }

    /// Tells that work that reads experts was recorded.
    pub(crate) fn read(&mut self, experts: impl Iterator<Item = u32>, until: Moment) {
        for expert in experts {
            if let Some(read_until) = self.read_until.get_mut(self.places[expert as usize] as usize)
            {
                *read_until = until;
            }
        }
    }

    /// Takes an expert into a slot, if one is free or holds an expert that was used clearly less; gives what
    /// must have arrived before it is used.
    pub(crate) fn hold(
        &mut self,
        device: &Device,
        expert: u32,
        weights: &ExpertWeights,
    ) -> Option<Upload> {
        if self.place(expert).is_some() {
            return Some(Upload::default());
        }
        let slot = self.slot_for(expert)?;
        let before = std::mem::replace(&mut self.holders[slot], expert);
        if before == NOWHERE {
            self.n_held += 1;
        } else {
            self.places[before as usize] = NOWHERE;
        }
        self.places[expert as usize] = slot as u32;
        self.is_table_old = true;
        let after = self.read_until[slot];
        let (buffer, slot) = self.place(expert).expect("it was just placed");
        let to = (&self.buffers[buffer], self.layout.bytes * u64::from(slot));
        Some(self.layout.upload(device, weights, to, after))
    }
}

/// Slots that experts pass through which are moved to the device for one use, in turns.
#[derive(Debug, Default)]
pub(crate) struct Transit {
    buffer: Scratch,
    slot_bytes: u64,
    read_until: [Moment; TRANSIT_SLOTS],
    next: usize,
}

impl Transit {
    /// Moves experts there, at most half of the slots' number; gives the buffer, the slot of each, and what
    /// must have arrived before they are used.
    pub(crate) fn take(
        &mut self,
        device: &Device,
        layout: &ExpertLayout,
        experts: &[&LoadedExpert],
    ) -> (&Buffer, Vec<u32>, Upload) {
        if self.slot_bytes != layout.bytes {
            // Slots of another size lie across the old ones.
            self.slot_bytes = layout.bytes;
            self.read_until = [device.moment(); TRANSIT_SLOTS];
        }
        let buffer = self.buffer.at_least(device, layout.bytes as usize * TRANSIT_SLOTS);
        let mut last = Upload::default();
        let slots = experts.iter().map(|expert| {
            let slot = self.next;
            self.next = (slot + 1) % TRANSIT_SLOTS;
            let to = (buffer, layout.bytes * slot as u64);
            let upload = layout.upload(device, &expert.weights, to, self.read_until[slot]);
            last = last.max(upload);
            slot as u32
        });
        let slots = slots.collect();
        (buffer, slots, last)
    }

    /// Tells that work that reads slots was recorded.
    pub(crate) fn read(&mut self, slots: &[u32], until: Moment) {
        for &slot in slots {
            self.read_until[slot as usize] = until;
        }
    }
}

/// A place as `place.wgsl` reads it.
fn place_word(place: Option<(usize, u32)>) -> u32 {
    place.map_or(NOWHERE, |(buffer, slot)| (buffer as u32) << SLOT_BITS | slot)
}
