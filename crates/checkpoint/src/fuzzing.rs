//! The parsers of untrusted bytes, for the fuzz targets alone.

use std::path::Path;

use crate::config_json::parse_config;
use crate::gguf::{parse_gguf, split_paths};
use crate::gguf_model::Metadata;
use crate::safetensors::parse_header;

/// The header of a safetensors file, of which the first eight bytes are the file's length.
pub fn safetensors_header(bytes: &[u8]) {
    if let Some((len, json)) = bytes.split_first_chunk() {
        let file_len = u64::from_le_bytes(*len);
        if let Ok(header) = parse_header(Path::new("fuzz"), json, file_len) {
            let fits = |end: u64| end <= file_len;
            assert!(header.tensors.iter().all(|tensor| fits(tensor.offset + tensor.len)));
        }
    }
}

/// The header of a GGUF file whose data are never read: directory, configuration, tokenizer.
pub fn gguf(bytes: &[u8]) {
    let (path, file_len) = (Path::new("fuzz-00001-of-00002.gguf"), 1 << 36);
    let Ok(gguf) = parse_gguf(path, bytes, file_len) else { return };
    assert!(gguf.tensors.iter().all(|tensor| tensor.offset + tensor.len <= file_len));
    drop(split_paths(path, &gguf.metadata));
    if let Ok(metadata) = Metadata::new(path, &gguf.metadata) {
        drop(metadata.config(320, true, |_| false));
        drop(metadata.tokenizer_json());
        drop(metadata.generation());
    }
}

/// The contents of `config.json`.
pub fn config(bytes: &[u8]) {
    if let Ok(json) = serde_json::from_slice(bytes) {
        drop(parse_config(Path::new("fuzz"), json));
    }
}
