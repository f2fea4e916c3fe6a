//! One session's file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::sessions::record::VERSION;
use crate::sessions::{Record, SessionError, Talk};
use crate::text::one_line;

/// A longer file than any talk.
const MAX_BYTES: u64 = 256 << 20;
/// How often, and after which pauses, a lock that somebody has is tried again.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A session that is open for appending. The file is locked, so that two processes do not mix their talks.
#[derive(Debug)]
pub struct SessionFile {
    file: File,
    path: PathBuf,
    id: String,
}

impl SessionFile {
    /// Begins a session in a new file.
    pub fn create(path: &Path, id: &str, created: u64) -> Result<Self, SessionError> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(true);
        private(&mut options);
        let io = |source| SessionError::Io { path: path.to_owned(), source };
        let file = options.open(path).map_err(io)?;
        let mut session = Self::locked(file, path, id)?;
        session.append(&Record::Session { version: VERSION, id: id.to_owned(), created })?;
        Ok(session)
    }

    /// Opens a session to go on with it. An unfinished last line is cut off.
    pub fn resume(path: &Path, id: &str) -> Result<(Self, Talk), SessionError> {
        let io = |source| SessionError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).append(true).open(path).map_err(io)?;
        let mut session = Self::locked(file, path, id)?;
        let (talk, whole) = read(&mut session.file, path)?;
        session.file.set_len(whole).map_err(io)?;
        session.file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok((session, talk))
    }

    /// Reads a session that may be open elsewhere.
    pub fn read(path: &Path) -> Result<Talk, SessionError> {
        let io = |source| SessionError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        read(&mut file, path).map(|(talk, _)| talk)
    }

    fn locked(file: File, path: &Path, id: &str) -> Result<Self, SessionError> {
        // A process that is just being started holds a copy of every open file for a moment.
        let mut locked = file.try_lock();
        for _ in 0..LOCK_TRIES {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOCK_PAUSE);
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SessionError::InUse { id: id.to_owned() }),
            // Some file systems have no locks; one process is the usual case.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => {
                return Err(SessionError::Io { path: path.to_owned(), source });
            }
        }
        Ok(Self { file, path: path.to_owned(), id: id.to_owned() })
    }

    /// Appends a record, whole or (if the program is killed within) as an unfinished line.
    pub fn append(&mut self, record: &Record) -> Result<(), SessionError> {
        let io = |source| SessionError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(record).map_err(|error| io(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io)?;
        self.file.sync_data().map_err(io)
    }

    /// The session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The talk in a file, and the bytes of its whole lines.
fn read(file: &mut File, path: &Path) -> Result<(Talk, u64), SessionError> {
    let io = |source| SessionError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    let malformed = |line: usize, reason: String| SessionError::Malformed {
        path: path.to_owned(),
        line: line + 1,
        // It may quote the file.
        reason: one_line(&reason),
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(malformed(0, format!("the file is longer than {MAX_BYTES} bytes")));
    }
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let mut talk = Talk::default();
    let mut begun = false;
    for (index, line) in bytes[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
        let record: Record =
            serde_json::from_slice(line).map_err(|error| malformed(index, error.to_string()))?;
        match record {
            Record::Session { version: VERSION, .. } if !begun => begun = true,
            Record::Session { version, .. } if !begun => {
                let reason =
                    format!("version {version} of the format is not known, only {VERSION}");
                return Err(malformed(index, reason));
            }
            _ if !begun => {
                return Err(malformed(index, "the file does not begin a session".into()));
            }
            record => talk.apply(record).map_err(|reason| malformed(index, reason))?,
        }
    }
    if !begun {
        return Err(malformed(0, "the file does not begin a session".to_owned()));
    }
    Ok((talk, whole as u64))
}

/// What is said is nobody else's.
#[cfg(unix)]
fn private(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600);
}

#[cfg(not(unix))]
fn private(_: &mut OpenOptions) {}
