//! Texts to predict, and which of their tokens count.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use tokenizer::Tokenizer;

use crate::error::Error;

/// Most tokens of a sequence that starts afresh, where the caller does not say.
pub const DEFAULT_WINDOW: usize = 2048;

/// The class of counted segments.
const COUNTED: u8 = 1;
/// What ends a document of segments.
const END: &str = "<|endoftext|>";

/// A sequence that starts afresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What kind of text it is; numbers are given for each source.
    pub source: String,
    /// All of its tokens, at least two.
    pub tokens: Vec<u32>,
    /// For each token whether its prediction counts; never the first's, which nothing predicts.
    pub counted: Vec<bool>,
}

impl Document {
    /// Tokens whose predictions count.
    pub fn n_counted(&self) -> usize {
        self.counted.iter().filter(|&&counted| counted).count()
    }
}

/// A line of a JSONL file: either a whole text, or segments with classes.
#[derive(Deserialize)]
struct Line {
    source: Option<String>,
    text: Option<String>,
    segments: Option<Vec<(String, u8)>>,
}

/// Reads texts. A file whose name ends in `.jsonl` has a document a line, `{"text": ..}` or
/// `{"segments": [[text, class], ..]}`, of which class 1 counts and to which the end of text is added, and
/// optionally `"source"`; any other file is one plain text. Longer sequences than `window` tokens are cut
/// into several.
///
/// Control tokens are read as such in segments only.
pub fn read_texts(
    path: &Path,
    tokenizer: &Tokenizer,
    window: usize,
) -> Result<Vec<Document>, Error> {
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "is not UTF-8"))?;
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into());
    let mut documents = Vec::new();
    let mut add = |source: &str, tokens: &[u32], counted: &[bool]| {
        for (tokens, counted) in tokens.chunks(window.max(2)).zip(counted.chunks(window.max(2))) {
            let mut counted = counted.to_vec();
            counted[0] = false;
            if counted.contains(&true) {
                documents.push(Document {
                    source: source.to_owned(),
                    tokens: tokens.to_vec(),
                    counted,
                });
            }
        }
    };
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        let tokens = tokenizer.encode(&text)?;
        add(&stem, &tokens, &vec![true; tokens.len()]);
    } else {
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| Error::line(path, index + 1, error.to_string()))?;
            let source = line.source.as_deref().unwrap_or(&stem);
            match (line.text, line.segments) {
                (Some(text), None) => {
                    let tokens = tokenizer.encode(&text)?;
                    add(source, &tokens, &vec![true; tokens.len()]);
                }
                (None, Some(segments)) => {
                    let (mut tokens, mut counted) = (Vec::new(), Vec::new());
                    for (text, class) in &segments {
                        tokens.extend(tokenizer.encode_trusted(text)?);
                        counted.resize(tokens.len(), *class == COUNTED);
                    }
                    if let Some(end) = tokenizer.token_id(END) {
                        tokens.push(end);
                        counted.push(true);
                    }
                    add(source, &tokens, &counted);
                }
                _ => {
                    let reason = "has to have either \"text\" or \"segments\"";
                    return Err(Error::line(path, index + 1, reason));
                }
            }
        }
    }
    if documents.is_empty() {
        return Err(Error::file(path, "has no text to predict"));
    }
    Ok(documents)
}

/// A number that is the same for the same documents in the same tokens (64-bit FNV-1a), in hexadecimal.
pub fn fingerprint(documents: &[Document]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for document in documents {
        add(document.source.as_bytes());
        add(&(document.tokens.len() as u64).to_le_bytes());
        for (token, counted) in document.tokens.iter().zip(&document.counted) {
            add(&token.to_le_bytes());
            add(&[u8::from(*counted)]);
        }
    }
    format!("{hash:016x}")
}
