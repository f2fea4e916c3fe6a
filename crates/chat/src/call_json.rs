//! Calls as Hermes and Qwen3 write them: `{"name": NAME, "arguments": OBJECT}` within `<tool_call>`.

use crate::parser::{Piece, Progress, is_json, skip_space};

/// A call that is being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct JsonCall {
    state: State,
    name: Option<String>,
    /// The object of arguments as it came.
    arguments: String,
    has_arguments: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Open,
    Key,
    Name,
    /// Within the object of arguments.
    Arguments {
        depth: usize,
        in_text: bool,
        escaped: bool,
    },
    /// After a value.
    Next,
    End,
}

impl JsonCall {
    /// Reads on in `text` from `at`.
    pub(crate) fn read(&mut self, text: &str, at: &mut usize, pieces: &mut Vec<Piece>) -> Progress {
        loop {
            let step = match self.state {
                State::Open => symbol(text, at, &['{']).map(|_| self.state = State::Key),
                State::Key => self.key(text, at),
                State::Name => self.name(text, at, pieces),
                State::Arguments { .. } => self.arguments(text, at, pieces),
                State::Next => self.next(text, at, pieces),
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

    fn key(&mut self, text: &str, at: &mut usize) -> Result<(), Progress> {
        let mut end = *at;
        let key = json_text(text, &mut end)?;
        symbol(text, &mut end, &[':'])?;
        self.state = match key.as_str() {
            "name" if self.name.is_none() => State::Name,
            "arguments" if !self.has_arguments => {
                self.has_arguments = true;
                State::Arguments { depth: 0, in_text: false, escaped: false }
            }
            _ => return Err(Progress::Broken),
        };
        *at = end;
        Ok(())
    }

    fn name(
        &mut self,
        text: &str,
        at: &mut usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        let name = json_text(text, at)?;
        pieces.push(Piece::Begin(name.clone()));
        if self.has_arguments {
            pieces.push(Piece::Arguments(self.arguments.clone()));
        }
        self.name = Some(name);
        self.state = State::Next;
        Ok(())
    }

    fn arguments(
        &mut self,
        text: &str,
        at: &mut usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        let State::Arguments { mut depth, mut in_text, mut escaped } = self.state else {
            return Err(Progress::Broken);
        };
        if depth == 0 {
            skip_space(text, at);
        }
        let begin = *at;
        let mut closed = false;
        for (index, byte) in text.bytes().enumerate().skip(begin) {
            match byte {
                _ if depth == 0 && byte != b'{' => return Err(Progress::Broken),
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                b'{' | b'[' if !in_text => depth += 1,
                b'}' | b']' if !in_text => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                *at = index + 1;
                closed = true;
                break;
            }
        }
        if !closed {
            *at = text.len();
        }
        let mut piece = &text[begin..*at];
        self.arguments.push_str(piece);
        let is_broken = closed && !is_json(&self.arguments);
        if is_broken {
            // Had the text come in smaller pieces, all but its last byte would be told by now.
            piece = &piece[..piece.len() - 1];
        }
        if self.name.is_some() && !piece.is_empty() {
            pieces.push(Piece::Arguments(piece.to_owned()));
        }
        if is_broken {
            return Err(Progress::Broken);
        }
        self.state = match closed {
            true => State::Next,
            false => State::Arguments { depth, in_text, escaped },
        };
        if closed { Ok(()) } else { Err(Progress::More) }
    }

    fn next(
        &mut self,
        text: &str,
        at: &mut usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Progress> {
        if symbol(text, at, &[',', '}'])? == ',' {
            self.state = State::Key;
            return Ok(());
        }
        if self.name.is_none() {
            return Err(Progress::Broken);
        }
        // A call without arguments is one of a tool that takes none.
        if !self.has_arguments {
            pieces.push(Piece::Arguments("{}".to_owned()));
        }
        self.state = State::End;
        Ok(())
    }
}

/// One of some symbols, after space.
fn symbol(text: &str, at: &mut usize, symbols: &[char]) -> Result<char, Progress> {
    skip_space(text, at);
    let symbol = text[*at..].chars().next().ok_or(Progress::More)?;
    if !symbols.contains(&symbol) {
        return Err(Progress::Broken);
    }
    *at += 1;
    Ok(symbol)
}

/// A text in quotes, after space.
fn json_text(text: &str, at: &mut usize) -> Result<String, Progress> {
    let mut begin = *at;
    symbol(text, &mut begin, &['"'])?;
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(begin) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let json = &text[begin - 1..=index];
                let value = serde_json::from_str(json).map_err(|_| Progress::Broken)?;
                *at = index + 1;
                return Ok(value);
            }
            _ => {}
        }
    }
    Err(Progress::More)
}
