//! What the system's page cache holds of a file, and making it forget.
//!
//! A cold start is only cold when the model's pages are out of memory. The system is asked to drop
//! them, and then asked what is still there, because it may refuse: pages that somebody has mapped or
//! not yet written stay. The drive's own cache and a virtual machine's host cannot be asked.

#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "advice and mincore are system calls")
)]

use std::fs::File;
use std::io;
use std::path::Path;

/// Asks the system to drop a file's pages; on systems other than Linux there is no such call, and the
/// error says so.
pub fn evict_pages(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Pages not yet written cannot be dropped. Not every file system syncs a file open for reading.
    drop(file.sync_all());
    drop_pages(&file)
}

/// The share of a file's pages that are in the page cache, from 0 to 1.
///
/// Linux tells everybody else than the owner and those who may write that all pages are there.
pub fn resident_share(path: &Path) -> io::Result<f64> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(0.0);
    }
    let (resident, pages) = count_resident(&file, len)?;
    Ok(resident as f64 / pages as f64)
}

#[cfg(target_os = "linux")]
fn drop_pages(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    // SAFETY: the descriptor is open; advice changes no contents.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Resident pages and all pages.
#[cfg(target_os = "linux")]
fn count_resident(file: &File, len: u64) -> io::Result<(u64, u64)> {
    use std::os::fd::AsRawFd;

    /// Bytes that are mapped at a time: the answer takes a byte for each page.
    const WINDOW_BYTES: u64 = 1 << 30;

    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = u64::try_from(page).ok().filter(|&page| page > 0).unwrap_or(4096);
    let (mut resident, mut pages, mut offset) = (0, 0, 0);
    while offset < len {
        let window = WINDOW_BYTES.min(len - offset) as usize;
        // SAFETY: a fresh mapping that nobody reads; the result is checked.
        let start = unsafe {
            let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
            let offset = offset as libc::off_t;
            libc::mmap(std::ptr::null_mut(), window, protection, flags, file.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut states = vec![0_u8; (window as u64).div_ceil(page) as usize];
        // SAFETY: the range is the mapping, and `states` has a byte for each of its pages.
        let result = unsafe { libc::mincore(start, window, states.as_mut_ptr().cast()) };
        let error = io::Error::last_os_error();
        // SAFETY: the mapping was made above, and nothing refers to it.
        unsafe { libc::munmap(start, window) };
        if result != 0 {
            return Err(error);
        }
        resident += states.iter().filter(|&&state| state & 1 == 1).count() as u64;
        pages += states.len() as u64;
        offset += window as u64;
    }
    Ok((resident, pages))
}

#[cfg(not(target_os = "linux"))]
fn drop_pages(_: &File) -> io::Result<()> {
    Err(unsupported())
}

#[cfg(not(target_os = "linux"))]
fn count_resident(_: &File, _: u64) -> io::Result<(u64, u64)> {
    Err(unsupported())
}

#[cfg(not(target_os = "linux"))]
fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the page cache cannot be asked on this system")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_read_are_seen_and_can_be_dropped() {
        let name = format!("flash-moe-page-cache-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, vec![7; 1 << 20]).expect("a file can be written");
        let before = resident_share(&path).expect("Linux tells");
        evict_pages(&path).expect("Linux takes advice");
        let after = resident_share(&path).expect("Linux tells");
        std::fs::remove_file(&path).expect("the file is there");
        assert!(before > 0.9, "what was just written is cached: {before}");
        // A file system in memory has nowhere else to keep them.
        assert!(after == 0.0 || after == before, "all or nothing is dropped: {after}");
    }
}
