//! Memory that drive reads land in and kernels read from.
//!
//! One [`Arena`] is mapped at start and cut into page-aligned [`Block`]s, so that the budget is spent
//! once, huge pages are possible, and direct reads find aligned destinations.

#![expect(unsafe_code, reason = "maps anonymous memory and hands out disjoint parts of it")]

use std::io;
use std::sync::Arc;

/// Alignment of every block, in bytes: enough for direct I/O on any drive.
pub const BLOCK_ALIGNMENT: usize = 4096;
/// Of this an arena has a whole number: pages of Apple's processors, so that a device can be given all of it.
const ARENA_ALIGNMENT: usize = 16 << 10;

/// A mapping of anonymous memory.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory that is only reached through blocks, which are disjoint and
// follow Rust's borrowing rules; the pointer itself is never written after creation.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    #[cfg(unix)]
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh anonymous private mapping has no preconditions; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    #[cfg(not(unix))]
    fn new(len: usize) -> io::Result<Self> {
        let layout = std::alloc::Layout::from_size_align(len, ARENA_ALIGNMENT)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        // SAFETY: the layout has a positive size: `Arena::new` rounds it up to a block.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        if start.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: `start` and `len` are those of a mapping that this value owns alone.
        unsafe {
            libc::munmap(self.start.cast(), self.len);
        }
        #[cfg(not(unix))]
        // SAFETY: the same layout as at allocation; this value owns the memory alone.
        unsafe {
            let layout = std::alloc::Layout::from_size_align_unchecked(self.len, ARENA_ALIGNMENT);
            std::alloc::dealloc(self.start, layout);
        }
    }
}

/// A stretch of memory, allocated once, from which blocks are cut one after another.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    used: usize,
}

impl Arena {
    /// Reserves `len` bytes, rounded up to whole pages. Pages become resident when first written.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len
            .max(1)
            .checked_next_multiple_of(ARENA_ALIGNMENT)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { mapping: Arc::new(Mapping::new(len)?), used: 0 })
    }

    /// Asks the system to back the arena with huge pages where it can: fewer faults and TLB misses.
    /// A refusal costs nothing but speed, so it is not reported.
    pub fn advise_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        // SAFETY: advice about a mapping that we own; it does not change its contents.
        unsafe {
            libc::madvise(self.mapping.start.cast(), self.mapping.len, libc::MADV_HUGEPAGE);
        }
    }

    /// A handle on all pages of the arena.
    pub fn pages(&self) -> Pages {
        Pages { mapping: Arc::clone(&self.mapping) }
    }

    /// Cuts the next block off the arena; `None` when fewer than `len` bytes are left.
    pub fn take(&mut self, len: usize) -> Option<Block> {
        let len = len.checked_next_multiple_of(BLOCK_ALIGNMENT)?;
        let start = self.used;
        let end = start.checked_add(len).filter(|&end| end <= self.mapping.len)?;
        self.used = end;
        Some(Block { mapping: Arc::clone(&self.mapping), start, len })
    }
}

/// The pages of an [`Arena`], to be made resident before they are first written: where memory must be
/// supplied, that takes longer than reading into it, and whoever touches it first waits for it.
#[derive(Debug)]
pub struct Pages {
    mapping: Arc<Mapping>,
}

impl Pages {
    /// The addresses of all pages of the arena.
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.mapping.start as usize;
        start..start + self.mapping.len
    }

    /// Makes a part of the arena resident and leaves its contents as they are; `false` where the
    /// system cannot, or where the arena ends before.
    pub fn populate(&self, start: usize, len: usize) -> bool {
        let begin = start - start % BLOCK_ALIGNMENT;
        if start.checked_add(len).is_none_or(|end| end > self.mapping.len) {
            return false;
        }
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies inside the living mapping; populating it changes no contents, so it
        // may happen beside any other use.
        return unsafe {
            let place = self.mapping.start.add(begin).cast();
            libc::madvise(place, start + len - begin, libc::MADV_POPULATE_WRITE) == 0
        };
        #[cfg(not(target_os = "linux"))]
        {
            let _ = begin;
            false
        }
    }
}

/// A page-aligned part of an [`Arena`] that no other block overlaps.
#[derive(Debug)]
pub struct Block {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Block {
    /// A handle on all pages of the arena that the block is a part of.
    pub fn pages(&self) -> Pages {
        Pages { mapping: Arc::clone(&self.mapping) }
    }

    /// The bytes; zero until something is written.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies inside the living mapping, and blocks are disjoint, so only this
        // value's borrows reach it.
        unsafe { std::slice::from_raw_parts(self.mapping.start.add(self.start), self.len) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `&mut self` excludes every other borrow.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_disjoint_and_bounded() {
        let mut arena = Arena::new(ARENA_ALIGNMENT - 1).expect("a small arena");
        let mut first = arena.take(1).expect("one page");
        let second = arena.take(BLOCK_ALIGNMENT + 1).expect("two pages");
        assert_eq!(first.bytes().as_ptr() as usize % BLOCK_ALIGNMENT, 0);
        assert_eq!((first.bytes().len(), second.bytes().len()), (4096, 8192));
        first.bytes_mut().fill(7);
        let third = arena.take(1).expect("another page");
        assert!(third.bytes().iter().chain(second.bytes()).all(|&byte| byte == 0));
        let (pages, place) = (second.pages().range(), second.bytes().as_ptr() as usize);
        assert_eq!((pages.len(), place - pages.start), (ARENA_ALIGNMENT, BLOCK_ALIGNMENT));
        assert!(arena.take(1).is_none(), "the arena is used up");
        drop(arena);
        assert_eq!(first.bytes()[4095], 7, "a block keeps its arena alive");
    }
}
