//! Where replies, notices and progress appear.
//!
//! On a terminal the lines that may still change are rewritten in place, and scroll away like any other text once
//! they are final: the terminal's own scrollback holds the talk. Elsewhere only what is final is written.

use std::io::{self, IsTerminal, Write};

use crate::text::{Colour, Line, Span, Style, clean, wrap};

/// Columns where nobody tells them.
const DEFAULT_WIDTH: usize = 80;
/// Rows where nobody tells them.
const DEFAULT_ROWS: usize = 24;
/// Wider lines are hard to read.
const MAX_WIDTH: usize = 120;

/// When something is done that suits a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// When a terminal is there that can.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Standard output and standard error.
pub struct Screen {
    colour: bool,
    rendered: bool,
    /// Whether lines can be rewritten.
    live: bool,
    /// Lines that may be rewritten; the cursor is at the end of the last.
    shown: Vec<String>,
    /// Whether a progress line stands on standard error.
    progress: bool,
}

impl Screen {
    /// The screen as it is, with colours and rendered Markdown as asked for.
    pub fn new(colour: When, render: When) -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = match colour {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && !dumb && !set("NO_COLOR"),
        };
        let rendered = match render {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal,
        };
        Self { colour, rendered, live: terminal && !dumb, shown: Vec::new(), progress: false }
    }

    /// Whether styles are used.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Whether Markdown is rendered, and not passed on as it is.
    pub fn rendered(&self) -> bool {
        self.rendered
    }

    /// Whether somebody watches as text is written.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Columns for text.
    pub fn width(&self) -> usize {
        let asked = || std::env::var("COLUMNS").ok()?.parse().ok();
        let width = match terminal_size::terminal_size() {
            Some((width, _)) if self.live && width.0 > 0 => usize::from(width.0),
            _ => asked().unwrap_or(DEFAULT_WIDTH),
        };
        width.clamp(10, MAX_WIDTH)
    }

    /// Rows that can be rewritten.
    pub fn rows(&self) -> usize {
        match terminal_size::terminal_size() {
            Some((_, rows)) if rows.0 > 2 => usize::from(rows.0) - 1,
            _ => DEFAULT_ROWS - 1,
        }
    }

    /// Writes lines that are final, and shows lines that may still change.
    pub fn update(&mut self, fixed: &[Line], live: &[Line]) -> io::Result<()> {
        self.clear_progress();
        let text = |line: &Line| line.to_text(self.colour);
        if !self.live {
            let mut out = String::new();
            for line in fixed {
                out += &text(line);
                out.push('\n');
            }
            return write(&out);
        }
        let lines: Vec<String> = fixed.iter().chain(live).map(text).collect();
        let n_shown = self.shown.len();
        let mut same = self.shown.iter().zip(&lines).take_while(|(old, new)| old == new).count();
        // What has left the screen stays as it is.
        same = same.max(n_shown.saturating_sub(self.rows()));
        let mut out = String::new();
        if same < n_shown {
            let up = n_shown - 1 - same;
            out += &match up {
                0 => "\r\u{1b}[K".to_owned(),
                _ => format!("\u{1b}[{up}A\r\u{1b}[J"),
            };
        } else if n_shown > 0 && (same < lines.len() || live.is_empty()) {
            out.push('\n');
        }
        for (index, line) in lines.iter().enumerate().skip(same) {
            if index > same {
                out.push('\n');
            }
            out += line;
        }
        if live.is_empty() && same < lines.len() {
            out.push('\n');
        }
        self.shown = live.iter().map(text).collect();
        write(&out)
    }

    /// Writes text as it is, but for control characters.
    pub fn source(&mut self, text: &str) -> io::Result<()> {
        self.update(&[], &[])?;
        write(&clean(text))
    }

    /// Shows what is being done, in the place of what was shown so before; nothing removes it.
    pub fn progress(&mut self, text: &str) -> io::Result<()> {
        if self.live {
            // One line, so that it can always be rewritten.
            let mut lines = wrap(&[Span::new(text, Style::DIM)], self.width());
            lines.truncate(usize::from(!text.is_empty()));
            return self.update(&[], &lines);
        }
        if io::stderr().is_terminal() {
            eprint!("\r\u{1b}[K{text}");
            self.progress = !text.is_empty();
        }
        Ok(())
    }

    /// Removes what was shown of progress on standard error.
    fn clear_progress(&mut self) {
        if self.progress {
            eprint!("\r\u{1b}[K");
            self.progress = false;
        }
    }

    /// Answers a command.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.say_in(text, Style::NONE)
    }

    /// The same in a style.
    pub fn say_in(&mut self, text: &str, style: Style) -> io::Result<()> {
        // What is not for a screen stays as it is, so that it can be searched.
        let width = if self.rendered { self.width() } else { usize::MAX };
        let lines = wrap(&[Span::new(clean(text), style)], width);
        self.update(&lines, &[])
    }

    /// Tells a person who watches something that is no part of the talk.
    pub fn aside(&mut self, text: &str) -> io::Result<()> {
        if self.live {
            self.say_in(text, Style::DIM)
        } else {
            self.clear_progress();
            if io::stderr().is_terminal() {
                eprintln!("{}", clean(text));
            }
            Ok(())
        }
    }

    /// Warns or tells of a failure.
    pub fn warn(&mut self, text: &str) -> io::Result<()> {
        if self.live {
            return self.say_in(text, Style::colour(Colour::Yellow));
        }
        self.clear_progress();
        eprintln!("{}", clean(text));
        Ok(())
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
