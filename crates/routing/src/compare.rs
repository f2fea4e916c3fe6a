//! Ways to guess the next layer's experts, trained on the first part of a text and compared on the
//! rest.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use engine::cache::Trace;

use crate::collect::{Collected, SampledLayer};
use crate::look_ahead::Accuracy;
use crate::predictor::LowRank;
use linear::Matrix;

/// A way to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The experts that the layer used most before.
    Popular,
    /// Those that the token before used, then the popular ones.
    Previous,
    /// The layer's own router on the residual stream before its mixer.
    LookAhead,
    /// A map of low rank from the same stream to the router's logits, trained.
    Trained,
    /// The router's logits on that stream, corrected by a trained map of low rank.
    Corrected,
}

impl Method {
    /// All ways.
    pub const ALL: [Self; 5] =
        [Self::Popular, Self::Previous, Self::LookAhead, Self::Trained, Self::Corrected];

    /// A short name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Popular => "most used",
            Self::Previous => "previous token",
            Self::LookAhead => "look-ahead",
            Self::Trained => "trained low rank",
            Self::Corrected => "look-ahead, corrected",
        }
    }
}

/// How the ways compare on the last quarter of the sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Tokens that were learned from, and tokens that were guessed at.
    pub tokens: (usize, usize),
    /// Rank of the trained maps.
    pub rank: usize,
    /// Of each way of [`Method::ALL`] what its guesses came to.
    pub methods: Vec<Accuracy>,
}

/// Compares; layers are worked on by all cores, and the result does not depend on that. `None` if the
/// sample is too small.
pub fn compare(
    collected: &Collected,
    rank: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Option<Comparison> {
    let Collected { trace, sample, .. } = collected;
    let n_trained = sample.tokens.len() * 3 / 4;
    let n_layers = trace.experts.len();
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; sample.layers.len()]);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = sample.layers.get(index) else { break };
            let result = compare_layer(collected, layer, rank, n_trained);
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = result;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    thread::scope(|scope| {
        for _ in 1..n_threads(sample.layers.len()) {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let results: Vec<_> = results.into_iter().collect::<Option<_>>()?;
    let mut methods = vec![Accuracy::new(n_layers); Method::ALL.len()];
    for layer in results {
        for (sum, accuracy) in methods.iter_mut().zip(layer) {
            sum.merge(&accuracy);
        }
    }
    let tokens = (n_trained, sample.tokens.len() - n_trained);
    Some(Comparison { tokens, rank, methods })
}

/// Threads that work on so many layers.
pub(crate) fn n_threads(n_layers: usize) -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(n_layers)
}

fn compare_layer(
    collected: &Collected,
    sampled: &SampledLayer,
    rank: usize,
    n_trained: usize,
) -> Option<Vec<Accuracy>> {
    let Collected { trace, sample, top_k, .. } = collected;
    let n_experts = sampled.n_experts;
    let inputs = normed(&sampled.inputs, sampled.inputs.len() / sample.tokens.len().max(1));
    let logits = matrix(&sampled.logits, n_experts);
    let guessed = matrix(&sampled.guessed, n_experts);
    let mut misses = logits.clone();
    misses.values.iter_mut().zip(&guessed.values).for_each(|(miss, guess)| *miss -= guess);
    let seen = |matrix: &Matrix| Matrix {
        cols: matrix.cols,
        values: matrix.values[..n_trained * matrix.cols].to_vec(),
    };
    let trained = LowRank::fit(&seen(&inputs), &seen(&logits), rank)?;
    let correction = LowRank::fit(&seen(&inputs), &seen(&misses), rank)?;

    let chosen = Chosen::of(trace, sampled.layer);
    let first_test = *sample.tokens.get(n_trained)?;
    let mut popular = vec![0.0_f32; n_experts];
    for token in 0..first_test {
        chosen.of_token(token).for_each(|expert| popular[expert as usize] += 1.0);
    }
    let mut accuracies = vec![Accuracy::new(trace.experts.len()); Method::ALL.len()];
    for (row, &token) in sample.tokens.iter().enumerate().skip(n_trained) {
        let mut previous = popular.clone();
        let before = token.checked_sub(1).into_iter().flat_map(|token| chosen.of_token(token));
        before.for_each(|expert| previous[expert as usize] += first_test as f32);
        let guess = guessed.row(row);
        let corrected = correction.predict(inputs.row(row));
        let corrected = corrected.iter().zip(guess).map(|(miss, guess)| (miss + guess) as f32);
        let guesses = Method::ALL.map(|method| match method {
            Method::Popular => popular.clone(),
            Method::Previous => previous.clone(),
            Method::LookAhead => narrow(guess),
            Method::Trained => narrow(&trained.predict(inputs.row(row))),
            Method::Corrected => corrected.clone().collect(),
        });
        let used: Vec<u32> = chosen.of_token(token).collect();
        debug_assert_eq!(used.len(), *top_k, "a request of the trace is a token");
        for (accuracy, guess) in accuracies.iter_mut().zip(&guesses) {
            accuracy.add(sampled.layer, guess, &used);
        }
    }
    Some(accuracies)
}

/// A layer's requests in a trace of single tokens.
struct Chosen<'a> {
    requests: Vec<&'a [(u32, u32)]>,
}

impl<'a> Chosen<'a> {
    fn of(trace: &'a Trace, layer: usize) -> Self {
        let requests = trace.requests.iter().filter(|request| request.layer == layer);
        Self { requests: requests.map(|request| &request.experts[..]).collect() }
    }

    fn of_token(&self, token: usize) -> impl Iterator<Item = u32> + '_ {
        self.requests[token].iter().map(|&(expert, _)| expert)
    }
}

fn matrix(values: &[f32], cols: usize) -> Matrix {
    Matrix { cols, values: values.iter().map(|&value| f64::from(value)).collect() }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// Rows over their root mean square, as routers see them but for the norm's weights.
fn normed(values: &[f32], cols: usize) -> Matrix {
    let mut matrix = matrix(values, cols);
    for row in matrix.values.chunks_exact_mut(cols.max(1)) {
        let mean_square = row.iter().map(|value| value * value).sum::<f64>() / cols as f64;
        let scale = 1.0 / (mean_square + 1e-12).sqrt();
        row.iter_mut().for_each(|value| *value *= scale);
    }
    matrix
}
