//! The directory of sessions.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sessions::{SessionError, SessionFile, Talk};

/// Names may be so long.
const MAX_NAME: usize = 64;
/// What a session's file is called after its id.
const EXTENSION: &str = "jsonl";

/// Where sessions are kept.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What a list of sessions tells of one.
#[derive(Debug)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// When it was last changed.
    pub changed: SystemTime,
    /// The talk, or why it cannot be read.
    pub talk: Result<Talk, SessionError>,
}

impl Store {
    /// Sessions in a directory, which need not be there.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Begins a session under a new id.
    pub fn create(&self) -> Result<SessionFile, SessionError> {
        let io = |source| SessionError::Io { path: self.directory.clone(), source };
        fs::create_dir_all(&self.directory).map_err(io)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let random = RandomState::new().hash_one(std::process::id()) & 0xffff;
        let id = format!("{created:08x}{random:04x}");
        SessionFile::create(&self.path(&id), &id, created)
    }

    /// Sessions from the one that was changed last, at most so many.
    pub fn list(&self, limit: usize) -> Result<Vec<Summary>, SessionError> {
        let listed = self.ids()?.into_iter().take(limit).map(|(changed, id)| {
            let talk = SessionFile::read(&self.path(&id));
            Summary { id, changed, talk }
        });
        Ok(listed.collect())
    }

    /// Opens the session that a key means.
    pub fn resume(&self, key: &str) -> Result<(SessionFile, Talk), SessionError> {
        let id = self.find(key)?;
        SessionFile::resume(&self.path(&id), &id)
    }

    /// The id of the session that a key means: `last`, a number in the list, a name, an id or its beginning.
    pub fn find(&self, key: &str) -> Result<String, SessionError> {
        let ids: Vec<String> = self.ids()?.into_iter().map(|(_, id)| id).collect();
        let not_found = || SessionError::NotFound { key: key.to_owned() };
        if key == "last" {
            return ids.into_iter().next().ok_or_else(not_found);
        }
        if key.len() <= 3
            && let Ok(number) = key.parse::<usize>()
        {
            return ids.into_iter().nth(number.wrapping_sub(1)).ok_or_else(not_found);
        }
        let named = |id: &&String| {
            SessionFile::read(&self.path(id)).is_ok_and(|talk| talk.name.as_deref() == Some(key))
        };
        if let Some(id) = ids.iter().find(named) {
            return Ok(id.clone());
        }
        let mut begin: Vec<String> = ids.into_iter().filter(|id| id.starts_with(key)).collect();
        match begin.len() {
            0 => Err(not_found()),
            1 => Ok(begin.remove(0)),
            _ => Err(SessionError::Ambiguous { key: key.to_owned(), ids: begin }),
        }
    }

    /// Ids with the time of their last change, that of the latest first.
    fn ids(&self) -> Result<Vec<(SystemTime, String)>, SessionError> {
        let io = |source| SessionError::Io { path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).filter(|id| is_id(id));
            let is_session = path.extension().is_some_and(|extension| extension == EXTENSION);
            // A file that vanishes meanwhile is not there.
            let changed = entry.metadata().and_then(|meta| meta.modified());
            if let (true, Some(id), Ok(changed)) = (is_session, id, changed) {
                ids.push((changed, id.to_owned()));
            }
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(id).with_extension(EXTENSION)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Refuses names that could be taken for something else.
pub fn check_name(name: &str) -> Result<(), SessionError> {
    let reason = if name.is_empty() || name.chars().count() > MAX_NAME {
        "a name has 1 to 64 characters"
    } else if name.chars().any(|c| c.is_control() || c == '/' || c == '\\') {
        "a name has no control characters and no slashes"
    } else if name == "last" || (name.len() <= 3 && name.bytes().all(|byte| byte.is_ascii_digit()))
    {
        "that word has a meaning of its own"
    } else {
        return Ok(());
    };
    Err(SessionError::Name { name: name.to_owned(), reason })
}

/// Whether a file's name is one that this program gave.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}
