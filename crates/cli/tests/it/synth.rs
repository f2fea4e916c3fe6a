//! `synth`: a synthetic checkpoint runs like a real one.

use crate::support::{TempDir, error, json, stdout, text};

#[test]
fn a_synthetic_checkpoint_can_be_inspected_and_run() {
    let parent = TempDir::new();
    let out = parent.path().join("tiny");
    for bits in ["4", "3"] {
        let out = out.with_extension(bits);
        stdout(&["synth", "--preset", "tiny", "--bits", bits, text(&out)]);
        let report = json(&["inspect", text(&out)]);
        assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report:#}");
        assert_eq!(report["unknown_tensors"].as_array().map(Vec::len), Some(0), "{report:#}");
        let answer = json(&["run", text(&out), "hello", "--tokens", "12", "--expert-cache", "1"]);
        assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(12), "{answer:#}");
    }
    for quant in ["q4_k", "q4_0", "q8_0"] {
        let out = parent.path().join(format!("{quant}.gguf"));
        let args = ["synth", "--preset", "tiny", "--format", "gguf", "--quant", quant];
        stdout(&[&args, &[text(&out)][..]].concat());
        let report = json(&["inspect", text(&out)]);
        assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report:#}");
        assert_eq!(report["unknown_tensors"].as_array().map(Vec::len), Some(0), "{report:#}");
        let answer = json(&["run", text(&out), "hello", "--tokens", "12", "--expert-cache", "1"]);
        assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(12), "{answer:#}");
    }
    let message = error(&["synth", "--preset", "tiny", text(&out.with_extension("4"))]);
    assert!(message.contains("tiny.4"), "an existing directory is not written over: {message}");
}
