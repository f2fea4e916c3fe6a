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
use half::f16;
use serde_json::Value;

use crate::error::{Error, io_at};
use crate::expert::Inputs;
use crate::output::write_whole;
use crate::sample::sample_documents;

/// Text to calibrate with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalibrationText {
    /// What the model itself writes.
    Sampled,
    /// A file: plain text, or lines of JSON with `text`, or with `segments` as pairs of text and class.
    File(PathBuf),
}

/// Rows of an expert that are used at most; of more, evenly many are left out.
const MAX_ROWS: usize = 4096;
/// Rows of the whole layer that stand in for what an expert was not seen to be given.
const PRIOR_ROWS: usize = 256;
/// As many uses as they count for together.
const PRIOR_USES: f32 = 16.0;
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

/// Recorded rows of a layer.
#[derive(Debug)]
pub(crate) struct LayerRows {
    top_k: usize,
    hidden: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
    x: Vec<f16>,
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
        let options = EngineOptions {
            precise: true,
            sessions: crate::sample::SESSIONS,
            context: Some(MAX_DOCUMENT_TOKENS),
            ..options.clone()
        };
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
        let mut documents = Vec::new();
        for text in texts {
            let of_text = match text {
                CalibrationText::Sampled => sample_documents(&mut engine, share, &mut |n| {
                    advance(n.min(n_tokens), 2 * n_tokens);
                })?,
                CalibrationText::File(path) => read_documents(path, &engine)?,
            };
            documents.extend(pieces(of_text, share));
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
        for piece in documents {
            let mut session = engine.session()?;
            engine.evaluate(&mut session, &piece, |_| false, |_, _| {})?;
            read += piece.len();
            advance(n_tokens + read.min(n_tokens), 2 * n_tokens);
        }
        engine.observe_experts(None);
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.finish().map_err(io_at(directory))?;
        write_whole(&done, identity.as_bytes())?;
        Ok(calibration)
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
            let largest = f16::MAX.to_f32();
            let value = |x: &f32| f16::from_f32(x.clamp(-largest, largest)).to_le_bytes();
            bytes.extend(x.iter().flat_map(value));
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

impl LayerRows {
    fn read(bytes: &[u8], top_k: usize, hidden: usize) -> Self {
        let mut rows =
            Self { top_k, hidden, experts: Vec::new(), weights: Vec::new(), x: Vec::new() };
        for row in bytes.chunks_exact(8 * top_k + 2 * hidden) {
            let (experts, rest) = row.split_at(4 * top_k);
            let (weights, x) = rest.split_at(4 * top_k);
            rows.experts.extend(experts.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)));
            rows.weights.extend(weights.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            rows.x.extend(x.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)));
        }
        rows
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.experts.len() / self.top_k.max(1)
    }

    /// How many rows chose each expert.
    pub(crate) fn uses(&self, n_experts: usize) -> Vec<usize> {
        let mut uses = vec![0; n_experts];
        for &expert in &self.experts {
            if let Some(uses) = uses.get_mut(expert as usize) {
                *uses += 1;
            }
        }
        uses
    }

    /// Inputs to quantise an expert by: the rows that chose it, each counting as the square of its weight,
    /// and besides them rows of all the layer that count for a few uses together. An expert that was hardly
    /// chosen goes by those: by the average of the layer.
    pub(crate) fn inputs(&self, expert: usize) -> Inputs {
        let mut inputs = self.own_inputs(expert, MAX_ROWS);
        let n = self.len();
        let step = n.div_ceil(PRIOR_ROWS).max(1);
        let prior: Vec<usize> = (0..n).step_by(step).collect();
        let squares: f32 = self.weights.iter().map(|weight| weight * weight).sum();
        let mean = squares / self.weights.len().max(1) as f32;
        for &row in &prior {
            inputs.weights.push(mean * PRIOR_USES / prior.len() as f32);
            self.push_row(row, &mut inputs.x);
        }
        inputs
    }

    /// The rows that chose an expert, at most so many.
    pub(crate) fn own_inputs(&self, expert: usize, most: usize) -> Inputs {
        let uses =
            self.experts.iter().enumerate().filter(|&(_, &chosen)| chosen as usize == expert);
        let uses: Vec<usize> = uses.map(|(index, _)| index).collect();
        let step = uses.len().div_ceil(most).max(1);
        let mut inputs = Inputs::default();
        for &index in uses.iter().step_by(step) {
            // Those that are left out are stood for by those that are not.
            inputs.weights.push(self.weights[index].powi(2) * step as f32);
            self.push_row(index / self.top_k, &mut inputs.x);
        }
        inputs
    }

    fn push_row(&self, row: usize, out: &mut Vec<f32>) {
        let x = &self.x[row * self.hidden..][..self.hidden];
        out.extend(x.iter().map(|x| x.to_f32()));
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
