//! Blocks: each becomes lines, and what holds blocks puts something before theirs.

use std::iter::Peekable;

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Parser, Tag, TagEnd};

use crate::markdown::inline::Inline;
use crate::markdown::table::Table;
use crate::markdown::{Look, OPTIONS};
use crate::text::{Colour, Line, Style, one_line, wrap, wrap_hard};

/// Blocks inside blocks that are shown so; deeper ones are shown as if they were not nested.
const MAX_DEPTH: usize = 16;
/// Columns that a nested block keeps: below that it is not indented any more.
const MIN_WIDTH: usize = 12;

/// The lines of the blocks in `text`.
pub(crate) fn render(text: &str, look: Look) -> Vec<Line> {
    let events = Parser::new_ext(text, OPTIONS).peekable();
    Blocks { events, colour: look.colour }.blocks(look.width.max(2), 0, false)
}

struct Blocks<'a> {
    events: Peekable<Parser<'a>>,
    colour: bool,
}

impl Blocks<'_> {
    /// Blocks up to the end of what holds them, which is taken, too.
    fn blocks(&mut self, width: usize, depth: usize, in_item: bool) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        // Whether the block before was a list.
        let mut after_list = false;
        // Ends of what is shown as if it were not there.
        let mut open = 0;
        while let Some(event) = self.events.next() {
            let is_list = matches!(event, Event::Start(Tag::List(_)));
            let block = match event {
                Event::End(_) if open > 0 => {
                    open -= 1;
                    continue;
                }
                Event::End(_) => break,
                Event::Start(Tag::Paragraph) => self.paragraph(width, Style::NONE),
                Event::Start(Tag::Heading { level, .. }) => self.heading(level, width),
                Event::Start(Tag::CodeBlock(kind)) => self.code(&kind, width),
                Event::Start(Tag::Table(alignments)) => {
                    let mut table = Table::new(alignments);
                    self.cells(&mut table);
                    table.lines(width, self.colour)
                }
                Event::Start(Tag::HtmlBlock) => self.html(width),
                Event::Start(Tag::BlockQuote(_)) if depth < MAX_DEPTH => self.quote(width, depth),
                Event::Start(Tag::List(first)) if depth < MAX_DEPTH => {
                    self.list(first, width, depth)
                }
                Event::Rule => vec![Line::new("\u{2500}".repeat(width.min(40)), Style::DIM)],
                Event::Start(tag) if !is_inline(&tag) => {
                    open += 1;
                    continue;
                }
                // The text of an item without paragraphs.
                event => self.loose_text(event, width),
            };
            if block.is_empty() {
                continue;
            }
            let tight = in_item && (is_list || after_list);
            if !lines.is_empty() && !tight {
                lines.push(Line::default());
            }
            lines.extend(block);
            after_list = is_list;
        }
        lines
    }

    /// Text up to the end of its block.
    fn paragraph(&mut self, width: usize, style: Style) -> Vec<Line> {
        let mut inline = Inline::new(style, self.colour);
        for event in self.events.by_ref() {
            if !inline.event(&event) {
                break;
            }
        }
        wrap(&inline.finish(), width)
    }

    /// Text up to the next block or the end of what holds it.
    fn loose_text(&mut self, first: Event<'_>, width: usize) -> Vec<Line> {
        let mut inline = Inline::new(Style::NONE, self.colour);
        inline.event(&first);
        while let Some(event) = self.events.peek() {
            if !inline.event(event) {
                break;
            }
            self.events.next();
        }
        if inline.is_empty() { Vec::new() } else { wrap(&inline.finish(), width) }
    }

    fn heading(&mut self, level: HeadingLevel, width: usize) -> Vec<Line> {
        let marks = format!("{} ", "#".repeat(level as usize));
        let (width, marks) = narrowed(width, &marks);
        let lines = self.paragraph(width, Style::BOLD);
        lines.into_iter().map(|line| line.after(marks, Style::DIM)).collect()
    }

    fn code(&mut self, kind: &CodeBlockKind<'_>, width: usize) -> Vec<Line> {
        let language = match kind {
            CodeBlockKind::Fenced(info) => info.split_whitespace().next().unwrap_or_default(),
            CodeBlockKind::Indented => "",
        };
        let mut code = String::new();
        for event in self.events.by_ref() {
            match event {
                Event::Text(text) => code.push_str(&text),
                _ => break,
            }
        }
        let style = Style::colour(Colour::Cyan);
        let fence = |text: String| wrap_hard(&text, Style::DIM, width);
        let mut lines = fence(format!("```{}", one_line(language)));
        if !code.is_empty() {
            lines.extend(wrap_hard(code.strip_suffix('\n').unwrap_or(&code), style, width));
        }
        lines.extend(fence("```".to_owned()));
        lines
    }

    /// HTML is shown as it is written.
    fn html(&mut self, width: usize) -> Vec<Line> {
        let mut html = String::new();
        for event in self.events.by_ref() {
            match event {
                Event::Html(text) | Event::Text(text) | Event::InlineHtml(text) => {
                    html.push_str(&text);
                }
                _ => break,
            }
        }
        wrap_hard(html.trim_end_matches('\n'), Style::NONE, width)
    }

    fn quote(&mut self, width: usize, depth: usize) -> Vec<Line> {
        let (width, mark) = narrowed(width, if self.colour { "\u{2502} " } else { "> " });
        let lines = self.blocks(width, depth + 1, false);
        lines.into_iter().map(|line| line.after(mark, Style::DIM)).collect()
    }

    /// A list; items follow each other without empty lines, however they were written, so that
    /// an item never moves when the next one comes.
    fn list(&mut self, first: Option<u64>, width: usize, depth: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut number = first;
        while let Some(Event::Start(Tag::Item)) = self.events.next() {
            let mark = match number {
                Some(number) => format!("{number}. "),
                None => "\u{2022} ".to_owned(),
            };
            number = number.map(|number| number.saturating_add(1));
            let indent = " ".repeat(mark.chars().count());
            let (inner, indent) = narrowed(width, &indent);
            let mut item = self.blocks(inner, depth + 1, true).into_iter();
            let begin = item.next().unwrap_or_default();
            let mark = if indent.is_empty() { "" } else { &mark };
            lines.push(begin.after(mark, Style::NONE));
            lines.extend(item.map(|line| line.after(indent, Style::NONE)));
        }
        lines
    }

    /// The cells of a table, up to its end.
    fn cells(&mut self, table: &mut Table) {
        while let Some(event) = self.events.next() {
            match event {
                Event::End(TagEnd::Table) => break,
                Event::Start(Tag::TableHead | Tag::TableRow) => table.begin_row(),
                Event::Start(Tag::TableCell) => {
                    let style = if table.in_head() { Style::BOLD } else { Style::NONE };
                    let mut inline = Inline::new(style, self.colour);
                    for event in self.events.by_ref() {
                        if !inline.event(&event) {
                            break;
                        }
                    }
                    table.push(inline.finish());
                }
                _ => {}
            }
        }
    }
}

/// What is left of a width after something is put before each line: nothing is, where too little would be left.
fn narrowed(width: usize, before: &str) -> (usize, &str) {
    let columns = before.chars().count();
    if width >= MIN_WIDTH + columns { (width - columns, before) } else { (width, "") }
}

fn is_inline(tag: &Tag<'_>) -> bool {
    matches!(
        tag,
        Tag::Emphasis | Tag::Strong | Tag::Strikethrough | Tag::Link { .. } | Tag::Image { .. }
    )
}
