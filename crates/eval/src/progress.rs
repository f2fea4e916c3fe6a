//! What a run has done so far, in a file of JSON lines, so that it can go on after an interruption.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cases::CaseUnit;
use crate::error::Error;
use crate::score::TextUnit;

const SCHEMA: &str = "flash-moe-eval-progress/1";

/// A piece of work that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A document was predicted.
    Document(TextUnit),
    /// A request was answered.
    Case(CaseUnit),
}

/// The units that are done, and the file that keeps them if there is one.
///
/// The first line says of which run; a unit follows a line each. A last line that is not whole is dropped.
pub struct Progress {
    file: Option<(PathBuf, File)>,
    units: Vec<Unit>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    schema: String,
    run: Value,
}

impl Progress {
    /// Of a run that leaves nothing behind.
    pub fn in_memory() -> Self {
        Self { file: None, units: Vec::new() }
    }

    /// Opens the file or makes it. `run` is everything that the units depend on: a file of another run is
    /// refused.
    pub fn open(path: &Path, run: &Value) -> Result<Self, Error> {
        let io = |source| Error::io(path, source);
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(path).map_err(io)?;
        let mut text = fs::read(path).map_err(io)?;
        // What has no line break was not written to its end, perhaps not even to that of a character.
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        text.truncate(whole);
        let text = String::from_utf8(text).map_err(|_| Error::file(path, "is not UTF-8"))?;
        let mut lines = text.lines();
        let mut units = Vec::new();
        match lines.next() {
            None => {
                let header = Header { schema: SCHEMA.to_owned(), run: run.clone() };
                let line = serde_json::to_string(&header).map_err(|error| io(error.into()))?;
                file.set_len(0).map_err(io)?;
                writeln!(file, "{line}").map_err(io)?;
            }
            Some(line) => {
                let header: Option<Header> = serde_json::from_str(line).ok();
                if header.is_none_or(|header| header.schema != SCHEMA || header.run != *run) {
                    let reason = "is the progress of another run\n\
                                  hint: remove it, or write to another --out";
                    return Err(Error::file(path, reason));
                }
                for (index, line) in lines.enumerate() {
                    let unit = serde_json::from_str(line)
                        .map_err(|error| Error::line(path, index + 2, error.to_string()))?;
                    units.push(unit);
                }
                file.set_len(whole as u64).map_err(io)?;
                file.seek(SeekFrom::End(0)).map_err(io)?;
            }
        }
        Ok(Self { file: Some((path.to_owned(), file)), units })
    }

    /// What is done, in order.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Adds a unit. It is taken as it will be read, so that a continued run has the very same numbers.
    pub fn push(&mut self, unit: &Unit) -> Result<(), Error> {
        let path = self.file.as_ref().map_or(Path::new(""), |(path, _)| path);
        let line = serde_json::to_string(unit).and_then(|line| {
            let unit = serde_json::from_str(&line)?;
            Ok((line, unit))
        });
        let (line, unit) = line.map_err(|error| Error::io(path, error.into()))?;
        if let Some((path, file)) = &mut self.file {
            file.write_all(format!("{line}\n").as_bytes())
                .map_err(|source| Error::io(path, source))?;
        }
        self.units.push(unit);
        Ok(())
    }

    /// Removes the file, when the results are safe elsewhere.
    pub fn finish(self) -> Result<Vec<Unit>, Error> {
        if let Some((path, file)) = self.file {
            drop(file);
            fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
        }
        Ok(self.units)
    }
}
