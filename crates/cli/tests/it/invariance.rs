//! The same bytes come out at any budget, thread count, prompt chunk, reader and restart.

use std::fs;

use serde_json::Value;

use crate::support::{TempDir, fixture, json, stdout, text};

/// Ways to run that must leave no trace in the output. The first is the one compared with; each is a
/// process of its own, so every comparison is also one across a restart.
const WAYS: [&[&str]; 14] = [
    &["--threads", "1", "--prompt-chunk", "512"],
    &["--threads", "1", "--prompt-chunk", "512"],
    &["--threads", "2", "--prompt-chunk", "512"],
    &["--threads", "3", "--prompt-chunk", "64"],
    &["--threads", "2", "--prompt-chunk", "7"],
    &["--threads", "1", "--prompt-chunk", "1"],
    &["--threads", "2", "--prompt-chunk", "64", "--expert-cache", "1"],
    &["--threads", "2", "--prompt-chunk", "7", "--expert-cache", "1M", "--io-threads", "1"],
    &["--threads", "2", "--prompt-chunk", "512", "--buffered-io"],
    &["--threads", "2", "--expert-cache", "1M", "--reader", "threads"],
    &["--threads", "1", "--expert-cache", "1M", "--reader", "uring"],
    &["--threads", "2", "--expert-cache", "1M", "--look-ahead", "on"],
    &["--threads", "2", "--prompt-chunk", "64", "--expert-cache", "1", "--look-ahead", "on"],
    &["--threads", "2", "--prompt-chunk", "7", "--expert-cache", "1M", "--look-ahead", "off"],
];

#[test]
fn fixtures_give_the_same_bytes() {
    let names = [
        "qwen35moe-tiny",
        "qwen35moe-tiny-mlx-4bit",
        "qwen35moe-mini-mlx-8bit",
        "qwen3next-tiny",
        "qwen3moe-tiny",
        "gguf/qwen35moe-k256-q4_k_m.gguf",
    ];
    for name in names {
        let (directory, out) = (fixture(name), TempDir::new());
        let dumps = WAYS.iter().enumerate().map(|(index, way)| {
            let dump = out.path().join(format!("{index}.safetensors"));
            stdout(&[&["verify", text(&directory), "--dump", text(&dump)], *way].concat());
            fs::read(dump).expect("the dump was written")
        });
        let dumps: Vec<_> = dumps.collect();
        for (dump, way) in dumps.iter().zip(WAYS) {
            assert!(*dump == dumps[0], "{name} differs with {way:?}");
        }
    }
}

#[test]
fn the_demo_model_gives_the_same_answer() {
    let ask = |way: &[&str]| {
        let fixed =
            ["run", "Tell me about the sea.", "--tokens", "48", "--seed", "5", "--logprobs", "3"];
        let answer = json(&[&fixed, way].concat());
        assert!(answer["tokens"].as_array().is_some_and(|tokens| tokens.len() >= 8), "{answer:#}");
        (answer["text"].clone(), answer["tokens"].clone(), answer["logprobs"].clone())
    };
    let first = ask(WAYS[0]);
    for way in &WAYS[1..] {
        assert!(ask(way) == first, "the answer differs with {way:?}");
    }
    // The least budget that can run, which the refusal of a smaller one names.
    let refused: Value =
        serde_json::from_str(&stdout(&["inspect", "demo", "--memory", "1M", "--json"]))
            .expect("inspect prints JSON");
    let least = refused["memory"]["needed_bytes"].as_u64().expect("the least budget is named");
    // The commands do not have the same parts of the program in memory.
    let least = (least + (4 << 20)).to_string();
    assert!(ask(&["--memory", &least]) == first, "the answer differs at the least budget");
    assert!(ask(&["--memory", "2G"]) == first, "the answer differs when everything fits");
}
