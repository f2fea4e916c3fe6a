//! Integration tests of the engine: sessions, batches, generation.

mod constraint;
mod generation;
mod precision;
mod prefix_cache;
mod router_log;
mod scheduler;
mod sessions;

use std::path::{Path, PathBuf};

use engine::{Engine, EngineOptions};

/// A path in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The demo model with fewer slots than experts, so that they stream.
fn demo(options: EngineOptions) -> Engine {
    let options = EngineOptions { memory: Some(1 << 30), ..options };
    Engine::open(&repository("models/demo"), &options).expect("the demo model opens")
}

/// Options that make experts stream.
fn streaming() -> EngineOptions {
    EngineOptions { expert_cache: Some(6 << 20), ..EngineOptions::default() }
}

/// Tokens of a text of the demo model.
fn tokens(engine: &Engine, text: &str) -> Vec<u32> {
    let tokenizer = engine.tokenizer().expect("the demo model has one");
    tokenizer.encode_trusted(text).expect("it can be encoded")
}

/// A text of the demo model's held-out documents, so many tokens of it from a place on.
fn held_out(engine: &Engine, begin: usize, n_tokens: usize) -> Vec<u32> {
    let path = repository("tests/fixtures/demo-eval/tale.jsonl");
    let mut all = Vec::new();
    for document in std::fs::read_to_string(path).expect("the text is there").lines() {
        let document: serde_json::Value = serde_json::from_str(document).expect("it is JSON");
        let segments = document["segments"].as_array().expect("a list of segments");
        let text: String = segments.iter().filter_map(|segment| segment[0].as_str()).collect();
        all.extend(tokens(engine, &text));
        if all.len() >= begin + n_tokens {
            break;
        }
    }
    all[begin..begin + n_tokens].to_vec()
}

/// A copy of the tiny model in a directory of its own, whose files a test may change.
fn tiny_copy(name: &str) -> PathBuf {
    let directory = scratch(name);
    let source = repository("tests/fixtures/qwen35moe-tiny");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(name), directory.join(name)).expect("a copy");
    }
    directory
}

/// An empty directory for a test.
fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("engine-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&directory));
    std::fs::create_dir_all(&directory).expect("a directory");
    directory
}
