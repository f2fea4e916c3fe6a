//! What a cache of eight bits costs, on the demo model's held-out text.

use std::fs;

use engine::{Engine, EngineOptions, KvType, best};
use serde_json::Value;

use crate::{demo, repository};

/// Documents that are compared.
const DOCUMENTS: usize = 40;

/// The logits of every token of a document.
fn logits(engine: &mut Engine, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut session = engine.session().expect("a session");
    let mut rows = Vec::new();
    engine
        .evaluate(&mut session, tokens, |_| true, |_, row| rows.push(row.to_vec()))
        .expect("runs");
    rows
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - total.ln()).collect()
}

/// What one mode costs against another, per token.
struct Cost {
    /// Kullback-Leibler divergence.
    kl: f64,
    /// Fraction of the best tokens that are the same.
    agree: f64,
    /// Perplexities of the exact mode and of the other.
    perplexities: [f64; 2],
}

/// Compares two modes on the held-out text.
fn compare(exact: EngineOptions, ours: EngineOptions) -> Cost {
    let mut engines = [exact, ours].map(demo);
    let text = fs::read_to_string(repository("tests/fixtures/demo-eval/tale.jsonl"));
    let (mut kl, mut agree, mut losses, mut n) = (0.0, 0, [0.0; 2], 0);
    for document in text.expect("the text is there").lines().take(DOCUMENTS) {
        let document: Value = serde_json::from_str(document).expect("a document is JSON");
        let segments = document["segments"].as_array().expect("a list of segments");
        let text: String = segments.iter().filter_map(|segment| segment[0].as_str()).collect();
        let tokens = crate::tokens(&engines[0], &text);
        let rows = engines.each_mut().map(|engine| logits(engine, &tokens));
        let pairs = rows[0].iter().zip(&rows[1]).zip(&tokens[1..]);
        for ((exact, ours), &next) in pairs {
            agree += usize::from(best(exact) == best(ours));
            let (exact, ours) = (log_softmax(exact), log_softmax(ours));
            kl += exact.iter().zip(&ours).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            losses[0] -= exact[next as usize];
            losses[1] -= ours[next as usize];
            n += 1;
        }
    }
    let n_tokens = f64::from(n);
    let perplexities = losses.map(|loss| (loss / n_tokens).exp());
    let (kl, agree) = (kl / n_tokens, agree as f64 / n_tokens);
    let [before, after] = perplexities;
    println!(
        "{n} tokens: KL {kl:.2e}, same best token {agree:.4}, perplexity {before:.4} to {after:.4}"
    );
    Cost { kl, agree, perplexities }
}

#[test]
fn eight_bit_keys_and_values_cost_less_than_that() {
    // All else is exact, so that the difference is theirs alone.
    let with = |kv_type| EngineOptions {
        precise: true,
        kv_type: Some(kv_type),
        ..EngineOptions::default()
    };
    let Cost { kl, agree, perplexities } = compare(with(KvType::F16), with(KvType::Q8_0));
    let [exact, ours] = perplexities;
    assert!(kl < 5e-4, "the divergence is {kl}");
    assert!((ours / exact - 1.0).abs() < 0.002, "perplexity {exact} became {ours}");
    assert!(agree > 0.98, "{agree} of the best tokens are the same");
}
