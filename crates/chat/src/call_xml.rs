//! Calls as Qwen3.5 writes them:
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=KEY>
//! VALUE
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! Templates write a value without quotes: a text as it is, an object or a list as JSON, and anything else
//! as Python's `str()` does (`True`, `None`, `3.5`). So what a value was is found out from its schema:
//!
//! - If the schema allows a text and nothing else, the value is a text.
//! - Otherwise, what reads as JSON of a type that the schema allows, and is no text, is that; `True`,
//!   `False` and `None` read as `true`, `false` and `null`.
//! - What is left is a text.
//!
//! A parameter that no schema describes may be anything. A value ends at the first line that begins with
//! `</parameter>`.

use std::collections::HashMap;

use serde_json::Value;

use crate::parser::{Expected, Piece, Progress, expect, held, is_json, skip_space};
use crate::schema::Types;
use crate::tools::ArgumentTypes;

pub(crate) const FUNCTION: &str = "<function=";
pub(crate) const FUNCTION_END: &str = "</function>";
pub(crate) const PARAMETER: &str = "<parameter=";
/// The end of a value, with the line break before it.
pub(crate) const VALUE_END: &str = "\n</parameter>";
/// Longer names are no names.
const MAX_NAME: usize = 1_000;

/// A call that is being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct XmlCall {
    state: State,
    types: HashMap<String, Types>,
    keys: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Function,
    Parameter,
    /// A value, before its first character.
    ValueStart(Types),
    /// A text, which is told as it comes.
    Text,
    /// Another value, which is told as a whole.
    Other(Types),
    End,
}

impl XmlCall {
    /// Reads on in `text` from `at`.
    pub(crate) fn read(
        &mut self,
        text: &str,
        at: &mut usize,
        types: &ArgumentTypes,
        pieces: &mut Vec<Piece>,
    ) -> Progress {
        loop {
            let step = match self.state {
                State::Function => self.function(text, at, types, pieces),
                State::Parameter => self.parameter(text, at, pieces),
                State::ValueStart(types) => self.value_start(text, at, types, pieces),
                State::Text => self.text(text, at, pieces),
                State::Other(types) => self.other(text, at, types, pieces),
                State::End => {
                    skip_space(text, at);
                    return Progress::Closing;
                }
            };
            if let Err(progress) = step {
                return progress;
            }
        }
    }

    fn function(
        &mut self,
        text: &str,
        at: &mut usize,
        types: &ArgumentTypes,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        let name = named(text, at, FUNCTION)?;
        self.types = types.get(name).cloned().unwrap_or_default();
        pieces.push(Piece::Begin(name.to_owned()));
        pieces.push(Piece::Arguments("{".to_owned()));
        self.state = State::Parameter;
        Ok(())
    }

    fn parameter(
        &mut self,
        text: &str,
        at: &mut usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        skip_space(text, at);
        match expect(&text[*at..], FUNCTION_END) {
            Expected::Here => {
                *at += FUNCTION_END.len();
                pieces.push(Piece::Arguments("}".to_owned()));
                self.state = State::End;
                return Ok(());
            }
            Expected::Unclear => return Err(Progress::More),
            Expected::Other => {}
        }
        let key = named(text, at, PARAMETER)?;
        if self.keys.iter().any(|other| other == key) {
            return Err(Progress::Broken);
        }
        let comma = if self.keys.is_empty() { "" } else { ", " };
        pieces.push(Piece::Arguments(format!("{comma}{}: ", quoted(key))));
        self.state = State::ValueStart(self.types.get(key).copied().unwrap_or(Types::ALL));
        self.keys.push(key.to_owned());
        Ok(())
    }

    fn value_start(
        &mut self,
        text: &str,
        at: &mut usize,
        types: Types,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        // A value of no lines at all is empty: its own line break is the one before the end.
        if expect(&text[*at..], VALUE_END) == Expected::Unclear {
            return Err(Progress::More);
        }
        if text[*at..].starts_with('\n') && !text[*at..].starts_with(VALUE_END) {
            *at += 1;
        }
        self.state = State::Other(types);
        if types == Types::STRING {
            pieces.push(Piece::Arguments("\"".to_owned()));
            self.state = State::Text;
        }
        Ok(())
    }

