//! Walking through a model layer by layer while its experts become codes, so that each layer is calibrated
//! by what the quantised layers before it will give it.
//!
//! Kept is the residual stream of all calibration rows in front of one layer, as the copy computes it.
//! A layer is entered: its mixer, router and shared expert are applied, and the rows that its experts are
//! given are known. When its experts are written they are read back and add their part, and the stream
//! stands in front of the next layer. It is kept in a file, too, so that a killed run goes on at its layer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use engine::{Engine, EngineOptions};

use crate::calibrate::{Calibration, engine_options};
use crate::error::Error;
use crate::expert::Expert;
use crate::output::write_whole;
use crate::rows::LayerRows;

/// The residual stream of the calibration rows on its way through the copy.
pub(crate) struct Walk {
    engine: Engine,
    /// Rows of each sequence.
    lengths: Vec<usize>,
    hidden: usize,
    top_k: usize,
    /// In front of this layer.
    layer: usize,
    /// (rows, hidden).
    residual: Vec<f32>,
    /// Where the stream is kept.
    path: PathBuf,
}

impl Walk {
    /// Starts in front of the first layer, or where an earlier run has kept the stream in `path`.
    pub(crate) fn begin(
        model: &Path,
        options: &EngineOptions,
        calibration: &Calibration,
        path: PathBuf,
    ) -> Result<Self, Error> {
        let mut engine = Engine::open(model, &engine_options(options))?;
        let (hidden, top_k) = (engine.config().hidden_size, engine.config().moe.top_k);
        let sequences = calibration.sequences()?;
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let rows: usize = lengths.iter().sum();
        let kept = fs::read(&path).ok().filter(|kept| kept.len() == 8 + 4 * rows * hidden);
        let kept = kept.and_then(|kept| {
            let (layer, values) =
                kept.split_first_chunk().map(|(l, v)| (u64::from_le_bytes(*l), v))?;
            let values = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            let n_layers = engine.config().mixers.len();
            (layer <= n_layers as u64).then(|| (layer as usize, values.collect()))
        });
        let (layer, residual) = match kept {
            Some(kept) => kept,
            None => {
                let mut residual = Vec::with_capacity(rows * hidden);
                for tokens in &sequences {
                    residual.extend(engine.embedded(tokens)?);
                }
                (0, residual)
            }
        };
        Ok(Self { engine, lengths, hidden, top_k, layer, residual, path })
    }

    /// The layer that the stream stands in front of.
    pub(crate) fn layer(&self) -> usize {
        self.layer
    }

    /// Applies all of the layer but its routed experts; gives the rows that those are given.
    pub(crate) fn enter(&mut self) -> Result<LayerRows, Error> {
        let mut rows = LayerRows::new(self.top_k, self.hidden);
        let mut begin = 0;
        for &length in &self.lengths {
            let residual = &mut self.residual[begin..begin + length * self.hidden];
            let pass = self.engine.layer_pass(self.layer, residual)?;
            rows.append(&pass.inputs, &pass.routing);
            residual.copy_from_slice(&pass.residual);
            begin += residual.len();
        }
        Ok(rows)
    }

    /// Adds what the layer's experts make of their rows, and stands in front of the next.
    pub(crate) fn leave(
        &mut self,
        rows: &LayerRows,
        n_experts: usize,
        threads: usize,
        expert: &(dyn Fn(usize) -> Result<Expert, Error> + Sync),
    ) -> Result<(), Error> {
        let hidden = self.hidden;
        let next = AtomicUsize::new(0);
        // Sums in the order of arrival would differ from run to run in their last digits, and with them what
        // a run that was killed goes on with; so outputs are added in order of experts.
        let turn = Mutex::new((0, std::mem::take(&mut self.residual)));
        let turned = Condvar::new();
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= n_experts {
                            break;
                        }
                        let (places, weights, x) = rows.all_uses(index);
                        let outputs = match expert(index) {
                            Ok(expert) => expert.outputs(&x),
                            Err(error) => {
                                *failed.lock().expect("no thread panics with it") = Some(error);
                                vec![0.0; x.len()]
                            }
                        };
                        let turn = turn.lock().expect("no thread panics with it");
                        let mut turn = turned
                            .wait_while(turn, |turn| turn.0 != index)
                            .expect("no thread panics with it");
                        let outputs = outputs.chunks_exact(hidden).zip(weights);
                        for (place, (output, weight)) in places.into_iter().zip(outputs) {
                            let residual = &mut turn.1[place * hidden..][..hidden];
                            for (residual, output) in residual.iter_mut().zip(output) {
                                *residual += weight * output;
                            }
                        }
                        turn.0 += 1;
                        turned.notify_all();
                    }
                });
            }
        });
        self.residual = turn.into_inner().expect("no thread panicked").1;
        if let Some(error) = failed.into_inner().expect("no thread panicked") {
            return Err(error);
        }
        self.layer += 1;
        let mut bytes = (self.layer as u64).to_le_bytes().to_vec();
        bytes.extend(self.residual.iter().flat_map(|x| x.to_le_bytes()));
        write_whole(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use engine::Inventory;

    use super::*;
    use crate::calibrate::Recording;
    use crate::loader::Loader;
    use crate::source::Source;
    use crate::text::Text;

    /// With the experts as they are, every layer is given what it is given when the model runs.
    #[test]
    fn a_walk_through_the_model_itself_meets_the_rows_of_a_run() {
        let base = std::env::temp_dir().join(format!("flash-moe-walk-{}", std::process::id()));
        fs::create_dir_all(&base).expect("it can be made");
        for name in ["qwen35moe-tiny"] {
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
            let model = fixtures.join(name);
            let options = EngineOptions {
                memory: Some(1 << 30),
                prompt_chunk: Some(16),
                direct_io: false,
                ..EngineOptions::default()
            };
            let directory = base.join(name);
            let inventory = Inventory::read(&model).expect("it can be read");
            let recording = Recording {
                directory: &directory,
                identity: "a".to_owned(),
                model: &model,
                config: inventory.checkpoint.config(),
                texts: &[Text::Sampled],
                n_tokens: 100,
                engine: &options,
            };
            let calibration = Calibration::open(&recording, &mut |_, _| {});
            let calibration = calibration.expect("it can be recorded");
            let source = Source::open(&inventory.checkpoint).expect("it can be opened");
            let loader = Loader { source: &source, inventory: &inventory, calibration: None };
            let begin = || {
                let path = directory.join("stream");
                Walk::begin(&model, &options, &calibration, path).expect("it begins")
            };
            let mut walk = begin();
            for (layer, table) in inventory.experts.iter().enumerate() {
                // A killed run goes on at its layer.
                if layer == 1 {
                    walk = begin();
                }
                assert_eq!(walk.layer(), layer);
                let rows = walk.enter().expect("it can be entered");
                let recorded = calibration.layer(layer).expect("it was recorded");
                // Inputs are kept in 16 bits. Where a router of this random model wavers, that tips it over,
                // and the rest of the sequence is another one from the next layer on.
                let share = rows.share_near(&recorded, 0.02);
                let least = if layer < 2 { 0.95 } else { 0.5 };
                assert!(share >= least, "{name}, layer {layer}: {share}");
                let expert = |expert| loader.expert(layer, expert);
                walk.leave(&rows, table.len(), 2, &expert).expect("it can be left");
            }
        }
        fs::remove_dir_all(&base).expect("it can be removed");
    }
}
