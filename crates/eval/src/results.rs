//! The results of a run, as they are kept.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cases::CaseUnit;
use crate::error::Error;
use crate::progress::Unit;
use crate::score::TextUnit;

/// The version of the form of results.
pub const SCHEMA: &str = "flash-moe-eval/1";

/// What was evaluated, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// When, in UTC.
    pub date: String,
    /// The program's version.
    pub program: String,
    /// The model, as the user named it.
    pub model: String,
    /// What computed it.
    pub device: String,
    /// What makes the output another than the model's own, if something does.
    pub lossy: Option<String>,
    /// The checkpoint whose experts are used in the place of others, if one is.
    #[serde(default)]
    pub twin: Option<String>,
    /// Bytes of all routed experts.
    pub expert_bytes: u64,
    /// Bytes of the routed experts that are kept in memory at most.
    pub expert_slot_bytes: u64,
    /// Bytes of the trunk that a token reads.
    pub trunk_bytes_per_token: u64,
    /// The reference and how it was computed.
    pub reference: Option<String>,
    /// Named tokens of each distribution of the reference.
    pub reference_top: Option<usize>,
    /// The files of texts, and the longest sequence.
    pub texts: Vec<String>,
    /// Most tokens of a sequence.
    pub window: usize,
    /// Identifies the documents and their tokens.
    pub text_fingerprint: String,
    /// The files of requests.
    pub requests: Vec<String>,
    /// Identifies the requests.
    pub request_fingerprint: String,
    /// Whether the model thought before it answered; `None` leaves it to the template.
    pub thinking: Option<bool>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was evaluated, and how.
    pub facts: Facts,
    /// What people and programs read; computed from the units.
    #[serde(default)]
    pub summary: Value,
    /// Every document.
    pub documents: Vec<TextUnit>,
    /// Every request, once for each way.
    pub cases: Vec<CaseUnit>,
}

impl Results {
    /// Of units.
    pub fn new(facts: Facts, units: Vec<Unit>) -> Self {
        let (mut documents, mut cases) = (Vec::new(), Vec::new());
        for unit in units {
            match unit {
                Unit::Document(unit) => documents.push(unit),
                Unit::Case(unit) => cases.push(unit),
            }
        }
        Self { schema: SCHEMA.to_owned(), facts, summary: Value::Null, documents, cases }
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let bad = |reason: String| Error::file(path, reason);
        let value: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if value["schema"] != SCHEMA {
            let reason = format!("has the schema {}, not {SCHEMA:?}", value["schema"]);
            return Err(bad(reason));
        }
        serde_json::from_value(value).map_err(|error| bad(error.to_string()))
    }

    /// Writes a file: another name first, so that there is never half a file.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string(self).map_err(|error| Error::io(path, error.into()))?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".tmp");
        let partial = Path::new(&partial);
        fs::write(partial, text + "\n").map_err(|source| Error::io(partial, source))?;
        fs::rename(partial, path).map_err(|source| Error::io(path, source))
    }
}
