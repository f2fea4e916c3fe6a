//! Plots inside a page: SVG whose colours come from the page's style, with a strip for each place on the
//! x-axis that shows its numbers when it is pointed at or reached by arrow keys.
//!
//! Every plot's numbers also stand in a table that can be opened below it.

mod grid;

pub use grid::{heat_map, histograms};

use std::fmt::Write;

use crate::svg::{escape, number};

/// Size of a plot and its inside.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 606.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 274.0;

/// How a line looks.
#[derive(Clone, Copy, PartialEq)]
pub enum Stroke {
    Plain,
    Bold,
    Dashed,
    /// One of many, without a name.
    Faint,
}

/// A line of a plot.
pub struct Line {
    pub name: String,
    /// A colour of the page, from 1.
    pub colour: usize,
    pub stroke: Stroke,
    pub points: Vec<(f64, f64)>,
}

/// An axis from the first tick to the last.
pub struct Axis {
    pub label: String,
    pub ticks: Vec<(f64, String)>,
    /// Places are spread by the logarithm.
    pub is_logarithmic: bool,
}

impl Axis {
    /// An even axis of shares, from 0 to 100 %.
    pub fn shares(label: &str) -> Self {
        let ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0].map(|share| (share, percent_tick(share)));
        Self { label: label.to_owned(), ticks: ticks.to_vec(), is_logarithmic: false }
    }

    /// An even axis with round ticks.
    pub fn even(label: &str, ticks: &[f64]) -> Self {
        let ticks = ticks.iter().map(|&tick| (tick, number(tick)));
        Self { label: label.to_owned(), ticks: ticks.collect(), is_logarithmic: false }
    }

    /// Where a value lies, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let ends = [self.ticks.first(), self.ticks.last()].map(|tick| tick.map_or(0.0, |t| t.0));
        let spread = |value: f64| if self.is_logarithmic { value.max(1e-9).ln() } else { value };
        let [first, last] = ends.map(spread);
        if last > first { (spread(value) - first) / (last - first) } else { 0.0 }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.place(value).clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.place(value).clamp(0.0, 1.0) * (BOTTOM - TOP)
    }
}

/// The numbers of a place on the x-axis.
pub struct Place {
    pub x: f64,
    pub name: String,
    /// One for each column of [`Chart::columns`].
    pub values: Vec<String>,
}

/// What all plots have.
pub struct Chart {
    pub title: String,
    /// What the picture shows, for those who cannot see it.
    pub description: String,
    pub x: Axis,
    pub y: Axis,
    /// Names of the columns of the numbers; the first is that of the places.
    pub columns: Vec<String>,
    pub places: Vec<Place>,
}

/// A segment of a stacked bar.
pub struct Segment {
    pub colour: usize,
    pub height: f64,
}

/// Lines over an axis.
pub fn lines(chart: &Chart, lines: &[Line]) -> String {
    let mut body = String::new();
    for Line { colour, stroke, points, .. } in lines {
        let class = match stroke {
            Stroke::Plain => "line",
            Stroke::Bold => "line bold",
            Stroke::Dashed => "line dashed",
            Stroke::Faint => "line faint",
        };
        let points: Vec<String> = points
            .iter()
            .map(|&(x, y)| format!("{:.1},{:.1}", chart.x.x(x), chart.y.y(y)))
            .collect();
        push(
            &mut body,
            &format!("<polyline class=\"{class} c{colour}\" points=\"{}\"/>", points.join(" ")),
        );
    }
    let marks = |place: &Place| {
        let mut marks = String::new();
        for line in lines.iter().filter(|line| line.stroke != Stroke::Faint) {
            let near = line.points.iter().find(|(x, _)| (x - place.x).abs() < 1e-9);
            if let Some(&(x, y)) = near {
                let (x, y) = (chart.x.x(x), chart.y.y(y));
                write!(
                    marks,
                    "<circle class=\"mark f{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>",
                    line.colour
                )
                .expect("a String takes all");
            }
        }
        marks
    };
    let legend: Vec<(String, usize, bool)> = lines
        .iter()
        .filter(|line| line.stroke != Stroke::Faint)
        .map(|line| (line.name.clone(), line.colour, line.stroke == Stroke::Dashed))
        .collect();
    figure(chart, &body, &legend, marks, None)
}

/// Groups of stacked bars: for each place bars side by side, each of segments from below.
pub fn bars(chart: &Chart, bars: &[Vec<Vec<Segment>>], legend: &[(String, usize)]) -> String {
    let width = (RIGHT - LEFT) / bars.len().max(1) as f64;
    let mut body = String::new();
    for (place, group) in bars.iter().enumerate() {
        let left = LEFT + place as f64 * width;
        let n_bars = group.len().max(1) as f64;
        let bar_width = (0.72 * width / n_bars).min(46.0);
        let begin = left + (width - bar_width * n_bars) / 2.0;
        for (index, segments) in group.iter().enumerate() {
            let x = begin + index as f64 * bar_width;
            let mut base = 0.0;
            for &Segment { colour, height } in segments {
                let (low, high) = (chart.y.y(base), chart.y.y(base + height));
                push(
                    &mut body,
                    &format!(
                        "<rect class=\"f{colour}\" x=\"{x:.1}\" y=\"{high:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                        (bar_width - 2.0).max(1.0),
                        (low - high).max(0.0),
                    ),
                );
                base += height;
            }
        }
    }
    let legend: Vec<_> =
        legend.iter().map(|(name, colour)| (name.clone(), *colour, false)).collect();
    figure(chart, &body, &legend, |_| String::new(), Some(bars.len()))
}

