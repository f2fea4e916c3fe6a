//! `synth`: a synthetic checkpoint runs like a real one.

use std::fs;
use std::path::Path;

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

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory can be listed");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect()
}

#[cfg(unix)]
#[test]
fn what_the_drive_has_no_room_for_is_not_begun() {
    let parent = TempDir::new();
    let out = parent.path().join("huge");
    let many = "--preset 397b --layers 1000 --experts 4096 --vocab 512";
    for format in ["mlx", "gguf"] {
        let options: Vec<&str> = many.split(' ').chain(["--format", format]).collect();
        let message = error(&[&["synth"], &options[..], &[text(&out)]].concat());
        assert!(message.contains("bytes, but its file system has"), "{message}");
        assert!(message.contains("hint: make room"), "{message}");
    }
    assert_eq!(names(parent.path()), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_completed_leaves_nothing() {
    let parent = TempDir::new();
    for (format, name) in [("mlx", "tiny"), ("gguf", "tiny.gguf")] {
        // What a run that was killed has left.
        fs::write(parent.path().join(format!("{name}.partial")), "").expect("a file");
        // Files end at a megabyte or less, like on a drive that is full.
        let output = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$@\"", "sh"])
            .arg(crate::support::flash_moe().get_program())
            .args(["synth", "--preset", "tiny", "--format", format])
            .arg(parent.path().join(name))
            .output()
            .expect("the shell starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(".partial"), "it names the file: {message}");
        assert_eq!(names(parent.path()), [""; 0], "after {message}");
    }
}
