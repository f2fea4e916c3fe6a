//! What experts are given: the rows that enter every layer's experts while the model reads some text.
//!
//! The rows themselves are kept, in a file a layer, not sums of them: from rows everything can be found
//! that a step wants (moments of an expert's inputs, of its values between, of those that the codes of gate
//! and up make), while a matrix of second moments of every expert would be more than memory. A row is
//! written as it is seen; one layer is in memory at a time when experts are quantised.
//!
//! File: for each row `top_k` indices of experts (u32), as many weights of theirs (f32), and the row
//! (f16, hidden), all little-endian.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use checkpoint::ModelConfig;
use engine::{Engine, EngineOptions, Routing};

use crate::error::{Error, io_at};
use crate::lock::lock;
use crate::output::write_whole;
use crate::rows::{LayerRows, narrow, row_bytes};
use crate::sample::sample_documents;
use crate::text::Text;

/// What the model wrote, for other runs to read: documents a line, as `--calibrate` takes them.
const SAMPLED: &str = "sampled.jsonl";
/// The sequences that were read, as lists of tokens.
const SEQUENCES: &str = "sequences.json";
/// What was recorded is known by, once that is complete.
const DONE: &str = "done";
/// Longest piece of a text that is read as one sequence.
const MAX_DOCUMENT_TOKENS: usize = 1024;

/// What is to be recorded.
pub(crate) struct Recording<'a> {
    /// Where rows are kept.
    pub(crate) directory: &'a Path,
    /// What model, texts and number of tokens are known by.
    pub(crate) identity: String,
    pub(crate) model: &'a Path,
    pub(crate) config: &'a ModelConfig,
    pub(crate) texts: &'a [Text],
    /// How many tokens of the texts, as many of each.
    pub(crate) n_tokens: usize,
    /// How the model is run.
    pub(crate) engine: &'a EngineOptions,
}

/// Recorded rows of all layers.
#[derive(Debug)]
pub(crate) struct Calibration {
    directory: PathBuf,
    top_k: usize,
    hidden: usize,
    n_rows: usize,
    /// The layer that was asked for last.
    current: Mutex<Option<(usize, Arc<LayerRows>)>>,
}

impl Calibration {
    /// What was recorded before, or else is recorded now.
    pub(crate) fn open(
        recording: &Recording<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let Recording { directory, config, .. } = *recording;
        if !is_recorded(recording)? {
            fs::create_dir_all(directory).map_err(io_at(directory))?;
            let _lock = lock(directory)?;
            // Another run may just have ended.
            if !is_recorded(recording)? {
                record(recording, progress)?;
            }
        }
        let mut calibration = Self {
            directory: directory.to_owned(),
            top_k: config.moe.top_k,
            hidden: config.hidden_size,
            n_rows: 0,
            current: Mutex::new(None),
        };
        calibration.n_rows = calibration.sequences()?.iter().map(Vec::len).sum();
        Ok(calibration)
    }

    /// How many tokens were read.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The sequences that were read; rows come in their order.
    pub(crate) fn sequences(&self) -> Result<Vec<Vec<u32>>, Error> {
        let path = self.directory.join(SEQUENCES);
        let text = fs::read_to_string(&path).map_err(io_at(&path))?;
        let bad = |error: serde_json::Error| Error::Calibration {
            path: path.clone(),
            what: error.to_string(),
        };
        serde_json::from_str(&text).map_err(bad)
    }

    /// The rows of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Result<Arc<LayerRows>, Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((index, rows)) = &*current
            && *index == layer
        {
            return Ok(Arc::clone(rows));
        }
        *current = None;
        let path = layer_path(&self.directory, layer);
        let bytes = fs::read(&path).map_err(io_at(&path))?;
        let wanted = self.n_rows * row_bytes(self.top_k, self.hidden);
        if bytes.len() != wanted {
            let what = format!("it has {} bytes instead of {wanted}", bytes.len());
            return Err(Error::Calibration { path, what });
        }
        let rows = Arc::new(LayerRows::read(&bytes, self.top_k, self.hidden));
        *current = Some((layer, Arc::clone(&rows)));
        Ok(rows)
    }
}

