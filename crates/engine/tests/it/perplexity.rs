//! The demo model's perplexity on held-out text, against that measured when it was trained.
//!
//! Every document starts a session; counted are the tokens of class 1 and the end of each document.

use std::fs;
use std::path::Path;

use engine::{Engine, EngineOptions};
use serde_json::Value;

use crate::repository;

const SOURCES: [&str; 6] = ["story", "tale", "answer", "skill", "mixed", "tool"];

/// Sum of the losses of all counted tokens of a source, and their number.
fn loss(engine: &mut Engine, source: &str) -> (f64, usize) {
    let path = repository("tests/fixtures/demo-eval").join(format!("{source}.jsonl"));
    let documents = fs::read_to_string(path).expect("the text is there");
    let (mut sum, mut counted) = (0.0, 0);
    for document in documents.lines() {
        let document: Value = serde_json::from_str(document).expect("a document is JSON");
        let tokenizer = engine.tokenizer().expect("the model has a tokenizer");
        let (mut tokens, mut counts) = (Vec::new(), Vec::new());
        for segment in document["segments"].as_array().expect("a list of segments") {
            let text = segment[0].as_str().expect("a text");
            let ids = tokenizer.encode_trusted(text).expect("it can be encoded");
            counts.extend(ids.iter().map(|_| segment[1] == 1));
            tokens.extend(ids);
        }
        tokens.push(tokenizer.token_id("<|endoftext|>").expect("the end is a token"));
        counts.push(true);

        let mut session = engine.session().expect("a session");
        let inputs = &tokens[..tokens.len() - 1];
        let visit = |index: usize, logits: &[f32]| {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
            let logit = logits[tokens[index + 1] as usize];
            sum += f64::from(max - logit) + total.ln();
            counted += 1;
        };
        engine.evaluate(&mut session, inputs, |index| counts[index + 1], visit).expect("it runs");
    }
    (sum, counted)
}

fn compare(model: &Path, variant: &str, tolerance: f64) {
    let options = EngineOptions { memory: Some(2 << 30), ..EngineOptions::default() };
    let mut engine = Engine::open(model, &options).expect("the model opens");
    let recorded = fs::read(repository("tests/fixtures/demo-eval/perplexity.json"));
    let recorded: Value =
        serde_json::from_slice(&recorded.expect("it is there")).expect("it is JSON");
    let (mut sum, mut counted, mut expected_sum) = (0.0, 0, 0.0);
    for source in SOURCES {
        let (source_sum, source_counted) = loss(&mut engine, source);
        let recorded = &recorded[variant][source];
        let expected = recorded["perplexity"].as_f64().expect("a number");
        let perplexity = (source_sum / source_counted as f64).exp();
        println!("{variant} {source}: {perplexity:.4}, recorded {expected:.4}");
        assert_eq!(recorded["tokens"], source_counted, "{source}: the same tokens are counted");
        sum += source_sum;
        counted += source_counted;
        expected_sum += expected.ln() * source_counted as f64;
    }
    let perplexity = (sum / counted as f64).exp();
    let expected = (expected_sum / counted as f64).exp();
    println!("{variant}: {perplexity:.4}, recorded {expected:.4}");
    assert!((perplexity / expected - 1.0).abs() < tolerance, "{perplexity} is not {expected}");
}

#[test]
fn the_demo_model_predicts_as_well_as_recorded() {
    // The recorded number is of a simulated quantisation, and these files are of the MLX converter.
    compare(&repository("models/demo"), "mlx-4bit", 0.01);
}

#[test]
fn the_demo_model_in_bf16_predicts_as_well_as_recorded() {
    // Its 75 MB are not part of the repository.
    match std::env::var_os("FLASH_MOE_DEMO_BF16") {
        Some(model) => compare(Path::new(&model), "bf16", 0.005),
        None => println!("skipped: FLASH_MOE_DEMO_BF16 does not name the model's directory"),
    }
}
