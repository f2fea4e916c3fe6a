//! `bench`: what it writes, and what it refuses. No time decides anything here.

use std::fs;

use serde_json::Value;

use crate::support::{TempDir, error, json, output, stdout, text};

/// Settings that take a second or two.
const TINY: [&str; 7] = ["--quick", "--tokens", "3", "--warmup", "1", "--prompts", "9"];

/// A number of a JSON object that must be there and positive.
#[track_caller]
fn positive(value: &Value, path: &str) -> f64 {
    let number = value.pointer(path).and_then(Value::as_f64);
    let number = number.unwrap_or_else(|| panic!("{path} is a number in {value:#}"));
    assert!(number > 0.0 && number.is_finite(), "{path} is {number}");
    number
}

#[test]
fn the_demo_model_can_be_measured() {
    let all = json(&[&["bench", "demo", "--budgets", "25%,all"], &TINY[..]].concat());
    assert_eq!(all["schema"], "flash-moe-bench/1");
    for path in [
        "/machine/cores",
        "/model/expert_bytes_per_token",
        "/machine_speeds/memory_bytes_per_second/median",
        "/machine_speeds/drive_bytes_per_second/median",
        "/machine_speeds/drive_read_bytes",
    ] {
        positive(&all, path);
    }
    for path in ["/program/version", "/program/command", "/machine/system", "/date", "/device"] {
        assert!(all.pointer(path).is_some_and(Value::is_string), "{path} is a text: {all:#}");
    }
    let budgets = all["budgets"].as_array().expect("a list of budgets");
    assert_eq!(budgets.len(), 2);
    let share = |budget: &Value| budget["experts_in_memory"].as_f64().expect("a share");
    assert!((0.2..0.26).contains(&share(&budgets[0])), "{:#}", budgets[0]);
    assert!((share(&budgets[1]) - 1.0).abs() < 1e-9, "the demo model fits: {:#}", budgets[1]);
    for budget in budgets {
        let cells = budget["cells"].as_array().expect("a list of measurements");
        let names: Vec<String> = cells
            .iter()
            .map(|cell| format!("{} {} {}", cell["state"], cell["work"], cell["length"]))
            .map(|name| name.replace('"', ""))
            .collect();
        assert_eq!(names, ["cold prompt 9", "cold decode 0", "warm prompt 9", "warm decode 0"]);
        for cell in cells {
            positive(cell, "/tokens_per_second/median");
            let samples = cell["samples"].as_array().expect("a list of samples");
            assert_eq!(samples.len(), 1);
            assert_eq!(cell["state"] == "cold", samples[0]["opening"].is_object(), "{cell:#}");
            if cell["work"] == "decode" {
                positive(cell, "/roofline/tokens_per_second");
                positive(cell, "/roofline/fraction_reached");
                let of = |part: &str| cell["memory_bytes_per_token"][part].as_u64();
                let parts = ["dense", "experts", "states"].map(|part| of(part).expect("bytes"));
                assert_eq!(of("total"), Some(parts.iter().sum()));
                assert_eq!(samples[0]["token_microseconds"].as_array().map(Vec::len), Some(3));
            }
        }
        // With nothing in memory the first experts must be read.
        positive(&cells[0], "/bytes_read_per_token");
    }
    if cfg!(target_os = "linux") {
        assert!(all["cold"]["resident_share_max"].is_number(), "{}", all["cold"]);
    }
}

#[test]
fn a_machine_has_a_checklist() {
    let directory = TempDir::new();
    let path = directory.path().join("report.md");
    let quick = ["--quick", "--tokens", "2", "--warmup", "1"];
    // A verdict may be FAIL on a machine that is busy or odd; the report is written nonetheless.
    let printed = output(&[&["bench", "--report", text(&path)], &quick[..]].concat());
    let printed = String::from_utf8(printed.stdout).expect("it is text");
    assert!(printed.contains("demo decodes on the CPU, warm: "), "{printed}");
    let report = fs::read_to_string(&path).expect("it was written");
    let (_, rest) = report.split_once("```json\n").expect("values");
    let (values, _) = rest.split_once("\n```").expect("an end");
    let values: Value = serde_json::from_str(values).expect("JSON");
    assert_eq!(values["schema"], "flash-moe-checklist/1");
    let checks = values["checks"].as_array().expect("a list");
    let of = |name: &str| checks.iter().filter(|check| check["check"] == name).count();
    assert_eq!((of("CPU reads memory"), of("perplexity, CPU beside exact CPU")), (1, 1));
    for check in checks.iter().filter(|check| check["check"] != "GPU") {
        let name = check["check"].as_str().expect("a name");
        let verdict = check["verdict"].as_str().expect("a verdict");
        if name.starts_with("perplexity") || name.starts_with("same best") {
            assert_eq!(verdict, "pass", "devices agree: {check:#}");
        }
    }
    if let Some(home) = std::env::var_os("HOME").filter(|home| home.len() > 1) {
        let home = home.to_string_lossy().into_owned();
        assert!(!report.contains(&home), "no directory of a person is told");
    }
}