/// Whether all that is wanted was recorded. What is there of something else is not written over.
fn is_recorded(recording: &Recording<'_>) -> Result<bool, Error> {
    let path = recording.directory.join(DONE);
    match fs::read_to_string(&path) {
        Ok(found) if found == recording.identity => Ok(true),
        Ok(_) => Err(Error::OtherCalibration { path: recording.directory.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_at(&path)(error)),
    }
}

/// Reads the texts with the model and records what its experts are given.
fn record(recording: &Recording<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Error> {
    let Recording { directory, texts, n_tokens, .. } = *recording;
    let mut engine = Engine::open(recording.model, &engine_options(recording.engine))?;
    let n_layers = recording.config.mixers.len();
    // Sampling and reading count alike.
    let mut advance = |read: usize, of: usize| progress(read as u64, of as u64);
    let share = n_tokens.div_ceil(texts.len().max(1));
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    for text in texts {
        let of_text = match text {
            Text::Sampled => {
                let documents = sample_documents(&mut engine, share, &mut |n| {
                    advance(n.min(n_tokens), 2 * n_tokens);
                })?;
                let lines = documents.iter().map(|document| {
                    let text = engine.tokenizer()?.decode(document, false);
                    Ok(format!("{}\n", serde_json::json!({ "text": text })))
                });
                let lines = lines.collect::<Result<String, engine::Error>>()?;
                write_whole(&directory.join(SAMPLED), lines.as_bytes())?;
                documents
            }
            Text::Documents { path, documents } => encoded(path, documents, share, &engine)?,
        };
        sequences.extend(pieces(of_text, share));
    }
    let files = (0..n_layers).map(|layer| {
        let path = layer_path(directory, layer);
        Ok(BufWriter::new(File::create(&path).map_err(io_at(&path))?))
    });
    let recorder = Recorder { files: files.collect::<Result<_, Error>>()?, failed: None };
    let recorder = Arc::new(Mutex::new(recorder));
    let observing = Arc::clone(&recorder);
    engine.observe_experts(Some(Box::new(move |layer, x, routing| {
        let mut recorder = observing.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.add(layer, x, routing);
    })));
    let mut read = 0;
    for piece in &sequences {
        let mut session = engine.session()?;
        engine.evaluate(&mut session, piece, |_| false, |_, _| {})?;
        if let Some(error) = recorder.lock().unwrap_or_else(PoisonError::into_inner).failed.take() {
            return Err(io_at(directory)(error));
        }
        read += piece.len();
        advance(n_tokens + read.min(n_tokens), 2 * n_tokens);
    }
    engine.observe_experts(None);
    let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
    recorder.finish().map_err(io_at(directory))?;
    let tokens = serde_json::json!(sequences).to_string();
    write_whole(&directory.join(SEQUENCES), tokens.as_bytes())?;
    write_whole(&directory.join(DONE), recording.identity.as_bytes())
}

/// How the model is run.
pub(crate) fn engine_options(options: &EngineOptions) -> EngineOptions {
    EngineOptions {
        precise: true,
        sessions: crate::sample::SESSIONS,
        context: Some(MAX_DOCUMENT_TOKENS),
        ..options.clone()
    }
}

/// Documents cut to sequences that can be read, so many tokens of them in all.
fn pieces(documents: Vec<Vec<u32>>, mut n_tokens: usize) -> Vec<Vec<u32>> {
    let mut pieces = Vec::new();
    for piece in documents.iter().flat_map(|document| document.chunks(MAX_DOCUMENT_TOKENS)) {
        let piece = &piece[..piece.len().min(n_tokens)];
        n_tokens -= piece.len();
        if !piece.is_empty() {
            pieces.push(piece.to_vec());
        }
    }
    pieces
}

fn layer_path(directory: &Path, layer: usize) -> PathBuf {
    directory.join(format!("layer-{layer:03}.rows"))
}

/// Writes what the observer sees.
struct Recorder {
    files: Vec<BufWriter<File>>,
    /// Why no more is written.
    failed: Option<io::Error>,
}

impl Recorder {
    fn add(&mut self, layer: usize, x: &[f32], routing: &Routing) {
        let hidden = x.len() / (routing.experts.len() / routing.top_k).max(1);
        let rows = x.chunks_exact(hidden.max(1));
        let uses = routing.experts.chunks_exact(routing.top_k);
        let uses = uses.zip(routing.weights.chunks_exact(routing.top_k));
        let mut bytes = Vec::new();
        for (x, (experts, weights)) in rows.zip(uses) {
            bytes.extend(experts.iter().flat_map(|expert| expert.to_le_bytes()));
            bytes.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
            bytes.extend(x.iter().flat_map(|&x| narrow(x).to_le_bytes()));
        }
        if self.failed.is_none() {
            self.failed = self.files[layer].write_all(&bytes).err();
        }
    }

    /// Makes sure that all rows are on the drive before anybody is told so.
    fn finish(&mut self) -> io::Result<()> {
        self.files.iter_mut().try_for_each(|file| {
            file.flush()?;
            file.get_ref().sync_data()
        })
    }
}

/// The documents of a file as tokens, until there are so many.
fn encoded(
    path: &Path,
    documents: &[String],
    n_tokens: usize,
    engine: &Engine,
) -> Result<Vec<Vec<u32>>, Error> {
    let tokenizer = engine.tokenizer()?;
    let bad = |what: String| Error::Calibration { path: path.to_owned(), what };
    let (mut sequences, mut n) = (Vec::new(), 0);
    for document in documents {
        if n >= n_tokens {
            break;
        }
        let tokens = tokenizer.encode_trusted(document).map_err(|error| bad(error.to_string()))?;
        n += tokens.len();
        sequences.push(tokens);
    }
    Ok(sequences)
}
