//! The way to the end: from wherever a grammar stands, tokens that bring what is said to its end.
//!
//! A reply whose limit is near has to end what it has begun, so somebody has to know how long that takes. A
//! grammar can only be asked what may follow, so the end is searched for, byte by byte, trying first what
//! ends things: the end of a value, quotes, brackets. What is found is a way, not always the shortest. Where
//! patterns of texts mislead the search, it may find none.

use std::collections::VecDeque;

use llguidance::Matcher;
use tokenizer::Tokenizer;

use crate::call_xml::VALUE_END;
use crate::format::{CALL, CALL_END};

/// Choices of a search, those taken back counted. A text that must have 500 characters needs as many.
const MAX_CHOICES: usize = 1_500;
/// What may end something where no text is free.
const ENDS: &[u8] = b"}]\"/";
/// What else is tried, in this order: separators, what is short, and in the end what opens something new.
const OTHERS: &[u8] = b",:@0123456789.-_/ZTabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSUVWXY\
    +=<>%#&;!?*()'~$^|` \n\t\r\"}]\\{[";

/// What a search says, for one vocabulary.
#[derive(Clone, Debug)]
pub(crate) struct Closer {
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    /// The end of a value outside of JSON.
    value_end: Vec<u32>,
    /// Control tokens that grammars use.
    marks: Vec<u32>,
    end_of_turn: u32,
}

impl Closer {
    pub(crate) fn new(tokenizer: &Tokenizer, end_of_turn: u32) -> Self {
        let mut bytes = vec![None; 256];
        for id in (0..tokenizer.vocab_size() as u32).filter(|&id| !tokenizer.is_special(id)) {
            if let [byte] = tokenizer.token_bytes(id) {
                bytes[usize::from(*byte)].get_or_insert(id);
            }
        }
        // Where marks are no control tokens they are said byte by byte.
        let marks = [CALL_END, CALL].into_iter().filter_map(|text| tokenizer.token_id(text));
        let marks = marks.filter(|&id| tokenizer.is_special(id));
        Self {
            bytes,
            value_end: tokenizer.encode(VALUE_END).unwrap_or_default(),
            marks: marks.collect(),
            end_of_turn,
        }
    }

    /// Tokens that lead from where a grammar stands to its end, that of the turn included where it has to be
    /// said. They are what the grammar forces, and a choice wherever it leaves one.
    pub(crate) fn find(&self, matcher: &Matcher) -> Option<VecDeque<u32>> {
        let mut way = Vec::new();
        let mut uses = vec![0_u32; 256];
        let mut places: Vec<Place> = Vec::new();
        let mut here = matcher.clone();
        for _ in 0..MAX_CHOICES {
            let forced = here.consume_ff_tokens();
            way.extend_from_slice(&forced);
            if here.is_error() {
                return None;
            }
            if here.is_stopped() {
                return Some(way.into());
            }
            if here.is_accepting().ok()? {
                way.push(self.end_of_turn);
                return Some(way.into());
            }
            let has_ended = forced.is_empty() && places.last().is_some_and(|place| place.ended);
            places.push(self.place(here, way.len(), has_ended, &uses)?);
            here = loop {
                // Where nothing may follow, an earlier choice was wrong.
                let place = places.last_mut()?;
                if let Some(byte) = place.byte.take() {
                    uses[usize::from(byte)] -= 1;
                }
                way.truncate(place.n_before);
                match place.next(self, &mut way)? {
                    Some(next) => {
                        if let Some(byte) = place.byte {
                            uses[usize::from(byte)] += 1;
                        }
                        break next;
                    }
                    None => places.pop(),
                };
            };
        }
        None
    }

    /// Where a choice is due. `has_ended` tells that a text should have ended by the last choice and has not.
    fn place(
        &self,
        mut matcher: Matcher,
        n_before: usize,
        has_ended: bool,
        uses: &[u32],
    ) -> Option<Place> {
        let mut may_say = |byte: u8| match self.bytes[usize::from(byte)] {
            Some(token) => matcher.validate_tokens(&[token]).ok().map(|n| n == 1),
            None => Some(false),
        };
        let is_text = may_say(b'q')? && may_say(b'z')?;
        let mut options = Vec::new();
        if !(is_text && has_ended) {
            options.push(Say::ValueEnd);
            options.extend(self.marks.iter().map(|&mark| Say::Mark(mark)));
            let ends = if is_text { b"\"" } else { ENDS };
            options.extend(ends.iter().map(|&byte| Say::Byte(byte)));
        }
        let n_ends = options.len();
        // What was said often leads in circles.
        let rest = OTHERS.iter().copied().chain(0x80..=0xff);
        let mut rest: Vec<u8> = rest.collect();
        rest.sort_by_key(|&byte| uses[usize::from(byte)]);
        options.extend(rest.into_iter().map(Say::Byte));
        Some(Place { matcher, n_before, options, n_ends, n_tried: 0, byte: None, ended: false })
    }
}

/// What may be tried.
#[derive(Clone, Copy, Debug)]
enum Say {
    ValueEnd,
    Mark(u32),
    Byte(u8),
}

/// A choice of a search.
struct Place {
    matcher: Matcher,
    /// Tokens of the way before it.
    n_before: usize,
    options: Vec<Say>,
    /// So many of them end something.
    n_ends: usize,
    n_tried: usize,
    /// The byte that was chosen.
    byte: Option<u8>,
    /// Whether what was chosen ends something.
    ended: bool,
}

impl Place {
    /// The grammar after the next option that it allows, whose tokens are added to the way; nothing inside
    /// when no option is left, nothing at all when the grammar fails.
    fn next(&mut self, closer: &Closer, way: &mut Vec<u32>) -> Option<Option<Matcher>> {
        while let Some(&say) = self.options.get(self.n_tried) {
            self.ended = self.n_tried < self.n_ends;
            self.n_tried += 1;
            let one;
            let tokens: &[u32] = match say {
                Say::ValueEnd => &closer.value_end,
                Say::Mark(mark) => {
                    one = [mark];
                    &one
                }
                Say::Byte(byte) => match closer.bytes[usize::from(byte)] {
                    Some(token) => {
                        one = [token];
                        &one
                    }
                    None => continue,
                },
            };
            let n_allowed = self.matcher.validate_tokens(tokens).ok()?;
            if tokens.is_empty() || n_allowed < tokens.len() {
                continue;
            }
            let mut next = self.matcher.clone();
            for &token in tokens {
                next.consume_token(token).ok()?;
                way.push(token);
                let forced = next.compute_ff_tokens();
                if !forced.is_empty() || next.is_stopped() {
                    // From here on the grammar goes on by itself, in tokens of its own.
                    break;
                }
            }
            self.byte = match say {
                Say::Byte(byte) => Some(byte),
                Say::ValueEnd | Say::Mark(_) => None,
            };
            return Some(Some(next));
        }
        Some(None)
    }
}
