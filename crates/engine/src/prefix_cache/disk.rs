//! Entries on the drive, within a bound: a directory of files, one for each entry, that several
//! processes may share and of which the files not used for longest leave.
//!
//! Who writes or deletes holds a lock; who reads does not: a file is whole under its name, or it is
//! damaged, and then its checksum tells.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::SavedParts;

use crate::prefix_cache::file::{self, FileError};
use crate::prefix_cache::key::Key;
use crate::prefix_cache::stats::Ignored;
use crate::prefix_cache::{EntryId, Kind, Shapes};

/// The file whose lock writers hold.
const LOCK: &str = "lock";
/// The end of the name of a file that is being written.
const PARTIAL: &str = ".tmp";

/// A directory of entries.
#[derive(Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
    limit: u64,
    identity: Key,
    shapes: Shapes,
    /// Entries whose files cannot be read, or are no good and cannot be deleted; they are looked for no
    /// more.
    bad: HashSet<EntryId>,
    /// When the directory was last changed and how many bytes the entries had then.
    known: Option<(SystemTime, u64)>,
    pub(crate) ignored: Ignored,
    pub(crate) n_read: u64,
    pub(crate) n_written: u64,
    /// Times that nothing was written because another process was writing, or the system refused.
    pub(crate) n_skipped: u64,
}

