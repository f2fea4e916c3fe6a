//! Tables: columns as wide as their cells where there is room, narrower where there is not, and a list of
//! rows where no column would be left wide enough to read.

use pulldown_cmark::Alignment;

use crate::text::{Line, Span, Style, wrap};

/// What stands between two columns.
const BETWEEN: &str = " \u{2502} ";
const BETWEEN_COLUMNS: usize = 3;
/// Columns that a shrunken column keeps.
const MIN_COLUMN: usize = 6;

/// The cells of a table; the first row is its head.
pub(crate) struct Table {
    alignments: Vec<Alignment>,
    rows: Vec<Vec<Vec<Span>>>,
}

impl Table {
    pub fn new(alignments: Vec<Alignment>) -> Self {
        Self { alignments, rows: Vec::new() }
    }

    pub fn begin_row(&mut self) {
        self.rows.push(Vec::new());
    }

    pub fn in_head(&self) -> bool {
        self.rows.len() <= 1
    }

    pub fn push(&mut self, cell: Vec<Span>) {
        if let Some(row) = self.rows.last_mut() {
            row.push(cell);
        }
    }

    /// The lines of the table in so many columns of the terminal.
    pub fn lines(&self, width: usize, colour: bool) -> Vec<Line> {
        let n_columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let natural: Vec<usize> = (0..n_columns)
            .map(|column| self.rows.iter().map(|row| width_of(row.get(column))).max().unwrap_or(0))
            .map(|width| width.max(1))
            .collect();
        let between = BETWEEN_COLUMNS * n_columns.saturating_sub(1);
        match shrink(&natural, width.saturating_sub(between)) {
            Some(widths) => self.grid(&widths),
            None => self.records(width, colour),
        }
    }

    fn grid(&self, widths: &[usize]) -> Vec<Line> {
        let mut lines = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<Vec<Line>> = widths
                .iter()
                .enumerate()
                .map(|(column, &width)| match row.get(column) {
                    Some(cell) => wrap(cell, width),
                    None => Vec::new(),
                })
                .collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            for at in 0..height {
                let mut line = Line::default();
                for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
                    if column > 0 {
                        line.push(BETWEEN, Style::DIM);
                    }
                    let piece = cell.get(at).cloned().unwrap_or_default();
                    let space = width.saturating_sub(piece.width());
                    let left = match self.alignments.get(column) {
                        Some(Alignment::Right) => space,
                        Some(Alignment::Center) => space / 2,
                        _ => 0,
                    };
                    line.push(&" ".repeat(left), Style::NONE);
                    for span in piece.spans {
                        line.push(&span.text, span.style);
                    }
                    line.push(&" ".repeat(space - left), Style::NONE);
                }
                lines.push(line);
            }
            if index == 0 {
                let rule: Vec<String> =
                    widths.iter().map(|&width| "\u{2500}".repeat(width)).collect();
                lines.push(Line::new(rule.join("\u{2500}\u{253c}\u{2500}"), Style::DIM));
            }
        }
        lines
    }

    /// Each row as a list of its cells with the names of their columns.
    fn records(&self, width: usize, colour: bool) -> Vec<Line> {
        let Some((head, rows)) = self.rows.split_first() else { return Vec::new() };
        let mut lines = Vec::new();
        for row in rows {
            if !lines.is_empty() {
                lines.push(Line::new("\u{2500}".repeat(width.min(8)), Style::DIM));
            }
            for (name, cell) in head.iter().zip(row) {
                let mut spans = name.clone();
                if !name.is_empty() {
                    let style = if colour { Style::BOLD } else { Style::NONE };
                    spans.push(Span::new(": ", style));
                }
                spans.extend(cell.iter().cloned());
                lines.extend(wrap(&spans, width));
            }
        }
        if rows.is_empty() {
            for name in head {
                lines.extend(wrap(name, width));
            }
        }
        lines
    }
}

fn width_of(cell: Option<&Vec<Span>>) -> usize {
    let lines = cell.map(|cell| wrap(cell, usize::MAX)).unwrap_or_default();
    lines.iter().map(Line::width).max().unwrap_or(0)
}

/// Widths of columns that together fit: wide ones give first. `None` if some would be too narrow to read.
fn shrink(natural: &[usize], room: usize) -> Option<Vec<usize>> {
    let total = |limit: usize| natural.iter().map(|&width| width.min(limit)).sum::<usize>();
    if total(usize::MAX) <= room {
        return Some(natural.to_vec());
    }
    let limit = (1..=room).rev().find(|&limit| total(limit) <= room)?;
    if limit < MIN_COLUMN {
        return None;
    }
    let mut widths: Vec<usize> = natural.iter().map(|&width| width.min(limit)).collect();
    // What the division left over goes to columns that want it, from the left.
    let mut left = room - total(limit);
    for (width, &wanted) in widths.iter_mut().zip(natural) {
        if left > 0 && *width < wanted {
            *width += 1;
            left -= 1;
        }
    }
    Some(widths)
}
