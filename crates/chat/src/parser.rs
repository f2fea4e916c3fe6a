//! Replies as they come, piece by piece, to events. What is certain is told at once; what comes out does
//! not depend on how the text is cut.
//!
//! Space around thoughts, and space before and between calls, belongs to the format and is dropped; all
//! other text is kept.

use crate::call_json::JsonCall;
use crate::call_xml::XmlCall;
use crate::format::{CALL, CALL_END, CallFormat, THINK, THINK_END};
use crate::reply::ReplyEvent;
use crate::tools::ArgumentTypes;

/// How a reply begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// The prompt has begun a thought.
    Thinking,
    /// A thought may come first.
    MayThink,
    /// There is no thought.
    Plain,
}

/// Reads a reply.
#[derive(Clone, Debug)]
pub struct ReplyParser {
    /// How calls are written; [`CallFormat::None`] takes everything for text.
    calls: CallFormat,
    types: ArgumentTypes,
    state: State,
    /// Text that is not read yet; in a call, all of it.
    text: String,
    n_calls: usize,
    events: Vec<ReplyEvent>,
}

#[derive(Clone, Debug)]
enum State {
    /// A thought may begin.
    Start,
    /// Space and a mark at the beginning of a thought are not part of it.
    ThoughtStart {
        marked: bool,
    },
    Thought,
    /// Space after a thought is no content.
    ThoughtEnd,
    /// Space right after a call is no content, if nothing else follows.
    Content {
        after_call: bool,
    },
    Call {
        call: Call,
        at: usize,
    },
    /// What was begun as a call, up to its closing mark.
    Broken {
        at: usize,
    },
}

/// A call that is being read.
#[derive(Clone, Debug)]
enum Call {
    Xml(XmlCall),
    Json(JsonCall),
}

/// What reading a call has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Begin(String),
    Arguments(String),
}

/// Where reading a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More text is needed.
    More,
    /// Only the closing mark is missing.
    Closing,
    /// This is no call.
    Broken,
}

impl ReplyParser {
    pub(crate) fn new(calls: CallFormat, types: ArgumentTypes, opening: Opening) -> Self {
        let state = match opening {
            Opening::Thinking => State::ThoughtStart { marked: false },
            Opening::MayThink => State::Start,
            Opening::Plain => State::Content { after_call: false },
        };
        Self { calls, types, state, text: String::new(), n_calls: 0, events: Vec::new() }
    }