#[test]
fn dense_bytes_are_all_of_the_trunk_but_the_embedding() {
    let inventory = json(&["inspect", "demo"]);
    let all = json(&[&["bench", "demo"], &TINY[..]].concat());
    let decode = all["budgets"][0]["cells"].as_array().expect("cells").iter();
    let cell = decode.into_iter().find(|cell| cell["work"] == "decode").expect("decoding");
    let bytes = &cell["memory_bytes_per_token"];
    let number = |value: &Value| value.as_u64().expect("a number");
    let embedding = number(&inventory["classes"]["embedding"]["bytes"]);
    let row = embedding / number(&inventory["vocab_size"]);
    let trunk = number(&inventory["trunk_bytes"]);
    // A tied head reads the table.
    let tied = inventory["classes"]["head"].is_null();
    let unread = if tied { 0 } else { embedding };
    assert_eq!(number(&bytes["dense"]), trunk - unread + row);
    assert_eq!(bytes["experts"], inventory["expert_bytes_per_token"]);
}

#[test]
fn a_synthetic_model_fills_all_files() {
    let directory = TempDir::new();
    let model = directory.path().join("model & <co>");
    stdout(&["synth", "--preset", "tiny", text(&model)]);
    let path = |name: &str| directory.path().join(name);
    let (markdown, report, trace) = (path("table.md"), path("report.md"), path("trace.json"));
    let plots = path("plots/of/it");
    let args = [
        "bench",
        text(&model),
        "--budgets",
        "50%,80M",
        "--contexts",
        "0,12",
        "--repeats",
        "2",
        "--markdown",
        text(&markdown),
        "--report",
        text(&report),
        "--trace",
        text(&trace),
        "--plot",
        text(&plots),
    ];
    let table = stdout(&[&args, &TINY[..]].concat());
    for words in ["Decoding", "Prompts", "reached", "waiting for drive", "80.0 MiB", "measured 2"] {
        assert!(table.contains(words), "{words} is in the table:\n{table}");
    }
    let read = |path: &std::path::Path| fs::read_to_string(path).expect("the file was written");
    let (markdown, report) = (read(&markdown), read(&report));
    assert!(markdown.contains("| 80.0 MiB |"), "{markdown}");
    assert!(report.contains(&markdown[..markdown.find("## Speeds").unwrap_or(0)]), "{report}");
    assert!(report.contains("flash-moe bench ") && report.contains("| CPU |"), "{report}");
    let values = report.split("```json\n").nth(1).and_then(|rest| rest.split("\n```").next());
    let values: Value = serde_json::from_str(values.expect("the values are there")).expect("JSON");
    assert_eq!(values["settings"]["contexts"], serde_json::json!([0, 12]));

    let trace: Value = serde_json::from_str(&read(&trace)).expect("the trace is JSON");
    let events = trace["traceEvents"].as_array().expect("a list of events");
    let passes = events.iter().filter(|event| event["cat"] == "pass").count();
    assert_eq!(passes, 3, "only the tokens after the measurements are traced");

    for plot in ["retention.svg", "phases.svg"] {
        let svg = read(&plots.join(plot));
        assert_well_formed(&svg);
        assert!(svg.contains("model &amp; &lt;co&gt;"), "the title names the model: {svg}");
    }
}

/// Looks that tags are closed in order, attributes quoted, and texts escaped.
pub fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some(begin) = rest.find('<') {
        let between = &rest[..begin];
        assert!(!between.contains('>'), "{between:?} is escaped");
        for entity in between.split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;"];
            assert!(known.iter().any(|known| entity.starts_with(known)), "&{entity} is known");
        }
        let end = begin + rest[begin..].find('>').expect("a tag ends");
        let tag = &rest[begin + 1..end];
        assert!(tag.matches('"').count().is_multiple_of(2), "quotes of {tag:?} come in pairs");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{tag} closes what was open"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap_or(tag)),
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && svg.trim_end().ends_with("</svg>"), "{open:?} are closed");
    for bad in ["NaN", "inf\"", "=\"-"] {
        assert!(!svg.contains(bad), "there is no {bad} in {svg}");
    }
}

#[test]
fn senseless_measurements_are_refused_before_any_work() {
    for (args, words) in [
        (&["--memory", "8G"][..], &["--budgets"][..]),
        (&["--budgets", "25%,1M"], &["1.0 MiB", "needs at least"]),
        (&["--contexts", "100000"], &["100", "4096"]),
        (&["--context", "100", "--contexts", "98"], &["--context 100", "102"]),
        (&["--markdown", "/missing/file.md"], &["/missing/file.md"]),
        (&["--trace", "/missing/file.json"], &["/missing/file.json"]),
    ] {
        let message = error(
            &[&["bench", "demo", "--quick", "--tokens", "3", "--warmup", "1"], args].concat(),
        );
        for word in words {
            assert!(message.contains(word), "{args:?} names {word}:\n{message}");
        }
    }
    assert!(error(&["bench", "models/missing"]).contains("models/missing"));
    for args in [
        &["--contexts", "0,x"][..],
        &["--budgets", "0%"],
        &["--budgets", "much"],
        &["--tokens", "0"],
        &["--repeats", "0"],
    ] {
        let output = output(&[&["bench", "demo"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?} is no command line");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(args[0]), "{args:?} is named:\n{message}");
    }
}
