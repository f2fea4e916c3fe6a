//! `run --trace-routing` and `cache-sim`: routing is recorded, and policies are compared on it.

use std::fs;

use crate::support::{TempDir, error, fixture, json, stdout, text};

#[test]
fn policies_are_compared_on_recorded_routing() {
    let directory = TempDir::new();
    let trace = directory.path().join("trace.txt");
    let model = fixture("qwen35moe-tiny");
    let run = ["run", text(&model), "once upon", "--raw", "--tokens", "24", "--ignore-eos"];
    stdout(&[&run, &["--trace-routing", text(&trace)][..]].concat());
    let recorded = fs::read_to_string(&trace).expect("the trace was written");
    assert!(recorded.starts_with("flash-moe routing 1\nslot_bytes "), "{recorded}");

    let report = json(&["cache-sim", text(&trace), "--slots", "3,8", "--half-life", "1"]);
    let sizes = report["sizes"].as_array().expect("two sizes");
    assert_eq!(sizes.len(), 2);
    for size in sizes {
        let rate = |policy: &str| size["policies"][policy]["hit_rate"].as_f64().expect("a rate");
        let best = rate("belady");
        for policy in ["lru", "lfu", "clock", "frecency", "frecency 1"] {
            assert!((0.0..=best).contains(&rate(policy)), "{policy}: {report:#}");
        }
    }
    let table = stdout(&["cache-sim", text(&trace), "--sizes", "1M", "--skip", "2"]);
    assert!(table.contains("belady") && table.contains(" %"), "{table}");

    fs::write(&trace, recorded.replace("routing 1", "routing 9")).expect("it can be written");
    assert!(error(&["cache-sim", text(&trace)]).contains("trace.txt"));
    assert!(error(&["cache-sim", "nowhere.txt"]).contains("nowhere.txt"));
}
