//! `quantize` and `pack`: what users give and see.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{TempDir, error, fixture, flash_moe, json, stdout, text};

#[test]
fn a_killed_run_leaves_no_checkpoint_and_the_next_one_ends_it() {
    let parent = TempDir::new();
    let (out, whole) = (parent.path().join("out"), parent.path().join("whole"));
    let partial = parent.path().join("out.partial");
    let source = fixture("qwen35moe-tiny");
    let args =
        ["quantize", text(&source), text(&out), "--recipe", "experts-3bit", "--method", "search"];
    let report = json(&[&args[..2], &[text(&whole)], &args[3..]].concat());
    assert_eq!(report["expert_widths"]["3"], 48, "{report:#}");
    let mut child = flash_moe().args(args).stderr(Stdio::null()).spawn().expect("it starts");
    // As soon as there is anything to be left behind.
    let begin = Instant::now();
    while !partial.exists() && !out.exists() && begin.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    child.kill().expect("it can be killed");
    child.wait().expect("it has ended");
    if out.exists() {
        // It was faster than the kill: then it is complete.
        assert!(!partial.exists());
    } else {
        stdout(&args);
    }
    let mut names: Vec<_> = fs::read_dir(&whole)
        .expect("it is there")
        .map(|entry| entry.expect("it can be listed").file_name())
        .collect();
    names.sort();
    for name in names {
        let [ours, theirs] =
            [&out, &whole].map(|path| fs::read(path.join(&name)).expect("it is there"));
        assert!(ours == theirs, "{name:?} is that of a run that was not killed");
    }
    assert!(!partial.exists());
    let message = error(&args);
    assert!(message.contains("exists"), "a result is not written over: {message}");
}

#[test]
fn a_packed_model_says_the_same() {
    let parent = TempDir::new();
    let out = parent.path().join("packed");
    let report = json(&["pack", "demo", text(&out)]);
    assert_eq!(report["left_out_tensors"], 0, "{report:#}");
    let said = |model: &str| {
        let args = ["run", model, "What is 2 plus 3?", "--greedy", "--tokens", "12"];
        json(&args)["text"].clone()
    };
    assert_eq!(said("demo"), said(text(&out)));
}

#[test]
fn recipes_that_make_no_sense_are_refused() {
    let parent = TempDir::new();
    let out = parent.path().join("out");
    let source = fixture("qwen35moe-tiny");
    let refuse = |args: &[&str]| error(&[&["quantize", text(&source), text(&out)], args].concat());
    assert!(refuse(&["--recipe", "7bit"]).contains("experts-2bit"));
    assert!(refuse(&["--router", "4"]).contains("router is 4 bits"));
    assert!(refuse(&["--size", "1M"]).contains("without calibration"));
    assert!(refuse(&["--method", "gptq"]).contains("without calibration"));
    let lines = parent.path().join("lines.jsonl");
    fs::write(&lines, "{\"text\": \"a\"}\n{\"words\": 1}\n").expect("it can be written");
    let message = refuse(&["--calibrate", text(&lines)]);
    assert!(message.contains("lines.jsonl: line 2: neither text nor segments"), "{message}");
    let toml = parent.path().join("recipe.toml");
    fs::write(&toml, "experts = 2\nheads = 4\n").expect("it can be written");
    assert!(refuse(&["--recipe", text(&toml)]).contains("heads"));
    let gguf = fixture("gguf").join("qwen35moe-mini-bf16.gguf");
    assert!(error(&["pack", text(&gguf), text(&out)]).contains("use quantize"));
    assert!(!out.exists());
}
