//! The heat map: a run that begins where the last one ended gives the same answer.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{TempDir, fixture, flash_moe, text};

/// Runs with a cache directory of its own, and gives the answer and what was said beside it.
fn ask(cache: &Path, more: &[&str]) -> (Value, String) {
    let model = fixture("qwen35moe-tiny");
    let mut command = flash_moe();
    command.env_remove("FLASH_MOE_CACHE").env("XDG_CACHE_HOME", cache);
    // Where the system has another place for such files than XDG's.
    command.env("HOME", cache).env("LOCALAPPDATA", cache);
    let fixed = [
        "once upon",
        "--raw",
        "--tokens",
        "24",
        "--ignore-eos",
        "--timing",
        "--json",
        "--memory",
        "1G",
    ];
    command.args(["run", text(&model)]).args(fixed).args(more);
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let answer = serde_json::from_slice(&output.stdout).expect("the output is JSON");
    (answer, said)
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() { files.extend(files_in(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn answers_are_the_same_with_any_heat_map_and_with_none() {
    let directory = TempDir::new();
    let cache = directory.path();
    let (first, said) = ask(cache, &["--heat-map", "off"]);
    assert!(first["heat_map"].is_null() && files_in(cache).is_empty(), "{said}");
    let check = |more: &[&str]| {
        let (answer, said) = ask(cache, more);
        assert!(answer["tokens"] == first["tokens"], "{more:?}: {answer:#}");
        assert_eq!(answer["memory"]["budget_bytes"], first["memory"]["budget_bytes"]);
        (answer, said)
    };

    // None yet.
    let (answer, said) = check(&[]);
    assert!(said.contains("no heat map yet"), "{said}");
    assert_eq!(answer["timing"]["prompt"]["warm_reads"], 0);
    let files = files_in(cache);
    let [file] = files.as_slice() else { panic!("one small file is kept: {files:?}") };
    let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(name.starts_with("heat-"), "{name}");

    // The right one, in all slots, in few and in the fewest, by every reader.
    for more in [
        &[][..],
        &["--expert-cache", "1"],
        &["--expert-cache", "40K", "--reader", "threads"],
        &["--expert-cache", "40K", "--reader", "uring"],
        &["--look-ahead", "off"],
        &["--look-ahead", "on"],
    ] {
        let (answer, said) = check(more);
        assert!(answer["heat_map"]["experts"].as_u64() > Some(0), "{answer:#}");
        assert!(said.contains("heat map of "), "{said}");
    }

    // A damaged one is ignored, said so, and replaced.
    let right = fs::read(file).expect("it is there");
    let mut damaged = right.clone();
    damaged[right.len() / 2] ^= 4;
    for bytes in [&damaged[..], &right[..30], b"", b"something else"] {
        fs::write(file, bytes).expect("it can be written");
        let (answer, said) = check(&[]);
        assert!(answer["heat_map"]["ignored"].is_string(), "{answer:#}");
        assert!(said.contains("heat map ignored") && !said.contains("warning"), "{said}");
        assert_eq!(fs::read(file).expect("it is there").len(), right.len(), "it was replaced");
    }
    assert_eq!(files_in(cache).len(), 1, "nothing else is left behind");

    // What is no heat map is never overwritten, and what cannot be written harms nobody.
    let other = cache.join("precious.txt");
    fs::write(&other, "precious").expect("it can be written");
    let (_, said) = check(&["--heat-map", text(&other)]);
    assert!(said.contains("warning: ") && said.contains("precious.txt"), "{said}");
    assert_eq!(fs::read(&other).expect("it is there"), b"precious");
    let (_, said) = check(&["--heat-map", text(&other.join("below"))]);
    assert!(said.contains("warning: "), "{said}");

    let own = cache.join("own/map");
    check(&["--heat-map", text(&own)]);
    let (answer, _) = check(&["--heat-map", text(&own)]);
    assert!(answer["heat_map"]["experts"].as_u64() > Some(0), "{answer:#}");
}
