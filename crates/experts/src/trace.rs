//! Recorded routing: which experts were asked for, and by how many rows, request after request.
//!
//! A text format, so that it can be looked at, cut and made by hand; `docs/routing-trace.md` is its
//! definition.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};

use checkpoint::ExpertTable;

use crate::store::ExpertStore;

/// The first line of a trace.
const MAGIC: &str = "flash-moe routing 1";
const MOST_LAYERS: usize = 4096;
const MOST_EXPERTS: u32 = 1 << 16;
/// Experts of all layers together: a simulator has some bytes for each.
const MOST_KEYS: u64 = 1 << 20;
const LONGEST_LINE: u64 = 1 << 20;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    #[error("the trace cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no trace, or of another version.
    #[error("the first line is not {MAGIC:?}, so this is no routing trace of this version")]
    NotATrace,
    /// A line says something else than it should.
    #[error("line {line} of the trace: {what}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Recorded routing of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Bytes of an expert in memory.
    pub slot_bytes: u64,
    /// Number of experts of each layer.
    pub experts: Vec<u32>,
    /// What was asked for, in order.
    pub requests: Vec<TracedRequest>,
}

/// Experts of a layer that were asked for together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TracedRequest {
    /// The layer.
    pub layer: usize,
    /// Its experts and how many rows use each.
    pub experts: Vec<(u32, u32)>,
}

impl Trace {
    /// Reads a trace.
    pub fn read(reader: impl BufRead) -> Result<Self, TraceError> {
        let mut lines = Lines { reader, text: Vec::new(), number: 0 };
        if lines.next()? != Some(MAGIC) {
            return Err(TraceError::NotATrace);
        }
        let header = lines.next()?.and_then(|line| line.strip_prefix("slot_bytes "));
        let slot_bytes = header.and_then(|text| text.parse().ok()).filter(|&bytes: &u64| bytes > 0);
        let slot_bytes = slot_bytes.ok_or(lines.error("it should be slot_bytes and a number"))?;
        let header = lines.next()?.and_then(|line| line.strip_prefix("experts "));
        let counts = header.map(|text| text.split(' ').map(str::parse).collect());
        let Some(Ok(experts)) = counts else {
            return Err(lines.error("it should be experts and a number for each layer"));
        };
        let experts: Vec<u32> = experts;
        let n_keys: u64 = experts.iter().map(|&count| u64::from(count)).sum();
        let is_large = experts.iter().any(|&count| count > MOST_EXPERTS) || n_keys > MOST_KEYS;
        if experts.len() > MOST_LAYERS || is_large {
            return Err(lines.error("no model has so many experts"));
        }
        let mut requests = Vec::new();
        // For each expert the request that named it last.
        let mut named = vec![0; experts.iter().copied().max().unwrap_or(0) as usize];
        while let Some(line) = lines.next()? {
            let request = parse_request(line, &experts);
            let request = request.map_err(|what| lines.error(what))?;
            for &(expert, _) in &request.experts {
                if std::mem::replace(&mut named[expert as usize], lines.number) == lines.number {
                    return Err(lines.error("an expert is named twice"));
                }
            }
            requests.push(request);
        }
        Ok(Self { slot_bytes, experts, requests })
    }

    /// The key of each layer's first expert, and the number of keys.
    pub(crate) fn first_keys(&self) -> (Vec<u32>, usize) {
        let mut n_keys = 0;
        let first_keys = self.experts.iter().map(|&count| {
            n_keys += count;
            n_keys - count
        });
        (first_keys.collect(), n_keys as usize)
    }
}

fn parse_request(line: &str, experts: &[u32]) -> Result<TracedRequest, &'static str> {
    let mut words = line.split(' ');
    let layer = words.next().and_then(|word| word.parse::<usize>().ok());
    let layer = layer.filter(|&layer| layer < experts.len()).ok_or("there is no such layer")?;
    let expert = |word: &str| {
        let (expert, uses) = word.split_once('*').unwrap_or((word, "1"));
        let expert = expert.parse().ok().filter(|&expert| expert < experts[layer]);
        let uses = uses.parse().ok().filter(|uses| (1..=1 << 20).contains(uses));
        expert.zip(uses).ok_or("there is no such expert, or no such number of uses")
    };
    Ok(TracedRequest { layer, experts: words.map(expert).collect::<Result<_, _>>()? })
}

struct Lines<R> {
    reader: R,
    text: Vec<u8>,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<&str>, TraceError> {
        self.text.clear();
        self.number += 1;
        let len = (&mut self.reader).take(LONGEST_LINE).read_until(b'\n', &mut self.text)?;
        if len == 0 {
            return Ok(None);
        }
        if self.text.pop() != Some(b'\n') {
            return Err(self.error("it is too long, or the file ends in the midst of it"));
        }
        let what = "it is not text";
        let error = TraceError::Line { line: self.number, what };
        std::str::from_utf8(&self.text).map(Some).map_err(|_| error)
    }

    fn error(&self, what: &'static str) -> TraceError {
        TraceError::Line { line: self.number, what }
    }
}

/// Writes a trace as requests come. The first error ends it and is kept.
pub(crate) struct TraceWriter {
    out: Box<dyn Write + Send>,
    line: String,
    result: io::Result<()>,
}

impl TraceWriter {
    pub(crate) fn new(mut out: Box<dyn Write + Send>, layers: &[ExpertTable]) -> Self {
        let mut line = format!("{MAGIC}\nslot_bytes {}\nexperts", ExpertStore::slot_bytes(layers));
        for table in layers {
            write!(line, " {}", table.len()).expect("a String takes all");
        }
        line.push('\n');
        let result = out.write_all(line.as_bytes());
        Self { out, line, result }
    }

    pub(crate) fn begin(&mut self, layer: usize) {
        self.line.clear();
        write!(self.line, "{layer}").expect("a String takes all");
    }

    pub(crate) fn expert(&mut self, expert: u32, uses: u32) {
        let result = match uses {
            1 => write!(self.line, " {expert}"),
            _ => write!(self.line, " {expert}*{uses}"),
        };
        result.expect("a String takes all");
    }

    pub(crate) fn end(&mut self) {
        if self.result.is_ok() {
            self.line.push('\n');
            self.result = self.out.write_all(self.line.as_bytes());
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.result?;
        self.out.flush()
    }
}
