//! Talks that outlive the program: one file of JSON lines each, appended to as the talk goes.
//!
//! The format is described in `docs/sessions.md`. A file is only ever appended to, each record by one write, so
//! that a program that is killed leaves at most an unfinished last line, which is dropped when the talk is resumed.

mod file;
mod record;
mod store;

pub use file::SessionFile;
pub use record::{Record, Talk};
pub use store::{Store, Summary, check_name};

use std::io;
use std::path::PathBuf;

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A file cannot be read or written.
    #[error("{}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line cannot be understood.
    #[error("{}, line {line}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the session open.
    #[error("the session {id} is open in another process")]
    InUse {
        /// The session.
        id: String,
    },
    /// No session has that name.
    #[error("there is no session {key:?}\nhint: /sessions lists them")]
    NotFound {
        /// What was asked for.
        key: String,
    },
    /// Several sessions answer to the name.
    #[error("several sessions begin with {key:?}: {}", .ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        key: String,
        /// Those that answer to it.
        ids: Vec<String>,
    },
    /// A name that a session cannot have.
    #[error("a session cannot be named {name:?}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
}
