//! Damaged and unsuitable input: each is a clear error that names the file or tensor, never a panic.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;

use crate::support::{TempDir, error, fixture, flash_moe, json, output, text};

/// Runs a golden comparison, which loads everything and computes; it must refuse, naming all `words`.
#[track_caller]
fn refused(directory: &Path, words: &[&str]) {
    let golden = fixture("qwen35moe-mini-mlx-8bit").join("golden.safetensors");
    let message = error(&["verify", text(directory), "--golden", text(&golden)]);
    for word in words {
        assert!(message.contains(word), "the message names {word}:\n{message}");
    }
}

/// Offset in a safetensors file of a tensor's first byte, and its length.
fn tensor_range(path: &Path, name: &str) -> (u64, u64) {
    let bytes = fs::read(path).expect("the file can be read");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + header_len as usize]).expect("the header is JSON");
    let offset = |index: usize| header[name]["data_offsets"][index].as_u64().expect("an offset");
    (8 + header_len + offset(0), offset(1) - offset(0))
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("the file can be opened");
    file.seek(SeekFrom::Start(offset)).expect("the file can be sought");
    file.write_all(bytes).expect("the file can be written");
}

#[test]
fn what_is_not_a_checkpoint_is_named() {
    let empty = TempDir::new();
    refused(empty.path(), &["config.json"]);
    refused(Path::new("no/such/directory"), &["no/such/directory"]);
    fs::write(
        empty.path().join("config.json"),
        r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama"}"#,
    )
    .expect("a file can be written");
    refused(empty.path(), &["llama", "Qwen3.5"]);
}

