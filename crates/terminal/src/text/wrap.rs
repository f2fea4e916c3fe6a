//! Breaking text into lines of a width.

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use crate::text::{Line, Span, Style};

/// Columns between tab stops.
const TAB: usize = 4;

/// Lines of at most `width` columns: broken at spaces and around wide characters, words that are longer than a
/// line anywhere. A line feed in a span begins a line. There is always a line.
pub fn wrap(spans: &[Span], width: usize) -> Vec<Line> {
    let mut wrapper = Wrapper::new(width);
    for span in spans {
        for piece in span.text.graphemes(true) {
            match piece {
                "\n" => wrapper.line_feed(),
                " " | "\t" => wrapper.space(),
                _ => wrapper.push(piece, span.style),
            }
        }
    }
    wrapper.finish()
}

/// Lines of at most `width` columns of text whose spaces matter, such as code: broken only where the width ends.
pub fn wrap_hard(text: &str, style: Style, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for source in text.split('\n') {
        let mut line = Line::default();
        let mut column = 0;
        for piece in source.graphemes(true) {
            let spaces = " ".repeat((TAB - column % TAB).min(width));
            let piece = if piece == "\t" { spaces.as_str() } else { piece };
            if column + piece.width() > width && column > 0 {
                lines.push(std::mem::take(&mut line));
                column = 0;
            }
            line.push(piece, style);
            column += piece.width();
        }
        lines.push(line);
    }
    lines
}

struct Wrapper {
    width: usize,
    lines: Vec<Line>,
    line: Line,
    column: usize,
    /// Spaces before the next word.
    spaces: usize,
    /// The word that is being gathered.
    word: Vec<(String, Style)>,
    word_width: usize,
}

impl Wrapper {
    fn new(width: usize) -> Self {
        Self {
            width: width.max(2),
            lines: Vec::new(),
            line: Line::default(),
            column: 0,
            spaces: 0,
            word: Vec::new(),
            word_width: 0,
        }
    }

    fn push(&mut self, piece: &str, style: Style) {
        let width = piece.width();
        // Before and after a wide character a line may end.
        if width > 1 {
            self.word_end();
        }
        self.word.push((piece.to_owned(), style));
        self.word_width += width;
        if width > 1 {
            self.word_end();
        }
    }

    fn space(&mut self) {
        self.word_end();
        self.spaces += 1;
    }

    /// Puts the word on this line or the next.
    fn word_end(&mut self) {
        if self.word.is_empty() {
            return;
        }
        if self.column + self.spaces + self.word_width > self.width && self.column > 0 {
            self.end_line();
        }
        let room = (self.width - 1).saturating_sub(self.column);
        let spaces = std::mem::take(&mut self.spaces).min(room);
        if spaces > 0 {
            // A space between two words of a style, such as underlined ones, has that style.
            let first = self.word[0].1;
            let same = self.line.spans.last().is_some_and(|last| last.style == first);
            let style = if same { first } else { Style::NONE };
            self.line.push(&" ".repeat(spaces), style);
            self.column += spaces;
        }
        self.word_width = 0;
        for (piece, style) in std::mem::take(&mut self.word) {
            let width = piece.width();
            if self.column + width > self.width && self.column > 0 {
                self.end_line();
            }
            self.line.push(&piece, style);
            self.column += width;
        }
    }

    /// Ends a full line; spaces at the break vanish.
    fn end_line(&mut self) {
        self.lines.push(std::mem::take(&mut self.line));
        self.column = 0;
        self.spaces = 0;
    }

    fn line_feed(&mut self) {
        self.word_end();
        self.end_line();
    }

    fn finish(mut self) -> Vec<Line> {
        self.line_feed();
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, width: usize) -> Vec<String> {
        let lines = wrap(&[Span::new(text, Style::NONE)], width);
        lines.iter().map(|line| line.to_text(false)).collect()
    }

    #[test]
    fn words_move_to_the_next_line_whole() {
        assert_eq!(lines("the quick brown fox", 10), ["the quick", "brown fox"]);
        assert_eq!(lines("a\n\nb", 10), ["a", "", "b"]);
        assert_eq!(lines("", 10), [""]);
        assert_eq!(lines("abcdefghijklm no", 5), ["abcde", "fghij", "klm", "no"]);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let text = "\u{4f60}\u{597d}\u{4e16}\u{754c}";
        assert_eq!(lines(text, 5), ["\u{4f60}\u{597d}", "\u{4e16}\u{754c}"]);
        assert_eq!(wrap(&[Span::new(text, Style::NONE)], 80)[0].width(), 8);
        // A family is one sign of two columns, and is not torn.
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}";
        assert_eq!(lines(&format!("{family}{family}"), 3), [family, family]);
    }

    #[test]
    fn a_word_of_several_styles_is_one_word() {
        let spans = [
            Span::new("one tw", Style::NONE),
            Span::new("o", Style::BOLD),
            Span::new(" three", Style::NONE),
        ];
        let lines: Vec<_> = wrap(&spans, 7).iter().map(|line| line.to_text(true)).collect();
        assert_eq!(lines, ["one tw\u{1b}[1mo\u{1b}[0m", "three"]);
    }

    #[test]
    fn code_keeps_its_spaces() {
        let lines = wrap_hard("\tif x:\n  y  z", Style::NONE, 8);
        let lines: Vec<_> = lines.iter().map(|line| line.to_text(false)).collect();
        assert_eq!(lines, ["    if x", ":", "  y  z"]);
    }
}
