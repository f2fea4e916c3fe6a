//! How well a model predicts a document, by itself and beside a reference.

use engine::{Engine, best};
use serde::{Deserialize, Serialize};

use crate::cost::Cost;
use crate::error::Error;
use crate::reference::Row;
use crate::text::Document;

/// How a document was predicted. Sums are over its counted tokens, in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextUnit {
    /// The document's source.
    pub source: String,
    /// Counted tokens.
    pub counted: u64,
    /// Sum of the negative logarithms of their probabilities.
    pub loss: f64,
    /// Beside a reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// What it cost.
    pub cost: Cost,
}

/// How a prediction differs from a reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// The reference's loss.
    pub loss: f64,
    /// Sum of the divergences of the model's distribution from the reference's.
    pub divergence: f64,
    /// How often both find the same token the most probable.
    pub same_best: u64,
}

/// Predicts a document; `reference` has a row for each counted token.
pub fn score_document(
    engine: &mut Engine,
    document: &Document,
    reference: Option<&[Row]>,
) -> Result<TextUnit, Error> {
    let Document { source, tokens, counted } = document;
    let mut unit = TextUnit {
        source: source.clone(),
        counted: 0,
        loss: 0.0,
        compared: reference.map(|_| Compared::default()),
        cost: Cost::default(),
    };
    let usage = visit_logits(engine, tokens, counted, |next, logits| {
        let distribution = Distribution::of(logits);
        unit.loss -= distribution.log_probability(next);
        let row = reference.and_then(|rows| rows.get(unit.counted as usize));
        if let (Some(row), Some(compared)) = (row, &mut unit.compared) {
            compared.loss -= f64::from(row.next);
            compared.divergence += distribution.divergence_from(row);
            compared.same_best += u64::from(row.tokens.first() == Some(&best(logits)));
        }
        unit.counted += 1;
    })?;
    unit.cost = Cost::of(&usage);
    Ok(unit)
}

/// Computes a sequence from its beginning and hands over each counted token with the logits before it.
pub(crate) fn visit_logits(
    engine: &mut Engine,
    tokens: &[u32],
    counted: &[bool],
    mut visit: impl FnMut(u32, &[f32]),
) -> Result<engine::Usage, Error> {
    let mut session = engine.session()?;
    // Nothing follows the last token.
    let inputs = &tokens[..tokens.len().saturating_sub(1)];
    let wants = |index: usize| counted[index + 1];
    let visit = |index: usize, logits: &[f32]| visit(tokens[index + 1], logits);
    Ok(engine.evaluate(&mut session, inputs, wants, visit)?)
}

/// The softmax of logits, in `f64`.
pub(crate) struct Distribution<'a> {
    logits: &'a [f32],
    max: f32,
    /// Sum of the exponentials of the logits less the largest.
    total: f64,
}

impl<'a> Distribution<'a> {
    pub(crate) fn of(logits: &'a [f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        Self { logits, max, total }
    }

    pub(crate) fn log_probability(&self, token: u32) -> f64 {
        f64::from(self.logits[token as usize] - self.max) - self.total.ln()
    }

    /// The Kullback-Leibler divergence of this distribution from a reference's, where all tokens that the
    /// reference does not name count as one: never more than that of the whole distributions.
    pub(crate) fn divergence_from(&self, row: &Row) -> f64 {
        let (mut divergence, mut rest) = (0.0, self.total);
        for (&token, &reference) in row.tokens.iter().zip(&row.log_probabilities) {
            let (reference, ours) = (f64::from(reference), self.log_probability(token));
            divergence += reference.exp() * (reference - ours);
            rest -= f64::from(self.logits[token as usize] - self.max).exp();
        }
        let named = row.tokens.len();
        if named < self.logits.len() && row.rest > f32::NEG_INFINITY {
            let reference = f64::from(row.rest);
            let ours = (rest.max(f64::MIN_POSITIVE) / self.total).ln();
            divergence += reference.exp() * (reference - ours);
        }
        divergence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition_and_less_with_a_rest() {
        let (p, q): ([f32; 5], [f32; 5]) =
            ([2.0, 0.5, 0.1, -1.0, -3.0], [1.5, 0.9, 0.3, -1.0, 0.0]);
        let [reference, ours] = [&p, &q].map(|logits| Distribution::of(logits));
        let exact: f64 = (0..5)
            .map(|token| {
                let log = reference.log_probability(token);
                log.exp() * (log - ours.log_probability(token))
            })
            .sum();
        let of_top = |top| ours.divergence_from(&Row::of(&p, 0, top));
        assert!((of_top(5) - exact).abs() < 1e-6, "{} is {exact}", of_top(5));
        for top in 1..5 {
            let coarse = of_top(top);
            assert!(coarse > 0.0 && coarse < exact, "top {top}: {coarse}, whole {exact}");
        }
        let same = Distribution::of(&p).divergence_from(&Row::of(&p, 0, 3));
        assert!(same.abs() < 1e-6, "{same}");
    }
}
