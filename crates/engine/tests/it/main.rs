//! Integration tests of the engine: sessions, batches, generation, and the quality of the demo model.

mod constraint;
mod generation;
mod perplexity;
mod precision;
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
