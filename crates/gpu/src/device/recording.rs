//! Recording: what the device is to do, in order, and how it is handed over.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU64;
use std::time::Instant;

use compute::Handoffs;
use wgpu::BufferUses;
use wgpu::hal;

use crate::device::clock::{Clock, Stamps};
use crate::device::compile::Kernel;
use crate::device::hazards::{Hazards, States};
use crate::device::mapped::Ring;
use crate::device::open::Special;
#[cfg(any(target_os = "linux", windows))]
use crate::device::vulkan;
use crate::device::{Buffer, Grave, IMMEDIATE_BYTES, MAX_BINDINGS, Moment, Shared, lock};

/// Dispatches after which work is handed to the device although nobody waits for it, so that it computes
/// while more is recorded: the first number while it
/// has nothing to do, doubled by each submission under way, to the second.
const SUBMIT_FIRST: u32 = 8;
pub(super) const SUBMIT_AFTER: u32 = 96;

/// A kernel and the buffers that it is started on.
type GroupKey = [u64; MAX_BINDINGS + 1];

/// What was recorded and not handed over yet, and what was and is not done yet.
#[derive(Default)]
pub(super) struct Recording {
    encoder: Option<Box<dyn hal::DynCommandEncoder>>,
    is_in_pass: bool,
    /// The kernel that was started last in this pass.
    last_kernel: u64,
    n_dispatches: u32,
    hazards: Hazards,
    states: States,
    groups: HashMap<GroupKey, Box<dyn hal::DynBindGroup>, BuildHasherDefault<WordHasher>>,
    ring: Ring,
    /// What the next submission has to wait for.
    #[cfg(any(target_os = "linux", windows))]
    pub(super) before_next: Option<(ash::vk::Semaphore, u64)>,
    idle: Vec<Box<dyn hal::DynCommandEncoder>>,
    in_flight: VecDeque<Submission>,
    /// What was let go of, by the submission and the upload after which nothing uses it.
    graves: VecDeque<(u64, u64, Grave)>,
    /// The last submission; they are counted from 1.
    submitted: u64,
    last_id: u64,
    pub(super) counts: Handoffs,
    /// Where somebody wants to know when kernels run.
    pub(super) clock: Option<Clock>,
}

/// Commands that were handed over.
struct Submission {
    number: u64,
    encoder: Box<dyn hal::DynCommandEncoder>,
    commands: Box<dyn hal::DynCommandBuffer>,
    /// When its kernels run.
    stamps: Option<Stamps>,
}

