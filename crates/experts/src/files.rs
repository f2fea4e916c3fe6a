//! Reading data files past the system's page cache.
//!
//! Cached pages would count against the memory budget and cost a copy, so reads are direct where the
//! system allows: `O_DIRECT` on Linux, `F_NOCACHE` on macOS. Where it refuses, reads are buffered and
//! their pages given back at once.

#![cfg_attr(unix, expect(unsafe_code, reason = "advice and file flags need system calls"))]

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::FileId;

use crate::plan::{ReadPlan, Run};

/// Largest single read: enough for full speed, and small enough that several take turns.
const PIECE_BYTES: usize = 4 << 20;

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// Past the page cache where the system allows it.
    #[default]
    Direct,
    /// Through the page cache, whose pages are given back after each read.
    Buffered,
}

/// Why a data file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The system refused.
    #[error("{} at byte {offset}: {source}", .path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file is shorter than when it was opened.
    #[error(
        "{} ends at byte {found}, but {wanted} were there when it was opened\n\
         hint: the file was changed while in use",
        .path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Length that was wanted.
        wanted: u64,
        /// Length that was found.
        found: u64,
    },
}

/// Open data files.
#[derive(Debug)]
pub struct DataFiles {
    files: Vec<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    buffered: File,
    /// A second handle that reads past the page cache, if the system gave one.
    direct: Option<File>,
    /// Some file systems accept the flag and refuse the reads.
    direct_refused: AtomicBool,
}

impl DataFiles {
    /// Opens files; a [`checkpoint::FileId`] is an index into them.
    pub fn open(paths: &[PathBuf], mode: IoMode) -> Result<Self, IoError> {
        let files = paths.iter().map(|path| {
            let system = |source| IoError::System { path: path.clone(), offset: 0, source };
            let buffered = File::open(path).map_err(system)?;
            // Without random-access advice the kernel reads ahead, up to megabytes for each expert.
            advise_random(&buffered);
            let direct = match mode {
                IoMode::Direct => open_direct(path).ok(),
                IoMode::Buffered => None,
            };
            let direct_refused = AtomicBool::new(false);
            Ok(OpenFile { path: path.clone(), buffered, direct, direct_refused })
        });
        Ok(Self { files: files.collect::<Result<_, _>>()? })
    }

    /// The path of a file.
    pub fn path(&self, file: FileId) -> &Path {
        &self.files[file.0 as usize].path
    }

    /// Whether all files are read past the page cache, as far as is known.
    pub fn is_direct(&self) -> bool {
        let refused = |file: &OpenFile| file.direct_refused.load(Ordering::Relaxed);
        self.files.iter().all(|file| file.direct.is_some() && !refused(file))
    }

    /// The descriptor that reads past the page cache, where the system allows it.
    #[cfg(target_os = "linux")]
    pub(crate) fn direct_fd(&self, file: FileId) -> Option<std::os::fd::RawFd> {
        use std::os::fd::AsRawFd;

        let file = &self.files[file.0 as usize];
        let is_refused = file.direct_refused.load(Ordering::Relaxed);
        file.direct.as_ref().filter(|_| !is_refused).map(|file| file.as_raw_fd())
    }

    /// Reads what a plan says into a page-aligned destination; gives the number of bytes read.
    ///
    /// # Panics
    /// If the destination is smaller than the plan.
    pub fn read(&self, plan: &ReadPlan, destination: &mut [u8]) -> Result<u64, IoError> {
        let mut bytes = 0;
        for run in plan.runs() {
            let place = &mut destination[run.destination..run.destination + run.len()];
            bytes += self.read_run(run, place)? as u64;
        }
        Ok(bytes)
    }

    /// Reads a run into its place; gives the number of bytes read.
    pub(crate) fn read_run(&self, run: &Run, place: &mut [u8]) -> Result<usize, IoError> {
        self.files[run.file.0 as usize].read_run(run, place)
    }
}

impl OpenFile {
    fn read_run(&self, run: &Run, destination: &mut [u8]) -> Result<usize, IoError> {
        if let Some(direct) = &self.direct
            && !self.direct_refused.load(Ordering::Relaxed)
        {
            match self.read_fully(direct, run, destination) {
                Err(IoError::System { source, .. })
                    if source.kind() == io::ErrorKind::InvalidInput =>
                {
                    self.direct_refused.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        let result = self.read_fully(&self.buffered, run, destination);
        forget_pages(&self.buffered, run.offset, destination.len());
        result
    }

    /// Reads until all wanted bytes are there. The rest of the last block may lie behind the end of
    /// the file.
    fn read_fully(&self, file: &File, run: &Run, destination: &mut [u8]) -> Result<usize, IoError> {
        let mut done = 0;
        while done < run.wanted {
            let end = destination.len().min(done + PIECE_BYTES);
            let offset = run.offset + done as u64;
            match read_at(file, &mut destination[done..end], offset) {
                Ok(0) => {
                    let wanted = run.offset + run.wanted as u64;
                    return Err(IoError::Truncated {
                        path: self.path.clone(),
                        wanted,
                        found: offset,
                    });
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A direct read that ended short of a block has met the end of the file.
                Err(_) if done % compute::memory::BLOCK_ALIGNMENT != 0 => {
                    let wanted = run.offset + run.wanted as u64;
                    return Err(IoError::Truncated {
                        path: self.path.clone(),
                        wanted,
                        found: offset,
                    });
                }
                Err(source) => {
                    return Err(IoError::System { path: self.path.clone(), offset, source });
                }
            }
        }
        Ok(done)
    }
}

#[cfg(unix)]
fn read_at(file: &File, destination: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, destination, offset)
}

#[cfg(windows)]
fn read_at(file: &File, destination: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, destination, offset)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
}

#[cfg(target_os = "macos")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::fd::AsRawFd;

    let file = OpenOptions::new().read(true).open(path)?;
    // SAFETY: the descriptor is open, and the call only sets a flag on it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_NOCACHE, 1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file),
    }
}

#[cfg(windows)]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;

    const FILE_FLAG_NO_BUFFERING: u32 = 0x2000_0000;
    OpenOptions::new().read(true).custom_flags(FILE_FLAG_NO_BUFFERING).open(path)
}

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
fn open_direct(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn advise_random(file: &File) {
    use std::os::fd::AsRawFd;

    // SAFETY: the descriptor is open; advice changes no contents, and its refusal costs only speed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
}

#[cfg(not(target_os = "linux"))]
fn advise_random(_: &File) {}

#[cfg(target_os = "linux")]
fn forget_pages(file: &File, offset: u64, len: usize) {
    use std::os::fd::AsRawFd;

    let (offset, len) = (offset as libc::off_t, len as libc::off_t);
    // SAFETY: the descriptor is open; advice changes no contents, and its refusal costs only memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn forget_pages(_: &File, _: u64, _: usize) {}
