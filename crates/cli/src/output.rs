//! Printing: data on standard output, the rest on standard error.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;

/// Writes text to standard output at once, so that it streams.
pub fn stream(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints a JSON value as one line.
pub fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value).context("making JSON")?;
    text.push('\n');
    stream(&text)
}

/// Whether an error only says that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().map(io::Error::kind)
    };
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// An error with its causes in one line, but for those that the text before already says: many errors
/// of files have what the system said in their own text.
pub fn error(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// A line of progress on standard error that replaces itself; silent where nobody watches.
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// A line that nothing is shown on yet.
    pub fn new() -> Self {
        Self { shown: false }
    }

    /// Replaces the line.
    pub fn show(&mut self, text: &str) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
            self.shown = true;
        }
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
            self.shown = false;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let refused = || io::Error::other("refused");
        let told =
            anyhow::Error::new(refused()).context("a.txt: refused\nhint: ask").context("run");
        assert_eq!(error(&told), "run: a.txt: refused\nhint: ask");
        assert_eq!(error(&anyhow::Error::new(refused()).context("run")), "run: refused");
    }
}