/// Hashes numbers that are counted up: nobody chooses them.
#[derive(Default)]
pub(super) struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..byte.len()].copy_from_slice(byte);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Recording {
    /// Nothing yet, on a device with a clock or without.
    pub(super) fn new(clock: Option<Clock>) -> Self {
        Self { clock, ..Self::default() }
    }

    /// A number that no buffer or kernel had.
    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// All that was recorded so far.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.submitted + u64::from(self.encoder.is_some()))
    }

    /// Records the start of a kernel.
    pub(super) fn dispatch(
        &mut self,
        shared: &Shared,
        kernel: &Kernel,
        buffers: &[&Buffer],
        immediates: &[u32],
        workgroups: [u32; 3],
    ) {
        let (Some(pipeline), Some(layout)) = (&kernel.pipeline, &kernel.layout) else { return };
        let mut key = [0; MAX_BINDINGS + 1];
        key[0] = kernel.id;
        for (key, buffer) in key[1..].iter_mut().zip(buffers) {
            *key = buffer.id;
        }
        if let Entry::Vacant(place) = self.groups.entry(key) {
            let Some(group) = bind(shared, kernel, buffers) else { return };
            place.insert(group);
        }
        let accesses = buffers.iter().zip(&layout.writes).map(|(buffer, is_written)| {
            let usage = match is_written {
                true => BufferUses::STORAGE_READ_WRITE,
                false => BufferUses::STORAGE_READ_ONLY,
            };
            (*buffer, usage)
        });
        if self.order(shared, accesses).is_none() {
            return;
        }
        let (Some(encoder), Some(group)) = (&mut self.encoder, self.groups.get(&key)) else {
            return;
        };
        // SAFETY: the encoder records; the group was made for this kernel's layout and is kept, with its
        // buffers, until the device is done; the words are no more than the layout has.
        unsafe {
            if !self.is_in_pass {
                let descriptor = hal::ComputePassDescriptor { label: None, timestamp_writes: None };
                encoder.begin_compute_pass(&descriptor);
                self.is_in_pass = true;
                self.last_kernel = 0;
            }
            if self.last_kernel != kernel.id {
                encoder.set_compute_pipeline(&**pipeline);
                self.last_kernel = kernel.id;
            }
            encoder.set_bind_group(&*layout.pipeline, 0, &**group, &[]);
            if !immediates.is_empty() {
                encoder.set_immediates(&*layout.pipeline, 0, immediates);
            }
            if let Some(clock) = &mut self.clock {
                clock.before(&mut **encoder);
            }
            encoder.dispatch_workgroups(workgroups);
            if let Some(clock) = &mut self.clock {
                clock.after(&mut **encoder, kernel.name);
            }
        }
        self.n_dispatches += 1;
        self.counts.dispatches += 1;
        let most = SUBMIT_AFTER.min(SUBMIT_FIRST << self.in_flight.len().min(8));
        if self.n_dispatches >= most {
            self.hand_over(shared);
        }
    }

    /// Records that a buffer becomes zero.
    pub(super) fn clear(&mut self, shared: &Shared, buffer: &Buffer) {
        let Some(encoder) = self.transfer(shared, [(buffer, BufferUses::COPY_DST)].into_iter())
        else {
            return;
        };
        if let Some(raw) = &buffer.raw {
            // SAFETY: the encoder records outside of passes; the range is the buffer's.
            unsafe { encoder.clear_buffer(&**raw, 0..buffer.bytes()) };
        }
    }

    /// Records a copy between buffers; all numbers are bytes, multiples of 4.
    pub(super) fn copy(
        &mut self,
        shared: &Shared,
        from: (&Buffer, u64),
        to: (&Buffer, u64),
        bytes: u64,
    ) {
        let uses = [(from.0, BufferUses::COPY_SRC), (to.0, BufferUses::COPY_DST)];
        let Some(size) = NonZeroU64::new(bytes) else { return };
        let Some(encoder) = self.transfer(shared, uses.into_iter()) else { return };
        if let (Some(source), Some(target)) = (&from.0.raw, &to.0.raw) {
            let region = hal::BufferCopy { src_offset: from.1, dst_offset: to.1, size };
            // SAFETY: the encoder records outside of passes; the caller asserted the ranges.
            unsafe { encoder.copy_buffer_to_buffer(&**source, &**target, &[region]) };
        }
    }

    /// Records a write of bytes that are taken now.
    pub(super) fn write(&mut self, shared: &Shared, buffer: &Buffer, at: u64, bytes: &[u8]) {
        let Some(target) = &buffer.raw else { return };
        let (mut at, mut bytes) = (at, bytes);
        while !bytes.is_empty() {
            if self.order(shared, [(buffer, BufferUses::COPY_DST)].into_iter()).is_none() {
                return;
            }
            self.end_pass();
            let next = self.submitted + 1;
            let (Some(encoder), Some((len, source, src_offset))) =
                (&mut self.encoder, self.ring.put(shared, bytes, next))
            else {
                self.hand_over(shared);
                if !self.ring.next_piece(shared) {
                    return;
                }
                continue;
            };
            let size = NonZeroU64::new((len as u64).next_multiple_of(4)).expect("there are bytes");
            let region = hal::BufferCopy { src_offset, dst_offset: at, size };
            // SAFETY: the encoder records outside of passes; the caller asserted the range, and the ring
            // keeps what was put until this submission is done.
            unsafe { encoder.copy_buffer_to_buffer(source, &**target, &[region]) };
            at += len as u64;
            bytes = &bytes[len..];
        }
    }

    /// Records that bytes of a buffer come to where the host reads them.
    pub(super) fn read(
        &mut self,
        shared: &Shared,
        (buffer, at): (&Buffer, u64),
        (to, to_at): (&dyn hal::DynBuffer, u64),
        size: NonZeroU64,
    ) {
        let uses = [(buffer, BufferUses::COPY_SRC)];
        let Some(encoder) = self.transfer(shared, uses.into_iter()) else { return };
        let Some(source) = &buffer.raw else { return };
        let region = hal::BufferCopy { src_offset: at, dst_offset: to_at, size };
        // SAFETY: the encoder records outside of passes; the caller asserted the ranges.
        unsafe { encoder.copy_buffer_to_buffer(&**source, to, &[region]) };
        shared.special.show_host(&**encoder);
    }

    /// Whether the work of a moment was handed over.
    pub(super) fn is_handed_over(&self, moment: u64) -> bool {
        moment <= self.submitted
    }

    /// The encoder, outside of passes; `None` after a failure.
    pub(super) fn outside_of_passes(
        &mut self,
        shared: &Shared,
    ) -> Option<&mut Box<dyn hal::DynCommandEncoder>> {
        self.transfer(shared, std::iter::empty())
    }

    /// The encoder, outside of passes and after what the accesses depend on; `None` after a failure.
    fn transfer<'a>(
        &mut self,
        shared: &Shared,
        accesses: impl Iterator<Item = (&'a Buffer, BufferUses)> + Clone,
    ) -> Option<&mut Box<dyn hal::DynCommandEncoder>> {
        self.order(shared, accesses)?;
        self.end_pass();
        self.encoder.as_mut()
    }

    fn end_pass(&mut self) {
        if let (true, Some(encoder)) = (self.is_in_pass, &mut self.encoder) {
            // SAFETY: the pass was begun.
            unsafe { encoder.end_compute_pass() };
            self.is_in_pass = false;
        }
    }

    /// Makes sure that there is an encoder and that what comes next sees what it depends on.
    fn order<'a>(
        &mut self,
        shared: &Shared,
        accesses: impl Iterator<Item = (&'a Buffer, BufferUses)> + Clone,
    ) -> Option<()> {
        if self.encoder.is_none() {
            self.encoder = Some(self.begin(shared)?);
        }
        let encoder = self.encoder.as_mut()?;
        match &shared.special {
            #[cfg(any(target_os = "linux", windows))]
            Special::Vulkan(vulkan) => {
                if self.hazards.access(accesses.map(|(buffer, usage)| (buffer.id, usage))) {
                    vulkan.barrier(&**encoder, false);
                }
            }
            #[cfg(windows)]
            Special::Dx12 => {
                for (buffer, to) in accesses {
                    let (Some(from), Some(raw)) = (self.states.enter(buffer.id, to), &buffer.raw)
                    else {
                        continue;
                    };
                    let usage = hal::StateTransition { from, to };
                    // SAFETY: the encoder records, and the buffer is kept until the device is done.
                    unsafe {
                        encoder.transition_buffers(&[hal::BufferBarrier { buffer: &**raw, usage }]);
                    }
                }
            }
            // What depends on what is the driver's affair.
            Special::Ordered => drop((accesses, encoder)),
        }
        Some(())
    }

    /// An encoder that records.
    fn begin(&mut self, shared: &Shared) -> Option<Box<dyn hal::DynCommandEncoder>> {
        if shared.has_failed() {
            return None;
        }
        let made = match self.idle.pop() {
            Some(encoder) => Ok(encoder),
            None => {
                let queue = &*shared.queue;
                let descriptor = hal::CommandEncoderDescriptor { label: None, queue };
                // SAFETY: the queue is this device's.
                unsafe { shared.device.create_command_encoder(&descriptor) }
            }
        };
        let begun = made.and_then(|mut encoder| {
            // SAFETY: the encoder is not recording.
            unsafe { encoder.begin_encoding(None) }.map(|()| encoder)
        });
        let mut encoder = begun.map_err(|error| shared.fail_with(&error)).ok()?;
        if let Some(clock) = &mut self.clock {
            clock.begin(shared, &mut *encoder);
        }
        Some(encoder)
    }

    /// Hands over what was recorded.
    pub(super) fn hand_over(&mut self, shared: &Shared) {
        self.end_pass();
        self.n_dispatches = 0;
        self.states.clear();
        if let Some(encoder) = self.encoder.take() {
            let number = self.submitted + 1;
            match self.submit(shared, encoder, number) {
                Ok(()) => {
                    self.submitted = number;
                    self.counts.submissions += 1;
                }
                Err(error) => shared.fail_with(&error),
            }
        }
        self.bury(shared);
        self.retire(shared);
    }

    fn submit(
        &mut self,
        shared: &Shared,
        mut encoder: Box<dyn hal::DynCommandEncoder>,
        number: u64,
    ) -> Result<(), hal::DeviceError> {
        let clock = self.clock.as_mut();
        let stamps = clock.and_then(|clock| clock.end(shared, &mut *encoder));
        #[cfg(any(target_os = "linux", windows))]
        let handle = match &shared.special {
            Special::Vulkan(vulkan) => vulkan::semaphore(shared.fence())
                .map(|semaphore| (vulkan, vulkan::commands(&*encoder), semaphore)),
            _ => None,
        };
        // SAFETY: the encoder records, outside of passes.
        let commands = match unsafe { encoder.end_encoding() } {
            Ok(commands) => commands,
            Err(error) => {
                if let (Some(clock), Some(stamps)) = (&mut self.clock, stamps) {
                    clock.unused(stamps);
                }
                return Err(error);
            }
        };
        // Even if it cannot be handed over, what it uses is kept until it is certain that nothing runs.
        self.in_flight.push_back(Submission { number, encoder, commands, stamps });
        let Some(Submission { commands, .. }) = self.in_flight.back() else { return Ok(()) };
        #[cfg(any(target_os = "linux", windows))]
        if let Some((vulkan, handle, semaphore)) = handle {
            let before = self.before_next.take();
            // SAFETY: the commands are complete; they and what they use are kept until the semaphore has the
            // number.
            return unsafe { vulkan.submit(&*shared.queue, handle, before, (semaphore, number)) };
        }
        // SAFETY: as above.
        unsafe { shared.queue.submit(&[&**commands], &[], (shared.fence(), number)) }
    }

    /// Takes over what was let go of since the last submission, to be destroyed after it.
    fn bury(&mut self, shared: &Shared) {
        let dead = std::mem::take(&mut *lock(&shared.graves));
        if dead.is_empty() {
            return;
        }
        let ids: Vec<u64> = dead.iter().filter_map(Grave::id).collect();
        let groups = self.groups.extract_if(|key, _| key.iter().any(|id| ids.contains(id)));
        let groups = groups.map(|(_, group)| Grave::Group(group));
        // Groups go before what they name.
        let (submitted, begun) = (self.submitted, shared.begun_copies());
        self.graves.extend(groups.chain(dead).map(|grave| (submitted, begun, grave)));
    }

    /// Takes back what submissions used that are done.
    pub(super) fn retire(&mut self, shared: &Shared) {
        let done = shared.done();
        let seen = Instant::now();
        while self.in_flight.front().is_some_and(|submission| submission.number <= done) {
            let Some(submission) = self.in_flight.pop_front() else { break };
            let Submission { mut encoder, commands, stamps, .. } = submission;
            if let (Some(clock), Some(stamps)) = (&mut self.clock, stamps) {
                clock.done(shared, stamps, seen);
            }
            // SAFETY: the commands are this encoder's only ones, and done.
            unsafe { encoder.reset_all(vec![commands]) };
            self.idle.push(encoder);
        }
        let arrived = if self.graves.is_empty() { 0 } else { shared.arrived() };
        let is_free =
            |(submission, upload, _): &(u64, u64, Grave)| *submission <= done && *upload <= arrived;
        while self.graves.front().is_some_and(is_free) {
            let Some((_, _, grave)) = self.graves.pop_front() else { break };
            // SAFETY: the last submission and the last upload that use it are done.
            unsafe { grave.destroy(&*shared.device) };
        }
    }

    /// Destroys everything.
    ///
    /// # Safety
    /// The device does nothing any more.
    pub(super) unsafe fn destroy(&mut self, shared: &Shared) {
        if let Some(mut encoder) = self.encoder.take() {
            // SAFETY: it records.
            unsafe { encoder.discard_encoding() };
            self.idle.push(encoder);
        }
        for Submission { mut encoder, commands, stamps, .. } in self.in_flight.drain(..) {
            // SAFETY: the commands are this encoder's only ones, and the device does nothing.
            unsafe { encoder.reset_all(vec![commands]) };
            if let Some(stamps) = stamps {
                // SAFETY: the device does nothing.
                unsafe { stamps.destroy(shared) };
            }
        }
        if let Some(mut clock) = self.clock.take() {
            // SAFETY: the device does nothing.
            unsafe { clock.destroy(shared) };
        }
        self.idle.clear();
        let groups = self.groups.drain().map(|(_, group)| Grave::Group(group));
        let graves = self.graves.drain(..).map(|(_, _, grave)| grave);
        let dead = std::mem::take(&mut *lock(&shared.graves));
        for grave in groups.chain(graves).chain(dead) {
            // SAFETY: the device does nothing.
            unsafe { grave.destroy(&*shared.device) };
        }
        // SAFETY: the device does nothing.
        unsafe { self.ring.destroy(shared) };
    }
}

