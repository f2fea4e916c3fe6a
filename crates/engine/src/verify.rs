//! Comparison with golden outputs of a reference implementation.
//!
//! A golden file is a safetensors file with, for each sequence `S` of `short`, `medium` and `long`,
//! `S.input_ids`, `S.logits` (its last rows), `S.router_ids` (layers, tokens, top-k) and
//! `S.greedy_ids`; and optionally the states after the first 20 tokens of `medium`
//! (`prefill20.state.LAYER.*`) and the logits when the rest is fed token by token (`decode37.logits`).

use std::path::Path;

use checkpoint::FfnKind;
use checkpoint::safetensors_file::{SafetensorsFile, TensorData, write_safetensors};
use compute::best;

use crate::engine::Engine;
use crate::error::Error;
use crate::runner::LayerValues;

/// Largest difference of a logit or state that counts as equal, in `f32` arithmetic.
const TOLERANCE: f32 = 1e-3;
/// The same on a device that keeps keys and values in 16-bit floats whatever is asked for.
const DEVICE_TOLERANCE: f32 = 1e-2;

/// Largest difference that counts as equal on the device of an engine.
pub fn tolerance(engine: &Engine) -> f32 {
    match engine.plan().device {
        Some(_) => DEVICE_TOLERANCE,
        None => TOLERANCE,
    }
}

const SEQUENCES: [&str; 3] = ["short", "medium", "long"];
/// Tokens of `medium` that the state goldens have seen.
const PREFILL_TOKENS: usize = 20;

/// The result of one comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was compared, named as in the golden file.
    pub name: String,
    /// The comparison.
    pub outcome: Outcome,
}

/// How a comparison came out.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Numbers: the largest absolute difference.
    Error(f32),
    /// Exact values: how many of how many agree.
    Agreement {
        /// Those that agree.
        equal: usize,
        /// All.
        of: usize,
    },
}

impl Check {
    /// Whether the comparison is within the tolerance.
    pub fn passes(&self, tolerance: f32) -> bool {
        match self.outcome {
            Outcome::Error(error) => error <= tolerance,
            Outcome::Agreement { equal, of } => equal == of,
        }
    }
}

/// All comparisons, and the engine's own outputs under the golden names.
#[derive(Debug, Default)]
pub struct Report {
    /// The comparisons in order.
    pub checks: Vec<Check>,
    outputs: Vec<(String, TensorData)>,
}

impl Report {
    /// Whether there was something to compare and all of it is within the tolerance.
    pub fn passes(&self, tolerance: f32) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passes(tolerance))
    }

    /// The largest absolute difference of all numbers.
    pub fn worst_error(&self) -> f32 {
        let errors = self.checks.iter().map(|check| match check.outcome {
            Outcome::Error(error) => error,
            Outcome::Agreement { .. } => 0.0,
        });
        errors.fold(0.0, f32::max)
    }

    /// Writes the engine's own logits, router ids and greedy ids under the golden names.
    pub fn dump(&self, path: &Path) -> Result<(), Error> {
        Ok(write_safetensors(path, &self.outputs)?)
    }

    fn error(&mut self, name: String, ours: &[f32], golden: &[f32]) {
        let outcome = Outcome::Error(max_difference(ours, golden));
        self.checks.push(Check { name, outcome });
    }

    fn agreement(&mut self, name: String, equal: usize, of: usize) {
        self.checks.push(Check { name, outcome: Outcome::Agreement { equal, of } });
    }
}

/// Runs the sequences of a golden file.
pub fn verify(engine: &mut Engine, golden_path: &Path) -> Result<Report, Error> {
    if engine.lossy().is_on() {
        return Err(Error::LossyVerify(*engine.lossy()));
    }
    let golden = SafetensorsFile::open(golden_path)?;
    let mut report = Report::default();
    for name in SEQUENCES {
        if golden.contains(&format!("{name}.input_ids")) {
            sequence(engine, &golden, name, &mut report)?;
        }
    }
    if golden.contains("decode37.logits") {
        states(engine, &golden, &mut report)?;
    }
    Ok(report)
}

