//! What a model's output is worth, and what it costs: perplexity on given texts, divergence from a reference
//! run, tool calls and JSON, with bytes per token and intervals of confidence.
//!
//! Work is cut into units, a document or a request each ([`Unit`]), whose results are kept in a file as
//! they come ([`Progress`]), so that an interrupted run goes on where it was. All numbers that a person
//! sees are computed from units ([`Summary`]); results of different runs over the same texts can therefore
//! be compared unit by unit ([`compare`]). `docs/eval.md` defines every number.

#![forbid(unsafe_code)]

mod cases;
mod cost;
mod error;
mod progress;
mod reference;
mod results;
mod schema;
mod score;
mod stats;
mod summary;
mod text;

pub use cases::{Case, CaseUnit, Said, Way, run_case};
pub use cost::Cost;
pub use error::Error;
pub use progress::{Progress, Unit};
pub use reference::{DEFAULT_TOP, Reference, Row, record_reference};
pub use results::{Facts, Results, SCHEMA};
pub use schema::{Unchecked, matches_schema};
pub use score::{Compared, TextUnit, score_document};
pub use stats::{Interval, paired_difference, proportion};
pub use summary::{Calls, ComparedSummary, Estimate, Paired, SourceSummary, Summary, compare};
pub use text::{DEFAULT_WINDOW, Document, fingerprint, read_texts};
