//! `routing`: the same numbers from a model and from what it recorded, a page that needs nothing else.

use std::fs;

use serde_json::Value;

use crate::support::{TempDir, error, json, stdout, text};

const TEXT: &str = "Once upon a time, there was a little girl who had a red ball. She lost it in the \
                    park, and a dog found it. The dog was happy & <b>brave</b>.";

#[test]
fn a_model_and_its_recorded_routing_tell_the_same() {
    let directory = TempDir::new();
    let [file, trace, page] =
        ["a <story>.txt", "trace.txt", "page.html"].map(|name| directory.path().join(name));
    fs::write(&file, TEXT).expect("it can be written");
    let ask = ["routing", "demo", "--text", text(&file), "--rank", "4", "--memory", "1G"];
    let model = json(&ask);
    // One token a pass, as `routing` tells tokens apart by itself.
    let run =
        ["run", "demo", TEXT, "--raw", "--tokens", "1", "--ignore-eos", "--prompt-chunk", "1"];
    stdout(&[&run[..], &["--trace-routing", text(&trace)]].concat());
    let recorded = json(&["routing", "--trace", text(&trace)]);
    for part in ["layers", "coverage", "used_within_tokens", "reuse_distance", "caches", "passes"] {
        assert_eq!(model[part], recorded[part], "{part}");
    }
    assert!(recorded["look_ahead"].is_null() && recorded["memory"][0]["memory"].is_null());

    let strides = model["look_ahead"]["strides"].as_array().expect("a list");
    let right: Vec<f64> = strides.iter().filter_map(|stride| stride["right"].as_f64()).collect();
    assert!(right.len() == 3 && right[0] > right[1] && right[1] > right[2], "{right:?}");
    let by_layer = strides[1]["by_layer"].as_array().expect("a list");
    assert!(by_layer[0].is_null() && by_layer[1].is_number(), "nothing is two before the first");
    let read_ahead = model["look_ahead"]["read_ahead"].as_array().expect("a list");
    for read in read_ahead {
        assert!(read["useful"].as_u64() <= read["misses"].as_u64(), "{read}");
    }
    let rates = |policy: &str| -> Vec<f64> {
        let sizes = model["memory"].as_array().expect("a list").iter();
        sizes.map(|size| size["policies"][policy]["hit_rate"].as_f64().expect("a rate")).collect()
    };
    let (ours, best) = (rates("frecency"), rates("belady"));
    assert!(ours.len() >= 4 && ours.iter().zip(&best).all(|(ours, best)| ours <= best));
    assert!(ours.windows(2).all(|pair| pair[0] <= pair[1] + 0.02), "more memory: {ours:?}");

    let again = json(&[&ask[..], &["--report", text(&page)]].concat());
    let without_memory = |mut value: Value| {
        // Sizes of memory depend on what the program takes at the time.
        value["memory"] = Value::Null;
        value["findings"] = Value::Null;
        value
    };
    assert_eq!(without_memory(model), without_memory(again), "the same numbers every time");
    let page = fs::read_to_string(&page).expect("the page was written");
    assert!(page.contains("Guessing the next layers") && page.contains("a &lt;story&gt;.txt"));
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}: the page has all that it needs");
    }
}

#[test]
fn a_report_stays_until_there_is_another() {
    let directory = TempDir::new();
    let report = directory.path().join("report.html");
    fs::write(&report, "an older one").expect("it can be written");
    let args = ["routing", "--trace", "/no/such/trace", "--report", text(&report)];
    assert!(error(&args).contains("/no/such/trace"));
    assert_eq!(fs::read_to_string(&report).expect("it is there"), "an older one");
}

#[test]
fn what_cannot_be_analysed_is_said() {
    let directory = TempDir::new();
    let file = directory.path().join("empty.txt");
    fs::write(&file, "").expect("it can be written");
    assert!(error(&["routing", "demo", "--text", text(&file)]).contains("has no text"));
    assert!(error(&["routing", "demo", "--text", "nowhere.txt"]).contains("nowhere.txt"));
    assert!(error(&["routing", "--trace", text(&file)]).contains("empty.txt"));
    fs::write(&file, "flash-moe routing 1\nslot_bytes 1\nexperts 4\n").expect("it can be written");
    assert!(error(&["routing", "--trace", text(&file)]).contains("no use of an expert"));
    fs::write(&file, "one word").expect("it can be written");
    let short = stdout(&["routing", "demo", "--text", text(&file), "--memory", "1G"]);
    assert!(short.contains("--report FILE.html"), "{short}");
}
