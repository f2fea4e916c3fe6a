//! One run at a time in a directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::error::{Error, io_at};

/// The file that is locked. It stays when the lock is gone: only the lock says that somebody is there, and a
/// killed run leaves none.
pub(crate) const LOCK: &str = ".lock";

/// Keeps other runs out of a directory until the file is closed.
pub(crate) fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(io_at(&path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: directory.to_owned() }),
        // Where a file system has no locks, nobody can be kept out.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}