    /// Takes a step's text. The marks of all formats are text, also where they are tokens.
    pub fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        self.text.push_str(text);
        while self.advance() {}
        std::mem::take(&mut self.events)
    }

    /// Takes note that nothing more comes.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        let text = std::mem::take(&mut self.text);
        let after_call = State::Content { after_call: false };
        match std::mem::replace(&mut self.state, after_call) {
            State::ThoughtStart { .. } | State::Thought => {
                self.say(ReplyEvent::Reasoning, text.trim_end());
            }
            State::ThoughtEnd => self.say(ReplyEvent::Content, text.trim_start()),
            State::Content { after_call: true } if text.trim().is_empty() => {}
            State::Start | State::Content { .. } => self.say(ReplyEvent::Content, &text),
            State::Call { mut call, mut at } => match self.read_call(&mut call, &text, &mut at) {
                Progress::Closing => self.end_call(),
                Progress::More | Progress::Broken => self.malformed(text),
            },
            State::Broken { .. } => self.malformed(text),
        }
        std::mem::take(&mut self.events)
    }

    /// Reads on; tells whether there may be more to read.
    fn advance(&mut self) -> bool {
        match self.state {
            State::Start => self.start(),
            State::ThoughtStart { marked } => self.thought_start(marked),
            State::Thought => self.thought(),
            State::ThoughtEnd => {
                self.skip_space();
                self.state_if_text(State::Content { after_call: false })
            }
            State::Content { .. } => self.content(),
            State::Call { .. } => self.call(),
            State::Broken { at } => self.broken(at),
        }
    }

    fn start(&mut self) -> bool {
        match expect(self.text.trim_start(), THINK) {
            Expected::Unclear => false,
            Expected::Here => {
                self.state = State::ThoughtStart { marked: false };
                true
            }
            Expected::Other => {
                self.state = State::Content { after_call: false };
                true
            }
        }
    }

    fn thought_start(&mut self, marked: bool) -> bool {
        self.skip_space();
        if marked {
            return self.state_if_text(State::Thought);
        }
        match expect(&self.text, THINK) {
            Expected::Unclear => return false,
            Expected::Here => {
                self.text.drain(..THINK.len());
                self.state = State::ThoughtStart { marked: true };
            }
            Expected::Other => self.state = State::Thought,
        }
        true
    }

    fn thought(&mut self) -> bool {
        let (said, marked) = until(&self.text, THINK_END);
        let thought = self.text[..said].to_owned();
        self.say(ReplyEvent::Reasoning, &thought);
        match marked {
            Some(after) => {
                self.text.drain(..after);
                self.state = State::ThoughtEnd;
                true
            }
            None => {
                self.text.drain(..said);
                false
            }
        }
    }

    fn content(&mut self) -> bool {
        if self.calls == CallFormat::None {
            let text = std::mem::take(&mut self.text);
            self.say(ReplyEvent::Content, &text);
            return false;
        }
        let (said, marked) = until(&self.text, CALL);
        let content = self.text[..said].to_owned();
        self.say(ReplyEvent::Content, &content);
        let Some(after) = marked else {
            self.text.drain(..said);
            if said > 0 {
                self.state = State::Content { after_call: false };
            }
            return false;
        };
        self.text.drain(..after - CALL.len());
        let call = match self.calls {
            CallFormat::Json => Call::Json(JsonCall::default()),
            CallFormat::Xml | CallFormat::None => Call::Xml(XmlCall::default()),
        };
        self.state = State::Call { call, at: CALL.len() };
        true
    }

    fn call(&mut self) -> bool {
        let before = State::Content { after_call: true };
        let State::Call { mut call, mut at } = std::mem::replace(&mut self.state, before) else {
            return false;
        };
        let text = std::mem::take(&mut self.text);
        let progress = self.read_call(&mut call, &text, &mut at);
        self.text = text;
        let closing = match progress {
            Progress::More => Expected::Unclear,
            Progress::Closing => expect(&self.text[at..], CALL_END),
            Progress::Broken => Expected::Other,
        };
        match closing {
            Expected::Unclear => {
                self.state = State::Call { call, at };
                false
            }
            Expected::Here => {
                self.text.drain(..at + CALL_END.len());
                self.end_call();
                true
            }
            Expected::Other => {
                self.state = State::Broken { at };
                true
            }
        }
    }

    fn read_call(&mut self, call: &mut Call, text: &str, at: &mut usize) -> Progress {
        let mut pieces = Vec::new();
        let progress = match call {
            Call::Xml(call) => call.read(text, at, &self.types, &mut pieces),
            Call::Json(call) => call.read(text, at, &mut pieces),
        };
        let index = self.n_calls;
        self.events.extend(pieces.into_iter().map(|piece| match piece {
            Piece::Begin(name) => {
                ReplyEvent::CallBegin { index, id: format!("call_{index}"), name }
            }
            Piece::Arguments(json) => ReplyEvent::CallArguments { index, json },
        }));
        progress
    }

    fn broken(&mut self, at: usize) -> bool {
        let Some(end) = self.text[at..].find(CALL_END) else {
            // The mark may have begun in what is there.
            let end = self.text.len() - held(&self.text[at..], CALL_END);
            self.state = State::Broken { at: end };
            return false;
        };
        let rest = self.text.split_off(at + end + CALL_END.len());
        let text = std::mem::replace(&mut self.text, rest);
        self.malformed(text);
        self.state = State::Content { after_call: true };
        true
    }

    fn end_call(&mut self) {
        self.events.push(ReplyEvent::CallEnd { index: self.n_calls });
        self.n_calls += 1;
    }

    fn malformed(&mut self, text: String) {
        self.events.push(ReplyEvent::Malformed { text });
    }

    fn say(&mut self, event: impl Fn(String) -> ReplyEvent, text: &str) {
        if !text.is_empty() {
            self.events.push(event(text.to_owned()));
        }
    }

    fn skip_space(&mut self) {
        let space = self.text.len() - self.text.trim_start().len();
        self.text.drain(..space);
    }

    fn state_if_text(&mut self, state: State) -> bool {
        let is_text = !self.text.is_empty();
        if is_text {
            self.state = state;
        }
        is_text
    }
}

/// Whether a mark stands at the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Here,
    Other,
    /// The text is too short to tell.
    Unclear,
}

pub(crate) fn expect(text: &str, mark: &str) -> Expected {
    if text.starts_with(mark) {
        Expected::Here
    } else if mark.starts_with(text) {
        Expected::Unclear
    } else {
        Expected::Other
    }
}

/// Whether bytes are nothing but the space that may stand before a thought. They may be cut anywhere: what is
/// left of a character counts as space until it is known.
pub(crate) fn may_be_space(bytes: &[u8]) -> bool {
    let is_rest = |byte: &&u8| **byte & 0xC0 == 0x80;
    let bytes = &bytes[bytes.iter().take_while(is_rest).count()..];
    let (whole, is_sound) = match str::from_utf8(bytes) {
        Ok(text) => (text, true),
        Err(error) => {
            let whole = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            (whole, error.error_len().is_none())
        }
    };
    is_sound && whole.trim_start().is_empty()
}

/// Goes on behind space.
pub(crate) fn skip_space(text: &str, at: &mut usize) {
    *at = text.len() - text[*at..].trim_start().len();
}

/// Whether a text is one value of JSON, of any depth and with numbers of any size.
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// How much of a text surely comes before a mark and is not the space in front of it; and where the text
/// goes on after the mark, if it is there.
fn until(text: &str, mark: &str) -> (usize, Option<usize>) {
    let (before, after) = match text.find(mark) {
        Some(begin) => (begin, Some(begin + mark.len())),
        None => (text.len() - held(text, mark), None),
    };
    (text[..before].trim_end().len(), after)
}

/// Length of the longest end of a text that may begin a mark, which it does not hold whole.
pub(crate) fn held(text: &str, mark: &str) -> usize {
    let lengths = (1..mark.len()).rev();
    lengths.into_iter().find(|&length| text.ends_with(&mark[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_known_in_pieces() {
        for (bytes, may_be) in [
            (&b""[..], true),
            (b" \n\x0b", true),
            (b" a", false),
            ("\u{3000}\u{a0}".as_bytes(), true),
            (&"\u{3000}".as_bytes()[..2], true),
            (&"\u{3000} ".as_bytes()[1..], true),
            ("\u{e9}".as_bytes(), false),
            (b"\xff", false),
        ] {
            assert_eq!(may_be_space(bytes), may_be, "{bytes:?}");
        }
    }
}
