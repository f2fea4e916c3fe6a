//! Runs a text through a model and keeps what its routers did.
//!
//! A row's routing does not depend on its company, so tokens go through in batches and are told apart
//! afterwards: the trace is that of decoding the text token by token.

use checkpoint::{FfnKind, ModelConfig};
use engine::cache::{Trace, TracedRequest};
use engine::{Engine, Error, RoutedLayer};

use crate::caches::Guesses;
use crate::compare::n_threads;
use crate::look_ahead::{Accuracy, Guess};

/// How many layers ahead guesses are made.
pub const STRIDES: usize = 3;
/// Memory for the log of one batch.
const BATCH_BYTES: usize = 32 << 20;
/// Memory for the sample that predictors are trained with, and the most tokens of it.
const SAMPLE_BYTES: usize = 512 << 20;
const SAMPLE_TOKENS: usize = 1280;

/// What a model's routers are like in size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Experts of each layer; 0 for layers without routed ones.
    pub experts: Vec<u32>,
    /// Experts of a token.
    pub top_k: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Bytes of an expert in memory.
    pub slot_bytes: u64,
}

impl Shape {
    /// The shape of a model with experts of so many bytes.
    pub fn new(config: &ModelConfig, slot_bytes: u64) -> Self {
        let count = |ffn: &FfnKind| match ffn {
            FfnKind::Moe => config.moe.n_experts as u32,
            FfnKind::Dense(_) => 0,
        };
        let experts = config.ffns.iter().map(count).collect();
        Self { top_k: config.moe.top_k, hidden: config.hidden_size, slot_bytes, experts }
    }

    /// Memory that collecting and training take beside the engine for a text of so many tokens, in bytes.
    pub fn needed_bytes(&self, n_tokens: usize) -> u64 {
        let n_layers = self.experts.iter().filter(|&&count| count > 0).count();
        let widest = self.experts.iter().copied().max().unwrap_or(0) as usize;
        let request = size_of::<TracedRequest>() + size_of::<(u32, u32)>() * self.top_k;
        let guesses = size_of::<Vec<Guess>>() + size_of::<Guess>() * self.top_k;
        let per_token = n_layers * (request + STRIDES * guesses);
        let sampled = self.sample_tokens(n_tokens);
        let sample = 4 * sampled * self.values_per_token(2);
        let training = 8 * sampled * (3 * sampled + 3 * self.hidden + 8 * widest);
        let batch = 4 * self.batch_tokens() * self.values_per_token(STRIDES + 1);
        let threads = n_threads(n_layers);
        (n_tokens * per_token + sample + batch + threads * training) as u64
    }

    /// Values that a token leaves with `n_logits` rows of logits a layer.
    fn values_per_token(&self, n_logits: usize) -> usize {
        let moe = self.experts.iter().filter(|&&count| count > 0);
        moe.map(|&count| self.hidden + n_logits * count as usize).sum::<usize>().max(1)
    }

    /// Tokens of a batch.
    fn batch_tokens(&self) -> usize {
        (BATCH_BYTES / (4 * self.values_per_token(STRIDES + 1))).max(1)
    }

    /// Tokens of the sample, of a text of so many.
    fn sample_tokens(&self, n_tokens: usize) -> usize {
        (SAMPLE_BYTES / (4 * self.values_per_token(2))).min(SAMPLE_TOKENS).min(n_tokens)
    }
}

/// What routers did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    /// The routing of the text, token by token.
    pub trace: Trace,
    /// Experts of a token.
    pub top_k: usize,
    /// How good the model's own routers are as guesses 1, 2, .. layers ahead.
    pub strides: Vec<Accuracy>,
    /// The guesses.
    pub guesses: Guesses,
    /// What predictors are trained with and compared on.
    pub sample: Sample,
}

/// Some tokens of the text, evenly spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Which tokens, in order.
    pub tokens: Vec<usize>,
    /// The layers with routed experts, in order.
    pub layers: Vec<SampledLayer>,
}

/// What a layer's router saw and said of the sample's tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampledLayer {
    /// The layer.
    pub layer: usize,
    /// Its experts.
    pub n_experts: usize,
    /// The residual stream before its mixer, (tokens, hidden).
    pub inputs: Vec<f32>,
    /// The router's logits, (tokens, n_experts).
    pub logits: Vec<f32>,
    /// The same router on the residual stream before the mixer, (tokens, n_experts).
    pub guessed: Vec<f32>,
}

