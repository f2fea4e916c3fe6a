//! Memory that host and device both see, for what goes from one to the other.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::ptr::NonNull;

use wgpu::BufferUses;
use wgpu::hal;

use crate::device::{Shared, lock};

/// Memory of the host that the device reaches and that stays mapped.
pub(super) struct Mapped {
    pub(super) raw: Box<dyn hal::DynBuffer>,
    start: NonNull<u8>,
    bytes: u64,
    is_coherent: bool,
}

// SAFETY: the pointer is to the memory of `raw`, which any thread may reach.
unsafe impl Send for Mapped {}

impl Mapped {
    /// So many bytes for these uses. `None` if there is no memory, or the device has failed.
    pub(super) fn new(shared: &Shared, bytes: u64, usage: BufferUses) -> Option<Self> {
        let raw = shared.raw_buffer(bytes, usage)?;
        // SAFETY: the buffer was made to be mapped, and is not yet.
        match unsafe { shared.device.map_buffer(&*raw, 0..bytes) } {
            Ok(mapping) => {
                let hal::BufferMapping { ptr: start, is_coherent } = mapping;
                Some(Self { raw, start, bytes, is_coherent })
            }
            Err(error) => {
                shared.fail_with(&error);
                // SAFETY: nothing uses it yet.
                unsafe { shared.device.destroy_buffer(raw) };
                None
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts bytes there for the device, with zeros up to a multiple of 4.
    ///
    /// # Safety
    /// The device does not read that range now.
    pub(super) unsafe fn put(&mut self, shared: &Shared, at: u64, bytes: &[u8]) {
        let padded = bytes.len().next_multiple_of(4);
        assert!(at + padded as u64 <= self.bytes, "the bytes fit");
        // SAFETY: the range is within the mapping, which nobody else reaches while it is borrowed mutably,
        // and which the device does not read.
        unsafe {
            let to = self.start.add(at as usize);
            to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
            to.add(bytes.len()).write_bytes(0, padded - bytes.len());
            if !self.is_coherent {
                let written = at..at + padded as u64;
                shared.device.flush_mapped_ranges(&*self.raw, std::slice::from_ref(&written));
            }
        }
    }

    /// Bytes from its beginning, which the device wrote.
    ///
    /// # Safety
    /// The device has done all that writes them, and begins no more while they are borrowed.
    pub(super) unsafe fn get(&self, shared: &Shared, bytes: u64) -> &[u8] {
        assert!(bytes <= self.bytes, "the bytes were there");
        // SAFETY: the range is within the mapping and nobody writes to it.
        unsafe {
            if !self.is_coherent {
                let whole = 0..self.bytes;
                shared.device.invalidate_mapped_ranges(&*self.raw, std::slice::from_ref(&whole));
            }
            std::slice::from_raw_parts(self.start.as_ptr(), bytes as usize)
        }
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The device has done all work that uses it.
    pub(super) unsafe fn destroy(self, shared: &Shared) {
        // SAFETY: it was mapped when it was made, and the caller says that nothing uses it.
        unsafe {
            shared.device.unmap_buffer(&*self.raw);
            shared.device.destroy_buffer(self.raw);
        }
    }
}

/// Bytes of a piece of a [`Ring`]. Few where this crate tests itself, so that they are used in turns.
const PIECE_BYTES: u64 = if cfg!(test) { 256 << 10 } else { 8 << 20 };
/// Most pieces of a [`Ring`].
const MOST_PIECES: usize = 4;
/// Fewer bytes than these are not put at the end of a piece when there are more to come.
const LEAST_SHARE: u64 = PIECE_BYTES / 32;

/// Mapped memory that bytes pass through on their way to the device, in bounded pieces that are used in
/// turns.
#[derive(Default)]
pub(super) struct Ring {
    /// The piece that is being filled is the last; of each, the submission that last reads it.
    pieces: std::collections::VecDeque<(Mapped, u64)>,
    /// Bytes of the last piece that are filled.
    filled: u64,
}

impl Ring {
    /// Puts as many of the bytes as fit into the current piece, for a submission to come; gives their number,
    /// and the memory and offset where they are. `None` if the piece is full.
    pub(super) fn put(
        &mut self,
        shared: &Shared,
        bytes: &[u8],
        submission: u64,
    ) -> Option<(usize, &dyn hal::DynBuffer, u64)> {
        let (piece, last_use) = self.pieces.back_mut()?;
        let room = piece.bytes() - self.filled;
        let fits = (bytes.len() as u64).min(room) as usize;
        if fits < bytes.len() && room < LEAST_SHARE {
            return None;
        }
        let at = self.filled;
        // SAFETY: bytes behind what is filled were given up by the device before the piece was taken.
        unsafe { piece.put(shared, at, &bytes[..fits]) };
        *last_use = submission;
        self.filled = (at + fits as u64).next_multiple_of(16).min(piece.bytes());
        Some((fits, &*piece.raw, at))
    }

    /// Begins another piece: the oldest if the device has read it or there are enough, else a new one. What
    /// was put must have been handed over. False after a failure.
    pub(super) fn next_piece(&mut self, shared: &Shared) -> bool {
        self.filled = 0;
        let is_free = self.pieces.front().is_some_and(|(_, last_use)| shared.is_done(*last_use));
        if !is_free && self.pieces.len() < MOST_PIECES {
            let usage = shared.staging_usage();
            let Some(piece) = Mapped::new(shared, PIECE_BYTES, usage) else { return false };
            self.pieces.push_back((piece, 0));
            return true;
        }
        let Some((piece, last_use)) = self.pieces.pop_front() else { return false };
        shared.wait_for(last_use);
        self.pieces.push_back((piece, 0));
        !shared.has_failed()
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The device has done all work that uses it.
    pub(super) unsafe fn destroy(&mut self, shared: &Shared) {
        for (piece, _) in self.pieces.drain(..) {
            // SAFETY: the caller's promise.
            unsafe { piece.destroy(shared) };
        }
    }
}

/// Memory that results come to the host through.
#[derive(Default)]
pub(super) struct Readback(Option<Mapped>);

impl Readback {
    /// Memory for at least so many bytes.
    pub(super) fn at_least(&mut self, shared: &Shared, bytes: u64) -> Option<&Mapped> {
        if self.0.as_ref().is_none_or(|held| held.bytes() < bytes) {
            let usage = BufferUses::MAP_READ | BufferUses::COPY_DST;
            let size = bytes.next_power_of_two().max(64 << 10);
            let made = Mapped::new(shared, size, usage);
            if let Some(held) = std::mem::replace(&mut self.0, made) {
                // SAFETY: whoever read through it waited for the device.
                unsafe { held.destroy(shared) };
            }
        }
        self.0.as_ref()
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The device has done all work that uses it.
    pub(super) unsafe fn destroy(&mut self, shared: &Shared) {
        if let Some(held) = self.0.take() {
            // SAFETY: the caller's promise.
            unsafe { held.destroy(shared) };
        }
    }
}

impl super::Device {
    /// Writes to a buffer, after all that was recorded before and before all that is recorded later.
    /// `at` is a multiple of 4, and the end is padded with zeros to one.
    pub(crate) fn write(&self, buffer: &super::Buffer, at: u64, bytes: &[u8]) {
        let end = at + (bytes.len() as u64).next_multiple_of(4);
        assert!(at.is_multiple_of(4) && end <= buffer.bytes(), "the bytes are of the buffer");
        lock(&self.shared.recording).write(&self.shared, buffer, at, bytes);
    }
}
