//! `--trace FILE`: a record of phases, reads and the work of threads and GPUs for a trace viewer.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::Recorder;

/// A trace that will be written to a file.
pub struct Trace {
    path: PathBuf,
    file: File,
    recorder: Recorder,
}

impl Trace {
    /// Creates the file at once, so that a path that cannot be written is told before the work.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, recorder: Recorder::new(engine::DEFAULT_SPANS) })
    }

    /// What records.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Writes what was recorded, and says how much that was.
    pub fn finish(self) -> anyhow::Result<()> {
        let mut out = BufWriter::new(self.file);
        let written = self.recorder.write_chrome(&mut out).and_then(|()| out.flush());
        written.with_context(|| format!("writing {}", self.path.display()))?;
        let (kept, dropped) = self.recorder.counts();
        let path = self.path.display();
        eprintln!("trace: {kept} spans in {path}; open it in ui.perfetto.dev or chrome://tracing");
        for note in self.recorder.notes() {
            eprintln!("trace: {note}");
        }
        if dropped > 0 {
            eprintln!("trace: {dropped} later spans were dropped, because the record was full");
        }
        Ok(())
    }
}
