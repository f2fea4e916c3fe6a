//! The log: lines on standard error.

use std::io::{Write, stderr};

/// Writes a line. A server whose log nobody reads any more goes on.
pub(crate) fn line(text: &str) {
    drop(writeln!(stderr(), "{text}"));
}