/// One prefill of a sequence, and a greedy continuation.
fn sequence(
    engine: &mut Engine,
    golden: &SafetensorsFile,
    name: &str,
    report: &mut Report,
) -> Result<(), Error> {
    let vocab_size = engine.config().vocab_size;
    let ids = tokens(golden, &format!("{name}.input_ids"))?;
    let expected = golden.read_f32(&format!("{name}.logits"))?;
    let first = ids.len().saturating_sub(expected.len() / vocab_size);

    engine.record_routing(true);
    let mut session = engine.session()?;
    let mut logits = Vec::new();
    engine.evaluate(&mut session, &ids, |i| i >= first, |_, row| logits.extend_from_slice(row))?;
    let routing = engine.take_routing();
    engine.record_routing(false);
    report.error(format!("{name}.logits"), &logits, &expected);

    // Passes hold one after another all layers of some tokens; the golden file all tokens by layer.
    let is_moe = |ffn: &&FfnKind| **ffn == FfnKind::Moe;
    let n_layers = engine.config().ffns.iter().filter(is_moe).count();
    let mut chosen = Vec::new();
    for layer in 0..n_layers {
        for pass in routing.chunks_exact(n_layers) {
            chosen.extend(pass[layer].experts.iter().map(|&expert| expert as i32));
        }
    }
    let expected = golden.read_i32(&format!("{name}.router_ids"))?;
    let top_k = engine.config().moe.top_k;
    let sets = |ids: &[i32]| -> Vec<Vec<i32>> {
        let sorted = ids.chunks_exact(top_k).map(|row| {
            let mut row = row.to_vec();
            row.sort_unstable();
            row
        });
        sorted.collect()
    };
    let (ours, theirs) = (sets(&chosen), sets(&expected));
    let equal = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
    report.agreement(format!("{name}.router_ids"), equal, ours.len().max(theirs.len()));

    let expected = tokens(golden, &format!("{name}.greedy_ids"))?;
    let mut greedy = Vec::with_capacity(expected.len());
    let mut last = logits[logits.len() - vocab_size..].to_vec();
    while greedy.len() < expected.len() {
        let token = best(&last);
        greedy.push(token);
        engine.evaluate(&mut session, &[token], |_| true, |_, row| last.copy_from_slice(row))?;
    }
    let equal = greedy.iter().zip(&expected).filter(|(a, b)| a == b).count();
    report.agreement(format!("{name}.greedy_ids"), equal, expected.len());

    let rows = logits.len() / vocab_size;
    let greedy: Vec<i32> = greedy.into_iter().map(|token| token as i32).collect();
    report.outputs.extend([
        (format!("{name}.logits"), TensorData::f32(vec![rows, vocab_size], logits)),
        (format!("{name}.router_ids"), TensorData::i32(vec![n_layers, ids.len(), top_k], chosen)),
        (format!("{name}.greedy_ids"), TensorData::i32(vec![greedy.len()], greedy)),
    ]);
    Ok(())
}

/// States after a prefill, and then decoding token by token.
fn states(engine: &mut Engine, golden: &SafetensorsFile, report: &mut Report) -> Result<(), Error> {
    let ids = tokens(golden, "medium.input_ids")?;
    let (prefill, rest) = ids.split_at(PREFILL_TOKENS.min(ids.len()));
    let mut session = engine.session()?;
    let mut logits = Vec::new();
    let last = prefill.len() - 1;
    engine.evaluate(
        &mut session,
        prefill,
        |i| i == last,
        |_, row| logits.extend_from_slice(row),
    )?;
    compare_states(engine, &session, golden, "prefill20", report)?;
    for &token in rest {
        engine.evaluate(
            &mut session,
            &[token],
            |_| true,
            |_, row| logits.extend_from_slice(row),
        )?;
    }
    report.error("decode37.logits".to_owned(), &logits, &golden.read_f32("decode37.logits")?);
    compare_states(engine, &session, golden, "decode37", report)
}

fn compare_states(
    engine: &Engine,
    session: &crate::session::Session,
    golden: &SafetensorsFile,
    moment: &str,
    report: &mut Report,
) -> Result<(), Error> {
    for (index, layer) in engine.state_values(session).into_iter().enumerate() {
        let (parts, transposed) = match layer {
            LayerValues::Attention(kv) => ([("k", kv.keys), ("v", kv.values)], None),
            LayerValues::DeltaNet(delta) => {
                let taps = engine.config().delta_net.map_or(1, |config| config.conv_kernel);
                ([("conv", delta.conv), ("recurrent", delta.recurrent)], Some(taps))
            }
        };
        for (part, ours) in parts {
            let name = format!("{moment}.state.{index}.{part}");
            if !golden.contains(&name) {
                continue;
            }
            let mut expected = golden.read_f32(&name)?;
            if let (Some(taps), "conv") = (transposed, part) {
                expected = conv_rows(&expected, taps);
            }
            report.error(name, &ours, &expected);
        }
    }
    Ok(())
}

/// The golden file keeps (channels, taps), of which the oldest column is never read; we keep
/// (taps - 1, channels).
fn conv_rows(golden: &[f32], taps: usize) -> Vec<f32> {
    let columns = (1..taps).flat_map(|tap| golden.chunks_exact(taps).map(move |row| row[tap]));
    columns.collect()
}

fn tokens(golden: &SafetensorsFile, name: &str) -> Result<Vec<u32>, Error> {
    Ok(golden.read_i32(name)?.into_iter().map(|id| id as u32).collect())
}

/// Different lengths and numbers that are not finite count as infinitely different.
fn max_difference(ours: &[f32], golden: &[f32]) -> f32 {
    if ours.len() != golden.len() {
        return f32::INFINITY;
    }
    let differences = ours.iter().zip(golden).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, x| if x.is_nan() { f32::INFINITY } else { worst.max(x) })
}
