//! A reference run, kept in a file: for each counted token the most probable tokens with their
//! probabilities. `docs/eval.md` has the layout.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use engine::Engine;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::score::{Distribution, visit_logits};
use crate::text::{Document, fingerprint};

/// Tokens that are kept of each distribution, where the caller does not say.
pub const DEFAULT_TOP: usize = 64;

const MAGIC: [u8; 8] = *b"FMEVREF1";
/// A header is small; a larger one is none.
const MAX_HEADER: u32 = 1 << 16;

/// What a reference predicted for one token.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Logarithm of the probability of the token that came.
    pub next: f32,
    /// Logarithm of the probability of all tokens that are not named.
    pub rest: f32,
    /// The most probable tokens, the best first; of equals the lower first.
    pub tokens: Vec<u32>,
    /// Logarithms of their probabilities.
    pub log_probabilities: Vec<f32>,
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// The model, as the user named it, and how it was computed.
    model: String,
    device: String,
    vocab_size: usize,
    /// Named tokens of a row.
    top: usize,
    /// Of the documents.
    texts: String,
}

/// An open file with a reference run over certain documents.
pub struct Reference {
    path: PathBuf,
    file: File,
    header: Header,
    /// Where the rows of each document begin, and in the end where the last ones end.
    places: Vec<u64>,
}

/// Runs a model over the documents and keeps what it predicts in a file. A file with a part of the same run
/// is continued. `told` hears after each document how many are done.
pub fn record_reference(
    engine: &mut Engine,
    documents: &[Document],
    path: &Path,
    model: &str,
    top: usize,
    mut told: impl FnMut(usize),
) -> Result<Reference, Error> {
    let io = |source| Error::io(path, source);
    let vocab_size = engine.config().vocab_size;
    let header = Header {
        model: model.to_owned(),
        device: engine.device_name(),
        vocab_size,
        top: top.clamp(1, vocab_size),
        texts: fingerprint(documents),
    };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
    let mut file = options.open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let begin = if len == 0 {
        let begin = write_header(&mut file, &header).map_err(io)?;
        file.sync_data().map_err(io)?;
        begin
    } else {
        let (found, begin) = read_header(path, &mut file)?;
        if found != header {
            let reason = format!(
                "holds another reference run ({} on {}, {} tokens a row)\n\
                 hint: pass the file itself as --against to use it, or remove it",
                found.model, found.device, found.top
            );
            return Err(Error::file(path, reason));
        }
        begin
    };
    let places = places(documents, header.top, begin);
    let len = file.metadata().map_err(io)?.len();
    let n_done = places[1..].iter().take_while(|&&end| end <= len).count();
    file.set_len(places[n_done].min(len)).map_err(io)?;
    file.seek(SeekFrom::Start(places[n_done])).map_err(io)?;
    for (index, document) in documents.iter().enumerate().skip(n_done) {
        told(index);
        let mut bytes = Vec::with_capacity((places[index + 1] - places[index]) as usize);
        visit_logits(engine, &document.tokens, &document.counted, |next, logits| {
            Row::of(logits, next, header.top).write(&mut bytes);
        })?;
        file.write_all(&bytes).map_err(io)?;
    }
    file.sync_data().map_err(io)?;
    Ok(Reference { path: path.to_owned(), file, header, places })
}

impl Reference {
    /// Whether a file is one of a reference run.
    pub fn is_at(path: &Path) -> bool {
        let mut magic = [0; 8];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
        read.is_ok() && magic == MAGIC
    }

    /// Opens a file, which must hold a whole run over these documents.
    pub fn open(path: &Path, documents: &[Document], vocab_size: usize) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(|source| Error::io(path, source))?;
        let (header, begin) = read_header(path, &mut file)?;
        if header.texts != fingerprint(documents) || header.vocab_size != vocab_size {
            let reason = "is of other texts, or of a model with another vocabulary\n\
                          hint: give the same --text files in the same order, and the same --window";
            return Err(Error::file(path, reason));
        }
        let places = places(documents, header.top, begin);
        let len = file.metadata().map_err(|source| Error::io(path, source))?.len();
        if places.last().is_some_and(|&end| end != len) {
            let reason = "is not whole\nhint: run its model with --keep-reference again";
            return Err(Error::file(path, reason));
        }
        Ok(Self { path: path.to_owned(), file, header, places })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model, as it was named.
    pub fn model(&self) -> &str {
        &self.header.model
    }