#[test]
fn truncated_files_are_refused_before_work_starts() {
    for keep in [0, 7, 8, 1000, 40_000, 200_000, 259_063] {
        let copy = TempDir::copy_of("qwen35moe-mini-mlx-8bit");
        let path = copy.path().join("model.safetensors");
        let file = OpenOptions::new().write(true).open(&path).expect("the copy can be opened");
        file.set_len(keep).expect("the copy can be cut");
        refused(copy.path(), &["model.safetensors"]);
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    for name in ["model.safetensors", "config.json", "generation_config.json"] {
        let copy = TempDir::copy_of("qwen35moe-mini-mlx-8bit");
        let path = copy.path().join(name);
        drop(fs::remove_file(&path));
        fs::create_dir(&path).expect("a directory can be made in its place");
        refused(copy.path(), &[name]);
    }
}

#[test]
fn unknown_tensors_are_named_when_a_model_runs() {
    let copy = TempDir::copy_of("qwen35moe-tiny");
    let path = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path).expect("the fixture can be read");
    // A tensor of the prediction head gets a name that nobody knows.
    let at = bytes.windows(8).position(|window| window == b"\"mtp.fc.").expect("it is there");
    bytes[at + 1..at + 4].copy_from_slice(b"odd");
    fs::write(&path, bytes).expect("the copy can be written");
    let output = output(&["run", text(copy.path()), "a", "--tokens", "1"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    assert!(message.contains("warning") && message.contains("odd.fc.weight"), "{message}");
}

#[test]
fn missing_shards_and_wrong_indexes_are_named() {
    let copy = TempDir::copy_of("qwen35moe-tiny-mlx-4bit");
    let shard = copy.path().join("model-00002-of-00002.safetensors");
    fs::remove_file(&shard).expect("the shard can be removed");
    refused(copy.path(), &["model-00002-of-00002.safetensors"]);

    let copy = TempDir::copy_of("qwen35moe-tiny-mlx-4bit");
    let index = copy.path().join("model.safetensors.index.json");
    let json = fs::read_to_string(&index).expect("the index can be read");
    fs::write(&index, json.replacen("model-00001", "model-00002", 1)).expect("and written");
    refused(copy.path(), &["model-00002-of-00002.safetensors"]);
    fs::write(&index, "{").expect("the index can be written");
    refused(copy.path(), &["model.safetensors.index.json"]);
}

#[test]
fn a_scale_that_is_not_a_number_is_found_wherever_it_is() {
    let nan = 0x7fc0_u16.to_le_bytes();
    for (tensor, words) in [
        (
            "language_model.model.layers.1.self_attn.q_proj.scales",
            &["layers.1.self_attn.q_proj"][..],
        ),
        ("language_model.model.layers.0.mlp.switch_mlp.up_proj.scales", &["expert 0", "layer 0"]),
        ("language_model.model.layers.1.mlp.switch_mlp.down_proj.biases", &["expert 0", "layer 1"]),
        ("language_model.model.norm.weight", &["norm.weight"]),
    ] {
        let copy = TempDir::copy_of("qwen35moe-mini-mlx-8bit");
        let path = copy.path().join("model.safetensors");
        let (offset, _) = tensor_range(&path, tensor);
        overwrite(&path, offset, &nan);
        refused(copy.path(), words);
    }
}

#[test]
fn weights_that_are_not_numbers_do_not_become_output() {
    let copy = TempDir::copy_of("qwen35moe-tiny");
    let path = copy.path().join("model.safetensors");
    let (offset, _) = tensor_range(&path, "lm_head.weight");
    overwrite(&path, offset, &0x7fc0_u16.to_le_bytes());
    let message = error(&["verify", text(copy.path())]);
    assert!(message.contains("not finite"), "{message}");
}

#[test]
fn wrong_shapes_name_tensor_and_expectation() {
    let copy = TempDir::copy_of("qwen35moe-mini-mlx-8bit");
    let config = copy.path().join("config.json");
    let json = fs::read_to_string(&config).expect("the configuration can be read");
    fs::write(&config, json.replace("\"num_experts\": 4", "\"num_experts\": 5"))
        .expect("and written");
    refused(copy.path(), &["mlp.gate", "5", "4"]);
}

#[test]
fn a_missing_tokenizer_is_named_when_text_is_needed() {
    let directory = fixture("qwen35moe-mini-mlx-8bit");
    let message = error(&["run", text(&directory), "hello"]);
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn flipped_bits_never_panic() {
    let original = fs::read(fixture("qwen35moe-mini-mlx-8bit").join("model.safetensors"))
        .expect("the fixture can be read");
    let copy = TempDir::copy_of("qwen35moe-mini-mlx-8bit");
    let path = copy.path().join("model.safetensors");
    // A prime stride over the header and over the data reaches all kinds of places.
    let places = (0..12_000).step_by(397).chain((12_000..original.len()).step_by(24_989));
    for place in places {
        let mut bytes = original.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&path, bytes).expect("the copy can be written");
        let output = output(&["verify", text(copy.path())]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "flip at {place}: {message}");
        assert!(!message.contains("panicked"), "flip at {place}: {message}");
    }
}

/// The server-like case of one process: a file that shrinks while requests run. The program reads the
/// prompt from a pipe after it has opened its files, which gives the moment to cut one.
#[test]
fn a_file_that_shrinks_while_running_fails_the_request() {
    let parent = TempDir::new();
    let out = parent.path().join("tiny");
    crate::support::stdout(&["synth", "--preset", "tiny", text(&out)]);
    let report = json(&["inspect", text(&out)]);
    assert_eq!(report["files"], 1, "{report:#}");
    // Many tokens, of which the first is printed before the file is cut.
    let mut child = flash_moe()
        .args([
            "run",
            text(&out),
            "x",
            "--tokens",
            "1500",
            "--expert-cache",
            "1",
            "--temperature",
            "5",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdout = child.stdout.take().expect("standard output is a pipe");
    let mut first = [0; 1];
    stdout.read_exact(&mut first).expect("the first text comes");
    let file = OpenOptions::new().write(true).open(out.join("model-00001-of-00001.safetensors"));
    file.expect("the model can be opened").set_len(4096).expect("the model can be cut");
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("the output can be read");
    let output = child.wait_with_output().expect("the program ends");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "the request fails: {message}");
    assert!(message.contains("model-00001-of-00001.safetensors"), "the file is named: {message}");
}
