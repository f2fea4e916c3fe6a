//! A line of styled text.

use unicode_width::UnicodeWidthStr;

use crate::text::one_line;

/// One of the terminal's own colours, so that it fits the user's theme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// For what went wrong.
    Red,
    /// For what the user says.
    Green,
    /// For what wants attention.
    Yellow,
    /// For code.
    Cyan,
}

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Heavy.
    pub bold: bool,
    /// Pale.
    pub dim: bool,
    /// Slanted.
    pub italic: bool,
    /// Underlined.
    pub underline: bool,
    /// Struck through.
    pub strike: bool,
    /// In a colour.
    pub colour: Option<Colour>,
}

impl Style {
    /// Pale text.
    pub const DIM: Self = Self { dim: true, ..Self::NONE };
    /// Heavy text.
    pub const BOLD: Self = Self { bold: true, ..Self::NONE };
    /// Text as it is.
    pub const NONE: Self = Self {
        bold: false,
        dim: false,
        italic: false,
        underline: false,
        strike: false,
        colour: None,
    };

    /// Text in a colour.
    pub const fn colour(colour: Colour) -> Self {
        Self { colour: Some(colour), ..Self::NONE }
    }

    /// The escape sequence that begins this style; empty where nothing is to be changed.
    fn sequence(self) -> String {
        let mut codes = Vec::new();
        for (set, code) in [
            (self.bold, "1"),
            (self.dim, "2"),
            (self.italic, "3"),
            (self.underline, "4"),
            (self.strike, "9"),
        ] {
            if set {
                codes.push(code);
            }
        }
        codes.extend(self.colour.map(|colour| match colour {
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Cyan => "36",
        }));
        if codes.is_empty() { String::new() } else { format!("\u{1b}[{}m", codes.join(";")) }
    }
}

/// A piece of text in one style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The text, without line feeds once it is part of a line.
    pub text: String,
    /// How it looks.
    pub style: Style,
}

impl Span {
    /// A piece of text.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

/// A line on the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Its pieces from left to right.
    pub spans: Vec<Span>,
}

impl Line {
    /// A line of one style.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { spans: vec![Span::new(text, style)] }
    }

    /// Appends text, to the last piece if that looks the same.
    pub fn push(&mut self, text: &str, style: Style) {
        match self.spans.last_mut() {
            Some(last) if last.style == style => last.text.push_str(text),
            _ => self.spans.push(Span::new(text, style)),
        }
    }

    /// The line with something before it.
    pub fn after(self, text: &str, style: Style) -> Self {
        let mut line = Self::default();
        if !text.is_empty() {
            line.push(text, style);
        }
        for span in self.spans {
            line.push(&span.text, span.style);
        }
        line
    }

    /// Columns that it takes.
    pub fn width(&self) -> usize {
        self.spans.iter().map(|span| span.text.width()).sum()
    }

    /// What is written to the terminal, without a line feed. Whatever the pieces hold, the only control
    /// characters in it are those of the styles.
    pub fn to_text(&self, colour: bool) -> String {
        let mut text = String::new();
        for span in &self.spans {
            let sequence = if colour { span.style.sequence() } else { String::new() };
            text.push_str(&sequence);
            text.push_str(&one_line(&span.text));
            if !sequence.is_empty() {
                text.push_str("\u{1b}[0m");
            }
        }
        // Spaces at the end would only be copied along.
        if colour { text } else { text.trim_end().to_owned() }
    }
}
