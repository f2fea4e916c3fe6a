//! `eval`: what it finds, keeps and draws, and that lossy savings are told wherever they are on.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bench::assert_well_formed;
use crate::support::{TempDir, error, fixture, json, output, stdout, text};

/// What `eval` finds in a run, all but times and reads.
fn without_times(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("it was written");
    let mut value: Value = serde_json::from_str(&text).expect("it is JSON");
    value["facts"]["date"].take();
    value["facts"]["expert_slot_bytes"].take();
    for part in ["text_cost", "decode_cost"] {
        value["summary"][part].take();
    }
    for list in ["documents", "cases"] {
        for unit in value[list].as_array_mut().expect("a list") {
            unit["cost"]["seconds"].take();
            unit["cost"]["read_bytes"].take();
        }
    }
    value
}

#[test]
fn a_model_is_evaluated_compared_and_drawn() {
    let directory = TempDir::new();
    let path = |name: &str| directory.path().join(name);
    let (texts, requests) =
        (fixture("demo-eval/skill.jsonl"), fixture("demo-eval/tool_calls.jsonl"));
    let plain = path("plain.txt");
    fs::write(&plain, "Once upon a time there was a little mouse. ".repeat(4)).expect("a file");
    let (first, second, reference) = (path("a.json"), path("b.json"), path("kept"));
    let common = ["eval", "demo", "--text", text(&texts), text(&plain), "--limit", "2"];
    let against = ["--against", "demo", "--keep-reference", text(&reference)];
    let out = ["--tools", text(&requests), "--out", text(&first)];
    let table = stdout(&[&common[..], &against, &out].concat());
    for words in ["skill", "plain", "mean", "same best token", "constrained", "experts used"] {
        assert!(table.contains(words), "{words} is in the table:\n{table}");
    }
    assert!(reference.exists() && !path("a.json.progress").exists(), "{:?}", directory.path());
    let results = without_times(&first);
    assert_eq!(results["schema"], "flash-moe-eval/1");
    assert_eq!(results["facts"]["lossy"], Value::Null);
    let mean = &results["summary"]["texts"][2];
    assert_eq!((&mean["source"], &mean["documents"]), (&json!("mean"), &json!(3)));
    let close = mean["compared"]["divergence"]["value"].as_f64().expect("a number");
    assert!(close > 0.0 && close < 0.01, "eight bits differ a little: {close}");
    let constrained = &results["summary"]["calls"][1];
    assert_eq!(constrained["way"], "constrained");
    assert_eq!(constrained["valid"]["value"], 1.0);

    let whole = json(&[&common[..], &["--against", text(&reference)]].concat());
    assert_eq!(whole["summary"]["texts"], results["summary"]["texts"], "the file serves as well");

    let saving = ["--experts-per-token", "2", "--out", text(&second)];
    let kept = ["--against", text(&reference)];
    let table = stdout(&[&common[..], &kept, &saving].concat());
    assert!(table.contains("demo (experts-per-token=2)"), "{table}");
    let front = path("front.svg");
    let compare = ["eval", "--compare", text(&first), text(&second), "--plot", text(&front)];
    let both = json(&compare);
    let ratio = &both["runs"][1]["beside_the_first"]["perplexity_ratio"];
    assert!(ratio["value"].as_f64().is_some_and(|ratio| ratio > 1.0), "{ratio}");
    let table = stdout(&compare);
    assert!(table.contains("demo (experts-per-token=2)"), "{table}");
    let svg = fs::read_to_string(&front).expect("the plot was written");
    assert_well_formed(&svg);
    assert!(svg.contains("experts-per-token=2"), "{svg}");
}

#[test]
fn an_interrupted_evaluation_goes_on() {
    let directory = TempDir::new();
    let path = |name: &str| directory.path().join(name);
    let texts = fixture("demo-eval/skill.jsonl");
    let run = |out: &Path| {
        output(&["eval", "demo", "--text", text(&texts), "--limit", "3", "--out", text(out)])
    };
    let (whole, resumed, locked) = (path("whole.json"), path("resumed.json"), path("no/file.json"));
    assert!(run(&whole).status.success());
    // A directory where the results should go keeps the progress.
    fs::create_dir(&resumed).expect("a directory");
    assert!(!run(&resumed).status.success());
    let progress = path("resumed.json.progress");
    let text_of = fs::read_to_string(&progress).expect("it is kept");
    assert_eq!(text_of.lines().count(), 4, "{text_of}");
    let second = text_of.match_indices('\n').nth(1).expect("four lines").0;
    fs::write(&progress, &text_of[..second + 30]).expect("it can be cut");
    fs::remove_dir(&resumed).expect("it is empty");
    assert!(run(&resumed).status.success());
    assert!(!progress.exists());
    assert_eq!(without_times(&resumed), without_times(&whole));
    let message = String::from_utf8_lossy(&run(&locked).stderr).into_owned();
    assert!(message.contains("file.json.progress"), "{message}");
}

#[test]
fn lossy_savings_are_told_and_verify_refuses_them() {
    let run = ["run", "demo", "Hello", "-n", "4", "--greedy"];
    let faithful = json(&run);
    assert_eq!(faithful["lossy"], Value::Null);
    let drop = [&run[..], &["--expert-drop", "0.1"]].concat();
    assert_eq!(json(&drop)["lossy"], "expert-drop=0.1");
    let told = String::from_utf8_lossy(&output(&drop).stderr).into_owned();
    assert!(told.contains("lossy: expert-drop=0.1"), "{told}");
    // As many experts as the model uses are no saving.
    let same = json(&[&run[..], &["--experts-per-token", "6"]].concat());
    assert_eq!((&same["lossy"], &same["tokens"]), (&Value::Null, &faithful["tokens"]));

    let directory = TempDir::new();
    let twin = directory.path().join("twin");
    stdout(&["quantize", "demo", text(&twin), "--recipe", "experts-2bit", "--method", "round"]);
    let twins = ["--twin", text(&twin), "--twin-share", "0.1", "--expert-cache", "2M"];
    let with_twin = [&run[..], &twins].concat();
    assert_eq!(json(&with_twin)["lossy"], "twin-share=0.1");
    let told = String::from_utf8_lossy(&output(&with_twin).stderr).into_owned();
    assert!(told.contains("lossy: twin-share=0.1"), "{told}");
    assert!(json(&with_twin)["timing"]["decode"]["twin_uses"].as_u64() > Some(0));
    let refused = output(&with_twin[..with_twin.len() - 4]);
    assert!(!refused.status.success(), "a twin needs a share");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--twin-share"));

    let tiny = fixture("qwen35moe-tiny");
    let refused = error(&["verify", text(&tiny), "--expert-drop", "0.1"]);
    assert!(refused.contains("faithful"), "{refused}");
    assert!(error(&["run", "demo", "Hello", "--expert-drop", "1.5"]).contains("0 to 1"));
    assert!(error(&["run", "demo", "Hello", "--experts-per-token", "9"]).contains("6 experts"));
    assert!(error(&["eval", "demo"]).contains("--text"));
}