/// An entry's file, as the directory tells of it.
struct Found {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Disk {
    /// Makes the directory if need be.
    pub(crate) fn open(
        directory: &Path,
        limit: u64,
        identity: Key,
        shapes: Shapes,
    ) -> io::Result<Self> {
        make_directory(directory)?;
        let mut disk = Self {
            directory: directory.to_owned(),
            limit,
            identity,
            shapes,
            bad: HashSet::new(),
            known: None,
            ignored: Ignored::default(),
            n_read: 0,
            n_written: 0,
            n_skipped: 0,
        };
        // A directory that cannot be written to is better known now, and a smaller bound holds at once.
        match disk.lock() {
            Ok(_lock) => disk.make_room(0, &HashSet::new())?,
            // Another process is at it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(disk)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of all entries in the directory when it was last looked at.
    pub(crate) fn bytes(&self) -> u64 {
        self.known.map_or(0, |(_, bytes)| bytes)
    }

    /// Whether there is a file for an entry.
    pub(crate) fn contains(&self, id: EntryId) -> bool {
        !self.bad.contains(&id) && self.path(id).exists()
    }

    /// Reads an entry. A file that is no good is counted and deleted; one that the system refuses to read
    /// is counted and left alone, because the reason may be the process and not the file.
    pub(crate) fn read(&mut self, id: EntryId) -> Option<SavedParts> {
        let path = self.path(id);
        let error = match file::read(&path, &self.identity, id, self.shapes.of(id.kind)) {
            Ok(parts) => {
                self.n_read += 1;
                return Some(parts);
            }
            // Another process made room.
            Err(FileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error,
        };
        self.ignored.count(&error);
        if matches!(error, FileError::Io(_)) || fs::remove_file(&path).is_err() {
            self.bad.insert(id);
        }
        None
    }

    /// Has entries on the drive: writes those that are not there, of which `parts` gives the parts by
    /// their place in the list, and makes all of them the ones used last, the first most of all.
    /// Together they are within the bound. What follows keys and values that cannot be had is left out.
    pub(crate) fn write<'a>(
        &mut self,
        entries: &[EntryId],
        parts: &dyn Fn(usize) -> Cow<'a, SavedParts>,
    ) {
        if self.try_write(entries, parts).is_err() {
            self.n_skipped += 1;
        }
    }

    fn try_write<'a>(
        &mut self,
        entries: &[EntryId],
        parts: &dyn Fn(usize) -> Cow<'a, SavedParts>,
    ) -> io::Result<()> {
        let _lock = self.lock()?;
        let mut writable = Vec::new();
        for (index, &id) in entries.iter().enumerate() {
            match id.kind {
                _ if self.forget_bad(id) => writable.push((index, id)),
                Kind::KeysAndValues => break,
                Kind::Recurrent => {}
            }
        }
        let is_missing = |(_, id): &&(usize, EntryId)| !self.path(*id).exists();
        let missing = writable.iter().filter(is_missing);
        let needed = missing.map(|(_, id)| self.file_bytes(id.kind)).sum();
        let ours = writable.iter().map(|(_, id)| self.path(*id)).collect();
        self.make_room(needed, &ours)?;
        let now = SystemTime::now();
        let result = writable.iter().try_for_each(|&(index, id)| {
            let path = self.path(id);
            if !path.exists() {
                let mut partial = path.clone().into_os_string();
                partial.push(PARTIAL);
                let partial = PathBuf::from(partial);
                file::write(&path, &partial, &self.identity, id, &parts(index))?;
                self.n_written += 1;
                let bytes = self.file_bytes(id.kind);
                self.known = self.known.map(|(changed, known)| (changed, known + bytes));
            }
            // What begins a sequence is used whenever what follows it is, so it leaves after that.
            let used = now - Duration::from_micros(index as u64);
            // A time that cannot be set changes only who leaves first.
            drop(OpenOptions::new().write(true).open(&path).map(|file| file.set_modified(used)));
            Ok(())
        });
        let changed = fs::metadata(&self.directory)?.modified()?;
        self.known = self.known.map(|(_, bytes)| (changed, bytes));
        result
    }

    /// Has a file that could not be read make way for a new one; tells whether the entry's place is sound.
    fn forget_bad(&mut self, id: EntryId) -> bool {
        if !self.bad.contains(&id) {
            return true;
        }
        let is_gone = match fs::remove_file(self.path(id)) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        is_gone && self.bad.remove(&id)
    }

    /// Length of the file of an entry.
    pub(crate) fn file_bytes(&self, kind: Kind) -> u64 {
        file::file_bytes(self.shapes.of(kind))
    }

    /// Takes the lock of writers, or fails: nobody waits for another process. The directory may be deleted
    /// at any time; then it is made again.
    fn lock(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let options = file::private(options.create(true).write(true).truncate(false));
        let path = self.directory.join(LOCK);
        let lock = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(&self.directory)?;
                options.open(&path)?
            }
            result => result?,
        };
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Deletes the entries not used for longest, but none of `ours`, until so many bytes are free.
    fn make_room(&mut self, needed: u64, ours: &HashSet<PathBuf>) -> io::Result<()> {
        let changed = fs::metadata(&self.directory)?.modified()?;
        if let Some((known, bytes)) = self.known
            && known == changed
            && bytes + needed <= self.limit
        {
            return Ok(());
        }
        let mut found = self.list()?;
        let mut bytes: u64 = found.iter().map(|entry| entry.bytes).sum();
        found.sort_by_key(|entry| entry.used);
        let mut refused = None;
        for entry in found.iter().filter(|entry| !ours.contains(&entry.path)) {
            if bytes + needed <= self.limit {
                break;
            }
            match fs::remove_file(&entry.path) {
                Ok(()) => bytes -= entry.bytes,
                // A reader found that it is no good.
                Err(error) if error.kind() == io::ErrorKind::NotFound => bytes -= entry.bytes,
                // Another one may go in its place.
                Err(error) => refused = Some(error),
            }
        }
        self.known = Some((fs::metadata(&self.directory)?.modified()?, bytes));
        match refused {
            Some(error) if bytes + needed > self.limit => Err(error),
            _ => Ok(()),
        }
    }

    /// All entries, of whatever model. What a process left half-written is deleted: the lock is ours, so
    /// nobody is writing it. Other files are left alone.
    fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if let Some(name) = name.strip_suffix(PARTIAL) {
                if is_entry(name) {
                    fs::remove_file(entry.path())?;
                }
            } else if is_entry(name) {
                // Readers delete what is no good without the lock.
                let Ok(metadata) = entry.metadata() else { continue };
                let (path, bytes, used) = (entry.path(), metadata.len(), metadata.modified()?);
                found.push(Found { path, bytes, used });
            }
        }
        Ok(found)
    }

    fn path(&self, id: EntryId) -> PathBuf {
        self.directory.join(format!("{}.{}", id.key.to_hex(), extension(id.kind)))
    }
}

fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn extension(kind: Kind) -> &'static str {
    match kind {
        Kind::KeysAndValues => "kv",
        Kind::Recurrent => "state",
    }
}

/// Whether a file has the name of an entry.
fn is_entry(name: &str) -> bool {
    let kinds = [Kind::KeysAndValues, Kind::Recurrent].map(extension);
    name.split_once('.').is_some_and(|(key, kind)| {
        key.len() == 64 && key.bytes().all(|c| c.is_ascii_hexdigit()) && kinds.contains(&kind)
    })
}