    fn text(
        &mut self,
        text: &str,
        at: &mut usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        let rest = &text[*at..];
        let end = rest.find(VALUE_END);
        let said = end.unwrap_or(rest.len() - held(rest, VALUE_END));
        let quoted = quoted(&rest[..said]);
        if said > 0 {
            pieces.push(Piece::Arguments(quoted[1..quoted.len() - 1].to_owned()));
        }
        *at += said;
        if end.is_none() {
            return Err(Progress::More);
        }
        *at += VALUE_END.len();
        pieces.push(Piece::Arguments("\"".to_owned()));
        self.state = State::Parameter;
        Ok(())
    }

    fn other(
        &mut self,
        text: &str,
        at: &mut usize,
        types: Types,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        let end = text[*at..].find(VALUE_END).ok_or(Progress::More)?;
        pieces.push(Piece::Arguments(value(&text[*at..*at + end], types)));
        *at += end + VALUE_END.len();
        self.state = State::Parameter;
        Ok(())
    }
}

/// The name within a mark like `<function=NAME>`.
fn named<'a>(text: &'a str, at: &mut usize, mark: &str) -> Result<&'a str, Progress> {
    skip_space(text, at);
    let rest = &text[*at..];
    match expect(rest, mark) {
        Expected::Here => {}
        Expected::Unclear => return Err(Progress::More),
        Expected::Other => return Err(Progress::Broken),
    }
    let rest = &rest[mark.len()..];
    match rest.find(['>', '<', '\n']) {
        Some(end @ 1..=MAX_NAME) if rest[end..].starts_with('>') => {
            *at += mark.len() + end + 1;
            Ok(&rest[..end])
        }
        None if rest.len() <= MAX_NAME => Err(Progress::More),
        _ => Err(Progress::Broken),
    }
}

/// A value as JSON. Numbers may be of any size and lists of any depth: no value is made of them here.
fn value(text: &str, types: Types) -> String {
    let json = match text.trim() {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    let begins = match json.bytes().next() {
        Some(b'{') => Types::OBJECT,
        Some(b'[') => Types::ARRAY,
        Some(b't' | b'f') => Types::BOOLEAN,
        Some(b'n') => Types::NULL,
        Some(b'-' | b'0'..=b'9') => Types::NUMBER,
        _ => Types::NONE,
    };
    if types.has(begins) && is_json(json) { json.to_owned() } else { quoted(text) }
}

/// Whether a text is read back as itself where a value of these types stands.
pub(crate) fn reads_back(text: &str, types: Types) -> bool {
    !format!("\n{text}").contains(VALUE_END)
        && (types == Types::STRING || value(text, types) == quoted(text))
}

/// A text as JSON.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_what_their_schema_allows() {
        let optional = Types::STRING.or(Types::NULL);
        for (text, types, json) in [
            ("True", Types::BOOLEAN, "true"),
            ("true", Types::BOOLEAN, "true"),
            ("True", optional, "\"True\""),
            ("None", optional, "null"),
            ("3.50", Types::NUMBER, "3.50"),
            ("3.50", optional, "\"3.50\""),
            ("\"a\"", optional, "\"\\\"a\\\"\""),
            (" {\"a\": [1]} ", Types::OBJECT, "{\"a\": [1]}"),
            ("{\"a\": ", Types::OBJECT, "\"{\\\"a\\\": \""),
            ("5", Types::ALL, "5"),
            ("five", Types::NUMBER, "\"five\""),
            ("1e999", Types::NUMBER, "1e999"),
            ("-", Types::NUMBER, "\"-\""),
            ("truely", Types::ALL, "\"truely\""),
        ] {
            assert_eq!(value(text, types), json, "{text} as {types:?}");
        }
    }

    #[test]
    fn values_of_any_size_keep_their_type() {
        let number = "9".repeat(400);
        assert_eq!(value(&number, Types::ALL), number);
        let deep = "[".repeat(1_000) + &"]".repeat(1_000);
        assert_eq!(value(&deep, Types::ALL), deep);
        assert_eq!(value(&deep[1..], Types::ARRAY), quoted(&deep[1..]));
    }

    #[test]
    fn texts_with_the_end_of_a_value_do_not_read_back() {
        for (text, types, reads) in [
            ("7", Types::STRING, true),
            ("7", Types::STRING.or(Types::NUMBER), false),
            ("</parameter>", Types::STRING, false),
            ("a\n</parameter>b", Types::STRING, false),
            ("a</parameter>", Types::STRING, true),
        ] {
            assert_eq!(reads_back(text, types), reads, "{text}");
        }
    }
}
