//! Integration tests of evaluations: the demo model on its held-out texts and requests.

mod lossy;
mod perplexity;
mod precision;
mod resuming;
mod tool_calls;
mod two_bit;

use std::path::{Path, PathBuf};

use engine::{Engine, EngineOptions};
use eval::Document;

/// A path in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A held-out file.
fn held_out(name: &str) -> PathBuf {
    repository("tests/fixtures/demo-eval").join(name)
}

/// The demo model.
fn demo(options: EngineOptions) -> Engine {
    let options = EngineOptions { memory: Some(1 << 30), ..options };
    Engine::open(&repository("models/demo"), &options).expect("the demo model opens")
}

/// The first documents of a held-out source.
fn documents(engine: &Engine, source: &str, n_documents: usize) -> Vec<Document> {
    let tokenizer = engine.tokenizer().expect("the model has a tokenizer");
    let path = held_out(&format!("{source}.jsonl"));
    let mut all = eval::read_texts(&path, tokenizer, eval::DEFAULT_WINDOW).expect("it is sound");
    all.truncate(n_documents);
    all
}

/// A file in a directory of the test run; it is not there yet.
fn scratch(name: &str) -> PathBuf {
    let name = format!("eval-{name}-{}", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(std::fs::remove_file(&path));
    path
}
