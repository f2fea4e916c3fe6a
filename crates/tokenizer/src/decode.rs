//! Tokens to text: a flat table of the bytes of every token, and a decoder that streams.

use std::sync::Arc;

/// The bytes of every token, one after another.
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token ends; it begins where the one before ends.
    ends: Vec<u32>,
    /// Ids of control tokens, sorted.
    special: Vec<u32>,
}

impl Vocabulary {
    pub(crate) fn new(tokenizer: &tokenizers::Tokenizer, special: &[(String, u32)]) -> Self {
        let values = byte_values();
        let highest = tokenizer.get_added_tokens_decoder().keys().copied().max();
        let len = tokenizer.get_vocab_size(true).max(highest.map_or(0, |id| id as usize + 1));
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(len));
        for id in 0..len as u32 {
            if let Some(token) = tokenizer.id_to_token(id) {
                // Characters of the byte alphabet stand for bytes; a token with any other character
                // is an added one, and stands for its own text.
                let value = |c: char| values.get(c as usize).copied().flatten();
                match token.chars().map(value).collect::<Option<Vec<u8>>>() {
                    Some(token) => bytes.extend(token),
                    None => bytes.extend(token.as_bytes()),
                }
            }
            ends.push(bytes.len() as u32);
        }
        let mut special: Vec<u32> = special.iter().map(|(_, id)| *id).collect();
        special.sort_unstable();
        Self { bytes, ends, special }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let begin = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[begin as usize..end as usize]
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }
}

/// The byte that each character of GPT-2's alphabet stands for: printable Latin-1 characters stand for
/// themselves, and those from U+0100 on, in order, for the other bytes.
fn byte_values() -> Vec<Option<u8>> {
    let mut values = vec![None; 0x100 + 0x100];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            values[usize::from(byte)] = Some(byte);
        } else {
            values[next] = Some(byte);
            next += 1;
        }
    }
    values
}

/// Decodes token by token. What it gives is always whole characters: bytes of an unfinished character
/// are held back until it is complete.
pub struct DecodeStream {
    vocabulary: Arc<Vocabulary>,
    skip_special: bool,
    held: Vec<u8>,
}

impl DecodeStream {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, skip_special: bool) -> Self {
        Self { vocabulary, skip_special, held: Vec::new() }
    }

    /// The text that is complete with this token. Bytes that cannot become a character are U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if !(self.skip_special && self.vocabulary.is_special(id)) {
            self.held.extend_from_slice(self.vocabulary.bytes(id));
        }
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        while !rest.is_empty() {
            match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(len) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let used = self.held.len() - rest.len();
        self.held.drain(..used);
        text
    }

    /// What was held back when no more tokens come: an unfinished character is U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}
