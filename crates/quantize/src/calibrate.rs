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

use engine::{Engine, EngineOptions, Routing};
use serde_json::Value;

use crate::error::{Error, io_at};
use crate::output::write_whole;
use crate::rows::{LayerRows, narrow};
use crate::sample::sample_documents;

/// Text to calibrate with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalibrationText {
    /// What the model itself writes.
    Sampled,
    /// A file: plain text, or lines of JSON with `text`, or with `segments` as pairs of text and class.
    File(PathBuf),
}

/// What the model wrote, for other runs to read: documents a line, as `--calibrate` takes them.
const SAMPLED: &str = "sampled.jsonl";
/// The sequences that were read, as lists of tokens.
const SEQUENCES: &str = "sequences.json";
/// Longest piece of a text that is read as one sequence.
const MAX_DOCUMENT_TOKENS: usize = 1024;

/// Recorded rows of all layers.
#[derive(Debug)]
pub(crate) struct Calibration {
    directory: PathBuf,
    top_k: usize,
    hidden: usize,
    /// The layer that was asked for last.
    current: Mutex<Option<(usize, Arc<LayerRows>)>>,
}

impl Calibration {
    /// Reads the texts with the model, as many tokens of each, and records rows in a new directory, unless
    /// that was done before. `identity` names model and texts.
    pub(crate) fn record(
        directory: &Path,
        identity: &str,
        model: &Path,
        (texts, n_tokens): (&[CalibrationText], usize),
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let options = engine_options(options);
        let done = directory.join("done");
        let mut engine = Engine::open(model, &options)?;
        let config = engine.config();
        let calibration = Self {
            directory: directory.to_owned(),
            top_k: config.moe.top_k,
            hidden: config.hidden_size,
            current: Mutex::new(None),
        };
        let n_layers = config.mixers.len();
        match fs::read_to_string(&done) {
            Ok(found) if found == identity => return Ok(calibration),
            Ok(_) => return Err(Error::OtherCalibration { path: directory.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_at(&done)(error)),
        }
        fs::create_dir_all(directory).map_err(io_at(directory))?;
        // Sampling and reading count alike.
        let mut advance = |read: usize, of: usize| progress(read as u64, of as u64);
        let share = n_tokens.div_ceil(texts.len().max(1));
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        for text in texts {
            let of_text = match text {
                CalibrationText::Sampled => {
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
                CalibrationText::File(path) => read_documents(path, &engine)?,
            };
            sequences.extend(pieces(of_text, share));
        }
        let files = (0..n_layers).map(|layer| {
            let path = layer_path(directory, layer);
            Ok(BufWriter::new(File::create(&path).map_err(io_at(&path))?))
        });
        let recorder = Recorder { files: files.collect::<Result<_, Error>>()?, result: Ok(()) };
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
            read += piece.len();
            advance(n_tokens + read.min(n_tokens), 2 * n_tokens);
        }
        engine.observe_experts(None);
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.finish().map_err(io_at(directory))?;
        let tokens = serde_json::json!(sequences).to_string();
        write_whole(&directory.join(SEQUENCES), tokens.as_bytes())?;
        write_whole(&done, identity.as_bytes())?;
        Ok(calibration)
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
        let rows = Arc::new(LayerRows::read(&bytes, self.top_k, self.hidden));
        *current = Some((layer, Arc::clone(&rows)));
        Ok(rows)
    }
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
    result: io::Result<()>,
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
        if self.result.is_ok() {
            self.result = self.files[layer].write_all(&bytes);
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        std::mem::replace(&mut self.result, Ok(()))?;
        self.files.iter_mut().try_for_each(Write::flush)
    }
}

/// The documents of a file as tokens.
fn read_documents(path: &Path, engine: &Engine) -> Result<Vec<Vec<u32>>, Error> {
    let bad = |what: String| Error::Calibration { path: path.to_owned(), what };
    let text = fs::read_to_string(path).map_err(io_at(path))?;
    let tokenizer = engine.tokenizer()?;
    let encode =
        |text: &str| tokenizer.encode_trusted(text).map_err(|error| bad(error.to_string()));
    let is_lines = path.extension().is_some_and(|extension| extension == "jsonl");
    let mut documents = Vec::new();
    if is_lines {
        for (index, line) in text.lines().enumerate() {
            let bad_line = |what: &str| bad(format!("line {}: {what}", index + 1));
            let line: Value =
                serde_json::from_str(line).map_err(|error| bad_line(&error.to_string()))?;
            let text = match (&line["text"], &line["segments"]) {
                (Value::String(text), _) => text.clone(),
                (_, Value::Array(segments)) => {
                    let texts = segments.iter().map(|segment| segment[0].as_str());
                    let texts: Option<Vec<&str>> = texts.collect();
                    texts.ok_or_else(|| bad_line("segments that are not pairs"))?.concat()
                }
                _ => return Err(bad_line("neither text nor segments")),
            };
            documents.push(encode(&text)?);
        }
    } else {
        documents.push(encode(&text)?);
    }
    match documents.iter().map(Vec::len).sum::<usize>() {
        0 => Err(bad("it has no text".to_owned())),
        _ => Ok(documents),
    }
}
