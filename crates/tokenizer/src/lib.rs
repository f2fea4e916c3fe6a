//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` library's; what is added here is who may write control tokens, and
//! decoding that streams. A control token such as `<|im_end|>` ends a turn, so it may come from a
//! template but never from what a user or a tool has written:
//!
//! - [`Tokenizer::encode`] takes text that may hold anything, and gives no control tokens.
//! - [`Tokenizer::encode_trusted`] gives control tokens where their text stands.
//! - [`Tokenizer::protect`] marks a piece of untrusted text before it is put into a template, and
//!   [`Tokenizer::encode_prompt`] encodes the rendered whole.

#![forbid(unsafe_code)]

mod decode;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{AddedToken, DecoderWrapper};

pub use decode::DecodeStream;
use decode::Vocabulary;

/// A noncharacter of Unicode that marks protected text; in the text itself it is doubled.
const MARK: char = '\u{fdd0}';

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}\nhint: a checkpoint needs its tokenizer.json to read and write text", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not a tokenizer.
    #[error("{}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A kind of tokenizer that this program cannot use.
    #[error("{}: {what} is not supported; byte-level BPE is", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A text could not be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
}

/// The tokenizer of a checkpoint. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    /// Takes control tokens for ordinary text.
    inner: Arc<tokenizers::Tokenizer>,
    /// Control tokens, the longest first.
    special: Arc<[(String, u32)]>,
    vocabulary: Arc<Vocabulary>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint, and from `tokenizer_config.json` the added tokens that
    /// the former lacks.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("tokenizer.json");
        let read = |path: &Path| {
            fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
        };
        let json = read(&path)?;
        let config_path = directory.join("tokenizer_config.json");
        let config = if config_path.exists() { Some(read(&config_path)?) } else { None };
        Self::from_json(&path, &json, config.as_deref())
    }

    /// Builds the tokenizer from the contents of both files; `path` is for errors.
    pub fn from_json(path: &Path, json: &[u8], config: Option<&[u8]>) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed { path: path.to_owned(), reason };
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| malformed(format!("not a tokenizer: {error}")))?;
        if let Some(config) = config {
            let config: Value = serde_json::from_slice(config)
                .map_err(|error| malformed(format!("its tokenizer_config.json: {error}")))?;
            for (id, token) in absent_tokens(&inner, &config) {
                let content = token.content.clone();
                inner.add_tokens([token]).map_err(|error| malformed(error.to_string()))?;
                if inner.token_to_id(&content) != Some(id) {
                    return Err(malformed(format!(
                        "the added token {content} of tokenizer_config.json cannot have id {id}"
                    )));
                }
            }
        }
        let unsupported =
            |what: &str| Error::Unsupported { path: path.to_owned(), what: what.to_owned() };
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(unsupported("a tokenizer that is not byte-level"));
        }
        let mut special = Vec::new();
        for (id, token) in inner.get_added_tokens_decoder() {
            if token.special {
                if token.lstrip || token.rstrip || token.single_word {
                    return Err(unsupported("a control token that takes space around it"));
                }
                special.push((token.content, id));
            }
        }
        special.retain(|(text, _)| !text.is_empty());
        special.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        inner.set_encode_special_tokens(true);
        let vocabulary = Arc::new(Vocabulary::new(&inner, &special));
        Ok(Self { inner: Arc::new(inner), special: special.into(), vocabulary })
    }

    /// One more than the highest id; larger ids of a model are padding.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The id of a token's text.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The bytes that a token stands for; empty for ids without a token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Whether a token is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// Encodes text that may hold anything: the text of a control token stays text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| Error::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes text from a trusted place: the text of a control token is that token.
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode_pieces(text, |piece| self.encode(piece))
    }

    /// Marks untrusted text, so that [`Tokenizer::encode_prompt`] finds no control token in it.
    pub fn protect(&self, text: &str) -> String {
        let mut protected = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            protected.push(first);
            if first == MARK || self.special_at(rest).is_some() {
                protected.push(MARK);
            }
            rest = &rest[first.len_utf8()..];
        }
        protected
    }

    /// Encodes a prompt made of trusted text and of protected untrusted text.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        self.encode_pieces(prompt, |piece| self.encode(&unprotect(piece)))
    }

    /// Text with marks as [`Tokenizer::protect`] makes them, without them.
    pub fn unprotect(text: &str) -> String {
        unprotect(text)
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let bytes: Vec<u8> = kept.flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Decodes token by token, whole characters at a time.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(Arc::clone(&self.vocabulary), skip_special)
    }

    /// Encodes what lies between control tokens, and puts them in between.
    fn encode_pieces(
        &self,
        text: &str,
        encode: impl Fn(&str) -> Result<Vec<u32>, Error>,
    ) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        let (mut begin, mut at) = (0, 0);
        while at < text.len() {
            if let Some((token, id)) = self.special_at(&text[at..]) {
                ids.extend(encode(&text[begin..at])?);
                ids.push(*id);
                at += token.len();
                begin = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        ids.extend(encode(&text[begin..])?);
        Ok(ids)
    }

    /// The longest control token that a text begins with.
    fn special_at(&self, text: &str) -> Option<&(String, u32)> {
        self.special.iter().find(|(token, _)| text.starts_with(token.as_str()))
    }
}

/// Removes single marks and one of each doubled mark.
fn unprotect(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != MARK {
            plain.push(character);
        } else if characters.next_if_eq(&MARK).is_some() {
            plain.push(MARK);
        }
    }
    plain
}

/// Added tokens of `tokenizer_config.json` that `tokenizer.json` does not have, in order of id.
fn absent_tokens(inner: &tokenizers::Tokenizer, config: &Value) -> Vec<(u32, AddedToken)> {
    let tokens = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut absent: Vec<(u32, AddedToken)> = tokens
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| {
            let content = token.get("content")?.as_str()?;
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            let added = AddedToken::from(content, flag("special"))
                .normalized(flag("normalized"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"));
            Some((id.parse().ok()?, added))
        })
        .filter(|(_, token)| inner.token_to_id(&token.content).is_none())
        .collect();
    absent.sort_by_key(|(id, _)| *id);
    absent
}
