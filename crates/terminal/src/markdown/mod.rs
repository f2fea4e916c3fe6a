//! Markdown as lines of a terminal, while it is still being written.
//!
//! A text is cut into its top-level blocks, and each is rendered alone. Markdown is read line by line: once the
//! line that begins the next block is complete, nothing can change the blocks before it, so their lines
//! are final. What is final is therefore the same however the text was cut when it came.

mod block;
mod inline;
mod table;

use pulldown_cmark::{Event, Options, Parser};

use crate::text::{Line, clean};

/// How to render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether styles may be used; without them the marks of Markdown stay where they tell something.
    pub colour: bool,
}

/// Renders text that comes in pieces.
#[derive(Debug)]
pub struct MarkdownStream {
    look: Look,
    /// What belongs to blocks that are not final.
    tail: String,
    /// Whether a block was rendered before, from which the next is set off.
    begun: bool,
}

impl MarkdownStream {
    /// An empty text.
    pub fn new(look: Look) -> Self {
        Self { look, tail: String::new(), begun: false }
    }

    /// Appends text and gives the lines that are final now.
    pub fn push(&mut self, text: &str) -> Vec<Line> {
        let mut lines = Vec::new();
        // Line by line, however many come at once: what a line means can depend on what was final before it.
        for piece in clean(text).split_inclusive('\n') {
            self.tail.push_str(piece);
            if piece.ends_with('\n') {
                lines.extend(self.take_final());
            }
        }
        lines
    }

    /// Takes the blocks before the last one, after a complete line.
    fn take_final(&mut self) -> Vec<Line> {
        let starts = block_starts(&self.tail);
        let Some(&last) = starts.last().filter(|_| starts.len() > 1) else { return Vec::new() };
        let rest = self.tail.split_off(last);
        let ready = std::mem::replace(&mut self.tail, rest);
        let lines = self.render(&ready, &starts[..starts.len() - 1]);
        self.begun |= !lines.is_empty();
        lines
    }

    /// Lines of what is not final, at most `rows` of a table: its columns may still change their widths, so it
    /// must not leave the screen.
    pub fn live(&self, rows: usize) -> Vec<Line> {
        let starts = block_starts(&self.tail);
        let mut lines = self.render(&self.tail, &starts);
        let is_table = starts.last().is_some_and(|&at| {
            let parser = Parser::new_ext(&self.tail[at..], OPTIONS);
            parser
                .into_iter()
                .next()
                .is_some_and(|event| matches!(event, Event::Start(pulldown_cmark::Tag::Table(_))))
        });
        if is_table && lines.len() > rows {
            lines.drain(..lines.len() - rows);
        }
        lines
    }

    /// Ends the text and gives its last lines.
    pub fn finish(&mut self) -> Vec<Line> {
        let tail = std::mem::take(&mut self.tail);
        let lines = self.render(&tail, &block_starts(&tail));
        self.begun = false;
        lines
    }

    /// The blocks that begin at `starts`, each set off from the one before by an empty line.
    fn render(&self, text: &str, starts: &[usize]) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        let ends = starts.iter().skip(1).copied().chain([text.len()]);
        for (&start, end) in starts.iter().zip(ends) {
            let block = block::render(&text[start..end], self.look);
            if block.is_empty() {
                continue;
            }
            if self.begun || !lines.is_empty() {
                lines.push(Line::default());
            }
            lines.extend(block);
        }
        lines
    }
}

/// The whole of a text.
pub fn render(text: &str, look: Look) -> Vec<Line> {
    let mut stream = MarkdownStream::new(look);
    let mut lines = stream.push(text);
    lines.extend(stream.finish());
    lines
}

const OPTIONS: Options =
    Options::ENABLE_TABLES.union(Options::ENABLE_STRIKETHROUGH).union(Options::ENABLE_TASKLISTS);

/// Where the lines begin with which the top-level blocks begin.
fn block_starts(text: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut depth = 0_usize;
    for (event, range) in Parser::new_ext(text, OPTIONS).into_offset_iter() {
        if depth == 0 && !matches!(event, Event::End(_)) {
            let line = text[..range.start].rfind('\n').map_or(0, |at| at + 1);
            if starts.last() != Some(&line) {
                starts.push(line);
            }
        }
        match event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    // What comes before the first block renders nothing, but may define what its links mean.
    if let Some(first) = starts.first_mut() {
        *first = 0;
    }
    starts
}
