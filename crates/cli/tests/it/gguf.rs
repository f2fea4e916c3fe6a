//! GGUF files: whole, split, in a directory, damaged.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{TempDir, error, fixture, json, output, stdout, text};

const WHOLE: &str = "gguf/qwen35moe-mini-q8_0.gguf";

/// A header taken apart far enough to be put together otherwise.
struct Header {
    /// Metadata entries as they are.
    metadata: Vec<u8>,
    n_metadata: u64,
    /// Each tensor's name and type, and its data.
    tensors: Vec<(Vec<u8>, Vec<u8>)>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The end of a metadata value of a kind that begins at `at`.
fn value_end(bytes: &[u8], at: usize, kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        8 => at + 8 + number(bytes, at) as usize,
        9 => {
            let kind = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            (0..number(bytes, at + 4)).fold(at + 12, |at, _| value_end(bytes, at, kind))
        }
        _ => at + 8,
    }
}

fn take_apart(bytes: &[u8]) -> Header {
    let (n_tensors, n_metadata) = (number(bytes, 8), number(bytes, 16));
    let mut at = 24;
    for _ in 0..n_metadata {
        at += 8 + number(bytes, at) as usize;
        let kind = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        at = value_end(bytes, at + 4, kind);
    }
    let metadata = bytes[24..at].to_vec();
    let mut infos = Vec::new();
    for _ in 0..n_tensors {
        let begin = at;
        at += 8 + number(bytes, at) as usize;
        let n_dimensions = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        at += 4 + 8 * n_dimensions as usize + 4;
        infos.push((bytes[begin..at].to_vec(), number(bytes, at) as usize));
        at += 8;
    }
    let data = at.next_multiple_of(32);
    let mut order: Vec<usize> = infos.iter().map(|(_, offset)| *offset).collect();
    order.sort_unstable();
    let tensors = infos.into_iter().map(|(info, offset)| {
        let next = order.iter().find(|&&other| other > offset);
        let end = next.map_or(bytes.len(), |next| data + next);
        (info, bytes[data + offset..end].to_vec())
    });
    Header { metadata, n_metadata, tensors: tensors.collect() }
}

fn put_together(metadata: &[u8], n_metadata: u64, tensors: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(n_metadata.to_le_bytes());
    bytes.extend(metadata);
    let mut offset = 0;
    for (info, data) in tensors {
        bytes.extend(info);
        bytes.extend((offset as u64).to_le_bytes());
        offset = (offset + data.len()).next_multiple_of(32);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    for (_, data) in tensors {
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
    }
    bytes
}

/// Writes the fixture as two files.
fn split(directory: &Path) -> [PathBuf; 2] {
    let bytes = fs::read(fixture(WHOLE)).expect("the fixture can be read");
    let Header { metadata, n_metadata, tensors } = take_apart(&bytes);
    let entry = |key: &str, value: u16| {
        let mut entry = (key.len() as u64).to_le_bytes().to_vec();
        entry.extend(key.as_bytes());
        entry.extend(2_u32.to_le_bytes());
        entry.extend(value.to_le_bytes());
        entry
    };
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let paths = [1, 2].map(|part| directory.join(format!("model-0000{part}-of-00002.gguf")));
    let more = [metadata, entry("split.no", 0), entry("split.count", 2)].concat();
    fs::write(&paths[0], put_together(&more, n_metadata + 2, first)).expect("it can be written");
    let little = [entry("split.no", 1), entry("split.count", 2)].concat();
    fs::write(&paths[1], put_together(&little, 2, second)).expect("it can be written");
    paths
}

#[test]
fn a_split_file_is_the_same_model() {
    let directory = TempDir::new();
    let [first, second] = split(directory.path());
    let golden = fixture(WHOLE).with_extension("golden.safetensors");
    for model in [first.as_path(), directory.path()] {
        let report = json(&["verify", text(model), "--golden", text(&golden)]);
        assert_eq!(report["passes"], true, "{report:#}");
    }
    let message = error(&["verify", text(&second), "--golden", text(&golden)]);
    assert!(message.contains("-00001-of-00002.gguf"), "the first is asked for: {message}");
    fs::remove_file(&second).expect("it can be removed");
    let message = error(&["verify", text(&first), "--golden", text(&golden)]);
    assert!(message.contains("model-00002-of-00002.gguf"), "{message}");
}

#[test]
fn a_file_has_its_own_tokenizer_and_template() {
    let whole = fixture(WHOLE);
    let answer = json(&["run", text(&whole), "hello", "--tokens", "4", "--think", "off"]);
    let same = json(&[
        "run",
        text(&fixture("qwen35moe-tiny")),
        "hello",
        "--tokens",
        "4",
        "--think",
        "off",
    ]);
    assert_eq!(
        answer["prompt_tokens"], same["prompt_tokens"],
        "tokenizer and template are the same"
    );
    let report = json(&["inspect", text(&whole)]);
    assert_eq!(report["unknown_tensors"].as_array().map(Vec::len), Some(0), "{report:#}");
    assert_eq!(report["mtp_tensors"].as_array().map(Vec::len), Some(20), "the head is known");
    assert!(stdout(&["inspect", text(&whole)]).contains("Q8_0"));
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    let bytes = fs::read(fixture(WHOLE)).expect("the fixture can be read");
    let directory = TempDir::new();
    let path = directory.path().join("model.gguf");
    for keep in (0..bytes.len()).step_by(bytes.len() / 40) {
        fs::write(&path, &bytes[..keep]).expect("it can be written");
        let message = error(&["inspect", text(&path)]);
        assert!(message.contains("model.gguf"), "cut at {keep}: {message}");
    }
    for place in (0..12_000).step_by(211) {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&path, bytes).expect("it can be written");
        let output = output(&["inspect", text(&path)]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "flip at {place}: {message}");
        assert!(!message.contains("panicked"), "flip at {place}: {message}");
    }
}