/// The group that tells a kernel its buffers.
fn bind(
    shared: &Shared,
    kernel: &Kernel,
    buffers: &[&Buffer],
) -> Option<Box<dyn hal::DynBindGroup>> {
    let layout = kernel.layout.as_ref()?;
    let bindings = buffers.iter().map(|buffer| {
        let whole = NonZeroU64::new(buffer.bytes());
        Some(hal::BufferBinding::new_unchecked(buffer.raw.as_deref()?, 0, whole))
    });
    let bindings: Vec<_> = bindings.collect::<Option<_>>()?;
    let entries: Vec<_> = (0..bindings.len() as u32)
        .map(|binding| hal::BindGroupEntry { binding, resource_index: binding, count: 1 })
        .collect();
    let descriptor = hal::BindGroupDescriptor {
        label: None,
        layout: &*layout.group,
        buffers: &bindings,
        samplers: &[],
        textures: &[],
        entries: &entries,
        acceleration_structures: &[],
        external_textures: &[],
    };
    // SAFETY: all are of this device; entries name the buffers, whole, in the order of the layout.
    let made = unsafe { shared.device.create_bind_group(&descriptor) };
    made.map_err(|error| shared.fail_with(&error)).ok()
}

const _: () = assert!(IMMEDIATE_BYTES.is_multiple_of(4));
