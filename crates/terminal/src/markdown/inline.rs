//! Text inside a block: emphasis, code, links.

use pulldown_cmark::{Event, Tag, TagEnd};

use crate::text::{Colour, Span, Style, clean, one_line};

/// Gathers the pieces of a paragraph, a heading or a cell.
pub(crate) struct Inline {
    colour: bool,
    base: Style,
    spans: Vec<Span>,
    bold: usize,
    italic: usize,
    strike: usize,
    /// Links and images that are open: where their text begins, and where they lead.
    links: Vec<(usize, String)>,
}

impl Inline {
    pub fn new(base: Style, colour: bool) -> Self {
        let (bold, italic, strike) = (0, 0, 0);
        Self { colour, base, spans: Vec::new(), bold, italic, strike, links: Vec::new() }
    }

    pub fn finish(self) -> Vec<Span> {
        self.spans
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    pub fn text(&mut self, text: &str) {
        let style = Style {
            bold: self.base.bold || self.bold > 0,
            italic: self.base.italic || self.italic > 0,
            strike: self.base.strike || self.strike > 0,
            underline: self.base.underline || !self.links.is_empty(),
            ..self.base
        };
        // Entities give any character, after the source was cleaned.
        self.spans.push(Span::new(clean(text), style));
    }

    /// Takes what can be inside a line; tells whether it was such.
    pub fn event(&mut self, event: &Event<'_>) -> bool {
        match event {
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => self.text(text),
            Event::Code(code) if self.colour => {
                let style = Style { colour: Some(Colour::Cyan), ..self.base };
                self.spans.push(Span::new(code.as_ref(), style));
            }
            Event::Code(code) => self.text(&format!("`{code}`")),
            Event::SoftBreak => self.text(" "),
            Event::HardBreak => self.text("\n"),
            Event::TaskListMarker(done) => self.text(if *done { "[x] " } else { "[ ] " }),
            Event::Start(Tag::Strong) => {
                self.mark("**");
                self.bold += 1;
            }
            Event::Start(Tag::Emphasis) => {
                self.mark("*");
                self.italic += 1;
            }
            Event::Start(Tag::Strikethrough) => {
                self.mark("~~");
                self.strike += 1;
            }
            Event::End(TagEnd::Strong) => {
                self.bold = self.bold.saturating_sub(1);
                self.mark("**");
            }
            Event::End(TagEnd::Emphasis) => {
                self.italic = self.italic.saturating_sub(1);
                self.mark("*");
            }
            Event::End(TagEnd::Strikethrough) => {
                self.strike = self.strike.saturating_sub(1);
                self.mark("~~");
            }
            Event::Start(Tag::Link { dest_url, .. }) => {
                self.links.push((self.spans.len(), dest_url.to_string()));
            }
            Event::Start(Tag::Image { dest_url, .. }) => {
                self.text("[image: ");
                self.links.push((self.spans.len(), dest_url.to_string()));
            }
            Event::End(TagEnd::Link) => self.end_link(""),
            Event::End(TagEnd::Image) => self.end_link("]"),
            _ => return false,
        }
        true
    }

    /// Shows a mark where a style cannot be seen.
    fn mark(&mut self, mark: &str) {
        if !self.colour {
            self.text(mark);
        }
    }

    /// Shows where a link leads, unless its text says it.
    fn end_link(&mut self, close: &str) {
        let Some((start, target)) = self.links.pop() else { return };
        if !close.is_empty() {
            self.text(close);
        }
        let shown: String = self.spans[start..].iter().map(|span| span.text.as_str()).collect();
        let known = shown == target || target.strip_prefix("mailto:") == Some(shown.as_str());
        if !known && !target.is_empty() {
            let style = Style { dim: true, ..self.base };
            self.spans.push(Span::new(format!(" ({})", one_line(&target)), style));
        }
    }
}
