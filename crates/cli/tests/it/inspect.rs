//! `inspect`: what a checkpoint holds, and what is wrong with it.

use std::fs;

use crate::support::{TempDir, fixture, json, output, stdout, text};

#[test]
fn the_demo_model_is_described() {
    let report = json(&["inspect", "demo"]);
    for (field, value) in [("layers", 8), ("attention_layers", 2), ("experts", 64), ("top_k", 6)] {
        assert_eq!(report[field], value, "{field}");
    }
    // 3 matrices of 64 x 256 weights at 4.5 bits.
    assert_eq!(report["largest_expert_bytes"], 27_648);
    assert_eq!(report["expert_bytes"], 27_648 * 64 * 8);
    assert_eq!(report["expert_bytes_per_token"], 27_648 * 6 * 8);
    assert_eq!(report["unknown_tensors"].as_array().map(Vec::len), Some(0));
    let text = stdout(&["inspect", "demo"]);
    for words in ["affine 4-bit g64", "routed experts", "gated delta net", "budget"] {
        assert!(text.contains(words), "{words} is in:\n{text}");
    }
}

#[test]
fn prediction_tensors_are_known_and_unused() {
    let report = json(&["inspect", text(&fixture("qwen35moe-tiny"))]);
    assert_eq!(report["mtp_tensors"].as_array().map(Vec::len), Some(19));
}

#[test]
fn everything_that_is_missing_is_listed() {
    let copy = TempDir::copy_of("qwen35moe-mini-mlx-8bit");
    let path = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path).expect("the fixture can be read");
    // Two tensors get names that nobody knows; the header keeps its length.
    for name in ["layers.0.mlp.gate.weight", "layers.1.post_attention_layernorm.weight"] {
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes());
        let at = at.expect("the tensor is in the header");
        bytes[at..at + 6].copy_from_slice(b"loyers");
    }
    fs::write(&path, bytes).expect("the copy can be written");
    let output = output(&["inspect", text(copy.path())]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "an incomplete checkpoint is not fine:\n{report}");
    for words in [
        "PROBLEMS",
        "layers.0.mlp.gate.weight",
        "layers.1.post_attention_layernorm.weight",
        "UNKNOWN",
        "loyers.1",
    ] {
        assert!(report.contains(words), "{words} is in:\n{report}");
    }
}
