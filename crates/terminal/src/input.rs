//! What the user types: a line editor with history on a terminal, lines of a pipe elsewhere.

use std::borrow::Cow;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Stdin};
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{
    Behavior, Cmd, Config, Context, Editor, EventHandler, Helper, KeyCode, KeyEvent, Modifiers,
};

use crate::command::COMMANDS;

/// Messages that the history keeps.
const HISTORY: usize = 1000;
/// A longer message than any context holds.
const MAX_LINE: u64 = 16 << 20;

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    /// A message or a command, perhaps of several lines.
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// Where input comes from.
pub enum Input {
    /// A person at a terminal.
    Editor(Box<Typing>),
    /// A pipe or a file, one message a line.
    Lines(BufReader<Stdin>),
}

/// The line editor with its history.
pub struct Typing {
    editor: Editor<Completion, FileHistory>,
    history: Option<PathBuf>,
}

impl Input {
    /// An editor if standard input is a terminal, lines otherwise; `history` is where it is kept.
    pub fn new(history: Option<PathBuf>, colour: bool) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Lines(BufReader::new(io::stdin())));
        }
        let config = Config::builder()
            .max_history_size(HISTORY)?
            .behavior(Behavior::PreferTerm)
            .bracketed_paste(true)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Completion { colour }));
        // Enter sends; with Alt, and as Ctrl-J, it begins a line.
        for key in [
            KeyEvent(KeyCode::Enter, Modifiers::ALT),
            KeyEvent(KeyCode::Char('J'), Modifiers::CTRL),
        ] {
            editor.bind_sequence(key, EventHandler::Simple(Cmd::Newline));
        }
        if let Some(path) = &history
            && path.exists()
            && let Err(error) = editor.load_history(path)
        {
            eprintln!("warning: the history {} cannot be read: {error}", path.display());
        }
        Ok(Self::Editor(Box::new(Typing { editor, history })))
    }

    /// Whether a person can be asked.
    pub fn is_person(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// Reads a message or a command, beginning with `initial` where it can be edited.
    pub fn message(&mut self, prompt: &str, initial: &str) -> anyhow::Result<Entered> {
        match self {
            Self::Editor(typing) => {
                let read = typing.read(prompt, initial)?;
                if let Entered::Line(line) = &read
                    && !line.trim().is_empty()
                {
                    typing.remember(line);
                }
                Ok(read)
            }
            Self::Lines(lines) => piped(lines),
        }
    }

    /// Asks a person; what is answered is not part of the history, and what was typed before the question was there
    /// is no answer. `None` where nobody answers.
    pub fn ask(&mut self, question: &str, initial: &str) -> anyhow::Result<Option<String>> {
        match self {
            Self::Editor(typing) => {
                forget_typed()?;
                Ok(match typing.read(question, initial)? {
                    Entered::Line(line) => Some(line),
                    Entered::Interrupted | Entered::End => None,
                })
            }
            Self::Lines(_) => Ok(None),
        }
    }
}

/// A line of a pipe; a backslash at its end joins the next.
fn piped(lines: &mut BufReader<Stdin>) -> anyhow::Result<Entered> {
    let mut message = String::new();
    loop {
        let before = message.len();
        let n = lines.by_ref().take(MAX_LINE).read_line(&mut message)?;
        if n == 0 && before == 0 {
            return Ok(Entered::End);
        }
        if message.len() as u64 >= MAX_LINE {
            anyhow::bail!("a line on standard input is longer than {MAX_LINE} bytes");
        }
        let line = message.trim_end_matches(['\n', '\r']).len();
        message.truncate(line);
        if n == 0 || !message.ends_with('\\') {
            return Ok(Entered::Line(message));
        }
        message.pop();
        message.push('\n');
    }
}

/// Drops what the terminal holds and nobody has read yet; an error means that it cannot.
#[cfg(unix)]
fn forget_typed() -> io::Result<()> {
    use rustix::termios::{QueueSelector, tcflush};
    Ok(tcflush(io::stdin(), QueueSelector::IFlush)?)
}

#[cfg(not(unix))]
fn forget_typed() -> io::Result<()> {
    Ok(())
}

impl Typing {
    fn read(&mut self, prompt: &str, initial: &str) -> anyhow::Result<Entered> {
        match self.editor.readline_with_initial(prompt, (initial, "")) {
            Ok(line) => Ok(Entered::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Entered::Interrupted),
            Err(ReadlineError::Eof) => Ok(Entered::End),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a message in the history at once, so that it outlives a kill.
    fn remember(&mut self, line: &str) {
        let added = self.editor.add_history_entry(line);
        let Some(path) = &self.history else { return };
        if matches!(added, Ok(true)) {
            let kept = make_parent(path).map_err(ReadlineError::from);
            if let Err(error) = kept.and_then(|()| self.editor.append_history(path)) {
                eprintln!("warning: the history {} cannot be written: {error}", path.display());
                self.history = None;
            }
        }
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Completes commands.
struct Completion {
    colour: bool,
}

impl Completer for Completion {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let Some(begun) = line.get(..position).and_then(|line| line.strip_prefix('/')) else {
            return Ok((position, Vec::new()));
        };
        let known = COMMANDS.iter().filter(|(name, ..)| name.starts_with(begun));
        Ok((0, known.map(|(name, ..)| format!("/{name} ")).collect()))
    }
}

impl Highlighter for Completion {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        if self.colour {
            Cow::Owned(format!("\u{1b}[1;32m{prompt}\u{1b}[0m"))
        } else {
            Cow::Borrowed(prompt)
        }
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Validator for Completion {}

impl Helper for Completion {}
