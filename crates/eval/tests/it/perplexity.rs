//! The demo model's perplexity on held-out text, against that measured when it was trained.

use std::fs;
use std::path::Path;

use engine::{Engine, EngineOptions};
use eval::{DEFAULT_WINDOW, Results, Summary, Unit, read_texts, score_document};
use serde_json::Value;

use crate::held_out;
use crate::resuming::facts;

/// Half of the recorded texts: they take a minute.
const SOURCES: [&str; 4] = ["tale", "skill", "mixed", "tool"];

fn compare(model: &Path, variant: &str, sources: &[&str], tolerance: f64) {
    let options = EngineOptions { memory: Some(2 << 30), ..EngineOptions::default() };
    let mut engine = Engine::open(model, &options).expect("the model opens");
    let recorded = fs::read(held_out("perplexity.json")).expect("it is there");
    let recorded: Value = serde_json::from_slice(&recorded).expect("it is JSON");
    let mut units = Vec::new();
    for source in sources {
        let tokenizer = engine.tokenizer().expect("the model has a tokenizer");
        let path = held_out(&format!("{source}.jsonl"));
        for document in read_texts(&path, tokenizer, DEFAULT_WINDOW).expect("it is sound") {
            let unit = score_document(&mut engine, &document, None).expect("it runs");
            units.push(Unit::Document(unit));
        }
    }
    let summary = Summary::of(&Results::new(facts(), units));
    let (mut counted, mut expected_sum) = (0, 0.0);
    for (source, texts) in sources.iter().zip(&summary.texts) {
        let recorded = &recorded[variant][source];
        let expected = recorded["perplexity"].as_f64().expect("a number");
        println!("{variant} {source}: {:?}, recorded {expected:.4}", texts.perplexity);
        assert_eq!(texts.source, *source);
        assert_eq!(recorded["tokens"], texts.tokens, "{source}: the same tokens are counted");
        counted += texts.tokens;
        expected_sum += expected.ln() * texts.tokens as f64;
    }
    let mean = summary.all_texts().expect("there are texts");
    let (perplexity, interval) = (mean.perplexity.value, mean.perplexity.interval);
    let expected = (expected_sum / counted as f64).exp();
    println!("{variant}: {perplexity:.4}, recorded {expected:.4}");
    assert_eq!(mean.tokens, counted);
    assert!((perplexity / expected - 1.0).abs() < tolerance, "{perplexity} is not {expected}");
    assert!(interval.low < perplexity && perplexity < interval.high, "{interval:?}");
}

#[test]
fn the_demo_model_predicts_as_well_as_recorded() {
    // The recorded number is of a simulated quantisation, and these files are of the MLX converter.
    compare(&crate::repository("models/demo"), "mlx-4bit", &SOURCES, 0.01);
}

#[test]
fn the_demo_model_in_bf16_predicts_as_well_as_recorded() {
    // Its 75 MB are not part of the repository.
    match std::env::var_os("FLASH_MOE_DEMO_BF16") {
        // It is slow: these are the texts that it predicts worst and best.
        Some(model) => compare(Path::new(&model), "bf16", &["tale", "tool"], 0.005),
        None => println!("skipped: FLASH_MOE_DEMO_BF16 does not name the model's directory"),
    }
}