/// A plot with its frame, strips, names and numbers. With `n_bars`, places are that many equal strips.
fn figure(
    chart: &Chart,
    body: &str,
    legend: &[(String, usize, bool)],
    marks: impl Fn(&Place) -> String,
    n_bars: Option<usize>,
) -> String {
    let mut svg = String::new();
    for (value, label) in &chart.y.ticks {
        let y = chart.y.y(*value);
        push(
            &mut svg,
            &format!(
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>"
            ),
        );
        push(
            &mut svg,
            &format!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(label)
            ),
        );
    }
    let center = |index: usize, n: usize| LEFT + (index as f64 + 0.5) * (RIGHT - LEFT) / n as f64;
    match n_bars {
        Some(n) => {
            for (index, place) in chart.places.iter().enumerate() {
                push(
                    &mut svg,
                    &format!(
                        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                        center(index, n),
                        BOTTOM + 20.0,
                        escape(&place.name)
                    ),
                );
            }
        }
        None => {
            for (value, label) in &chart.x.ticks {
                push(
                    &mut svg,
                    &format!(
                        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                        chart.x.x(*value),
                        BOTTOM + 20.0,
                        escape(label)
                    ),
                );
            }
        }
    }
    push(
        &mut svg,
        &format!(
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{BOTTOM}\" x2=\"{RIGHT}\" y2=\"{BOTTOM}\"/>"
        ),
    );
    push(
        &mut svg,
        &format!(
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, RIGHT),
            HEIGHT - 8.0,
            escape(&chart.x.label)
        ),
    );
    svg.push_str(body);

    let xs: Vec<f64> = (0..chart.places.len())
        .map(|index| match n_bars {
            Some(n) => center(index, n),
            None => chart.x.x(chart.places[index].x),
        })
        .collect();
    for (index, place) in chart.places.iter().enumerate() {
        // A strip reaches half of the way to its neighbours.
        let x = xs[index];
        let left = if index == 0 { LEFT } else { f64::midpoint(xs[index - 1], x) };
        let right = xs.get(index + 1).map_or(RIGHT, |next| f64::midpoint(x, *next));
        let tip = tip(chart, place);
        let guide = if n_bars.is_some() {
            String::new()
        } else {
            format!(
                "<line class=\"guide\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\"/>"
            )
        };
        push(
            &mut svg,
            &format!(
                "<g class=\"place\" data-tip=\"{tip}\"><title>{tip}</title><rect x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>{guide}{}</g>",
                (right - left).max(0.5),
                BOTTOM - TOP,
                marks(place),
            ),
        );
    }
    frame(
        chart,
        &format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"group\" tabindex=\"0\" aria-label=\"{}\">\n{svg}</svg>",
            escape(&chart.description),
        ),
        legend,
    )
}

fn tip(chart: &Chart, place: &Place) -> String {
    let mut tip = match chart.columns.first() {
        Some(name) if !name.is_empty() => format!("{name}: {}", place.name),
        _ => place.name.clone(),
    };
    for (column, value) in chart.columns.iter().skip(1).zip(&place.values) {
        write!(tip, "\n{column}: {value}").expect("a String takes all");
    }
    // Line ends stay: the page shows one value a line.
    tip.split('\n').map(escape).collect::<Vec<_>>().join("&#10;")
}

fn frame(chart: &Chart, svg: &str, legend: &[(String, usize, bool)]) -> String {
    let mut text = format!("<figure>\n<figcaption>{}</figcaption>\n", escape(&chart.title));
    if !legend.is_empty() {
        text.push_str("<ul class=\"legend\">");
        for (name, colour, is_dashed) in legend {
            let dashed = if *is_dashed { " dashed" } else { "" };
            write!(text, "<li><i class=\"b{colour}{dashed}\"></i>{}</li>", escape(name))
                .expect("a String takes all");
        }
        text.push_str("</ul>\n");
    }
    if !chart.y.label.is_empty() {
        writeln!(text, "<p class=\"y\">{}</p>", escape(&chart.y.label))
            .expect("a String takes all");
    }
    text.push_str(svg);
    if !chart.places.is_empty() {
        text.push_str("\n<details><summary>Numbers</summary><div class=\"scroll\"><table><tr>");
        for column in &chart.columns {
            write!(text, "<th>{}</th>", escape(column)).expect("a String takes all");
        }
        text.push_str("</tr>\n");
        for place in &chart.places {
            write!(text, "<tr><th>{}</th>", escape(&place.name)).expect("a String takes all");
            for value in &place.values {
                write!(text, "<td>{}</td>", escape(value)).expect("a String takes all");
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</table></div></details>");
    }
    text.push_str("\n</figure>\n");
    text
}

fn percent_tick(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn push(text: &mut String, element: &str) {
    text.push_str(element);
    text.push('\n');
}