/// Runs tokens through a model, in sessions of its context, and tells `progress` how many are done.
pub fn collect(
    engine: &mut Engine,
    tokens: &[u32],
    mut progress: impl FnMut(usize),
) -> Result<Collected, Error> {
    let n_experts: usize = engine.resident_experts().map(Iterator::count).sum();
    let shape = Shape::new(engine.config(), engine.plan().all_experts / n_experts.max(1) as u64);
    let mut collector = Collector::new(&shape, tokens.len());
    engine.record_routing(true);
    engine.record_routers(Some(STRIDES));
    let context = engine.plan().context;
    let result = (|| {
        for window in tokens.chunks(context) {
            let mut session = engine.session()?;
            for batch in window.chunks(shape.batch_tokens().min(engine.prompt_chunk())) {
                // Logits are computed to be checked: damaged weights choose experts, too.
                let is_last = |row| row + 1 == batch.len();
                engine.evaluate(&mut session, batch, is_last, |_, _| ())?;
                let chosen = engine.take_routing().into_iter().map(|routing| routing.experts);
                collector.add(chosen.collect(), &engine.take_routers(), batch.len());
                progress(collector.n_done);
            }
        }
        Ok(())
    })();
    engine.record_routing(false);
    engine.record_routers(None);
    result.map(|()| collector.collected)
}

/// What was collected so far.
struct Collector {
    collected: Collected,
    n_tokens: usize,
    n_sampled: usize,
    n_done: usize,
}

impl Collector {
    fn new(shape: &Shape, n_tokens: usize) -> Self {
        let moe = shape.experts.iter().enumerate().filter(|(_, count)| **count > 0);
        let layers = moe.map(|(layer, &count)| {
            let n_experts = count as usize;
            SampledLayer { layer, n_experts, ..SampledLayer::default() }
        });
        let collected = Collected {
            trace: Trace {
                slot_bytes: shape.slot_bytes,
                experts: shape.experts.clone(),
                requests: Vec::new(),
            },
            top_k: shape.top_k,
            strides: vec![Accuracy::new(shape.experts.len()); STRIDES],
            guesses: Guesses { strides: vec![Vec::new(); STRIDES] },
            sample: Sample { tokens: Vec::new(), layers: layers.collect() },
        };
        Self { collected, n_tokens, n_sampled: shape.sample_tokens(n_tokens), n_done: 0 }
    }

    /// Takes a batch in: what each layer chose, and what its router saw and said.
    fn add(&mut self, chosen: Vec<Vec<u32>>, layers: &[RoutedLayer], n_rows: usize) {
        let Collected { trace, top_k, strides, guesses, sample } = &mut self.collected;
        for row in 0..n_rows {
            let token = self.n_done + row;
            let is_sampled = (token + 1) * self.n_sampled / self.n_tokens
                > token * self.n_sampled / self.n_tokens;
            if is_sampled {
                sample.tokens.push(token);
            }
            for (index, (layer, chosen)) in layers.iter().zip(&chosen).enumerate() {
                let chosen = &chosen[row * *top_k..(row + 1) * *top_k];
                let n_experts = layer.logits.len() / n_rows;
                let of_row = |values: &[f32]| {
                    let width = values.len() / n_rows;
                    values[row * width..(row + 1) * width].to_vec()
                };
                let mut experts: Vec<_> = chosen.iter().map(|&expert| (expert, 1)).collect();
                // The order in which the store is asked.
                experts.sort_unstable();
                trace.requests.push(TracedRequest { layer: layer.layer, experts });
                let by_stride = strides.iter_mut().zip(&mut guesses.strides).enumerate();
                for (stride, (accuracy, guesses)) in by_stride {
                    let predicted = layer.predicted.get(stride);
                    let guessed = predicted.map(|predicted| {
                        let logits = &predicted[row * n_experts..(row + 1) * n_experts];
                        accuracy.add(layer.layer, logits, chosen)
                    });
                    guesses.push(guessed.unwrap_or_default());
                }
                if is_sampled {
                    let sampled = &mut sample.layers[index];
                    sampled.inputs.extend(of_row(&layer.input));
                    sampled.logits.extend(of_row(&layer.logits));
                    sampled.guessed.extend(of_row(&layer.predicted[0]));
                }
            }
        }
        self.n_done += n_rows;
    }
}