    /// Named tokens of a row.
    pub fn top(&self) -> usize {
        self.header.top
    }

    /// What was predicted for each counted token of a document.
    pub fn rows(&mut self, document: usize) -> Result<Vec<Row>, Error> {
        let (begin, end) = (self.places[document], self.places[document + 1]);
        let io = |source| Error::io(&self.path, source);
        let mut bytes = vec![0; (end - begin) as usize];
        self.file.seek(SeekFrom::Start(begin)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        let rows = bytes.chunks_exact(Row::bytes(self.header.top));
        let rows: Option<Vec<Row>> =
            rows.map(|bytes| Row::read(bytes, self.header.vocab_size)).collect();
        rows.ok_or_else(|| Error::file(&self.path, "is damaged\nhint: make it again"))
    }
}

impl Row {
    /// Of logits, with so many named tokens.
    pub(crate) fn of(logits: &[f32], next: u32, top: usize) -> Self {
        let distribution = Distribution::of(logits);
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit =
            |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        if top < tokens.len() {
            tokens.select_nth_unstable_by(top, by_logit);
        }
        let others = tokens.split_off(top.min(tokens.len()));
        tokens.sort_unstable_by(by_logit);
        let rest: f64 = others.iter().map(|&token| distribution.log_probability(token).exp()).sum();
        let log = |&token: &u32| distribution.log_probability(token) as f32;
        Self {
            next: log(&next),
            rest: rest.ln() as f32,
            log_probabilities: tokens.iter().map(log).collect(),
            tokens,
        }
    }

    fn bytes(top: usize) -> usize {
        8 + 8 * top
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.next.to_le_bytes());
        out.extend_from_slice(&self.rest.to_le_bytes());
        self.tokens.iter().for_each(|token| out.extend_from_slice(&token.to_le_bytes()));
        self.log_probabilities.iter().for_each(|log| out.extend_from_slice(&log.to_le_bytes()));
    }

    /// `None` when there is something that nobody wrote, such as the zeros that a power cut leaves.
    fn read(bytes: &[u8], vocab_size: usize) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let (next, rest) = (f32::from_le_bytes(words[0]), f32::from_le_bytes(words[1]));
        let (tokens, logs) = words[2..].split_at((words.len() - 2) / 2);
        let tokens: Vec<u32> = tokens.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let log_probabilities: Vec<f32> =
            logs.iter().map(|&word| f32::from_le_bytes(word)).collect();
        let is_log = |log: f32| log <= 1e-3;
        let total: f64 =
            log_probabilities.iter().chain([&rest]).map(|&log| f64::from(log).exp()).sum();
        let sound = (total - 1.0).abs() < 1e-3
            && tokens.iter().all(|&token| (token as usize) < vocab_size)
            && log_probabilities.iter().all(|&log| is_log(log) && log.is_finite())
            && [next, rest].into_iter().all(is_log);
        sound.then_some(Self { next, rest, tokens, log_probabilities })
    }
}

/// Where the rows of each document begin and the last ones end.
fn places(documents: &[Document], top: usize, begin: u64) -> Vec<u64> {
    let mut place = begin;
    let ends = documents.iter().map(|document| {
        place += (document.n_counted() * Row::bytes(top)) as u64;
        place
    });
    std::iter::once(begin).chain(ends).collect()
}

fn write_header(file: &mut File, header: &Header) -> std::io::Result<u64> {
    let json = serde_json::to_vec(header)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    file.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

/// The header, and where what follows it begins.
fn read_header(path: &Path, file: &mut File) -> Result<(Header, u64), Error> {
    let damaged = || Error::file(path, "is no reference run of flash-moe eval");
    let (mut magic, mut len) = ([0; 8], [0; 4]);
    file.seek(SeekFrom::Start(0)).map_err(|source| Error::io(path, source))?;
    file.read_exact(&mut magic).map_err(|_| damaged())?;
    file.read_exact(&mut len).map_err(|_| damaged())?;
    let len = u32::from_le_bytes(len);
    if magic != MAGIC || len > MAX_HEADER {
        return Err(damaged());
    }
    let mut json = vec![0; len as usize];
    file.read_exact(&mut json).map_err(|_| damaged())?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| damaged())?;
    if header.top == 0 || header.top > header.vocab_size {
        return Err(damaged());
    }
    Ok((header, 12 + u64::from(len)))
}
