//! The plots: speed against the share of experts in memory, and where a token's time goes.

use engine::Phase;

use crate::bench::results::{BudgetResult, Cell, Results, Spread};
use crate::svg::{Anchor, COLOURS, Svg, number, text_width, ticks};
use crate::timing;

const WIDTH: f64 = 760.0;
/// How far the limit is shown above the fastest speed.
const MOST_ABOVE: f64 = 2.2;

/// What stands above the plots.
pub struct Titles {
    /// The model.
    pub model: String,
    /// Machine and date.
    pub machine: String,
}

/// Warm decoding speed against the share of routed experts in memory, a line for each context, with
/// the least and largest of the repeats; dashed the limit that memory and drive set.
pub fn retention(results: &Results, titles: &Titles) -> String {
    const HEIGHT: f64 = 460.0;
    let (left, right, top, bottom) = (64.0, WIDTH - 28.0, 104.0, HEIGHT - 58.0);
    let mut svg =
        Svg::new(WIDTH, HEIGHT, &format!("Speed of {} by experts in memory", titles.model));
    head(&mut svg, &format!("{}: decoding speed by experts in memory", titles.model), titles);

    let series = series(results);
    let points = || series.iter().flat_map(|series| &series.points);
    let fastest = points().map(|point| point.speed.max).fold(0.0, f64::max);
    let limit = points().map(|point| point.limit).fold(0.0, f64::max);
    // A limit far above all speeds would press them onto the axis; it is cut off instead.
    let ticks = ticks(limit.min(MOST_ABOVE * fastest).max(1.02 * fastest));
    let top_tick = ticks.last().copied().unwrap_or(1.0);
    let x = |share: f64| left + share * (right - left);
    let y = |speed: f64| bottom - speed / top_tick * (bottom - top);
    for &tick in &ticks {
        svg.line("grid", (left, y(tick)), (right, y(tick)));
        svg.text((left - 8.0, y(tick) + 4.0), Anchor::End, "small", &number(tick));
    }
    for percent in [0, 20, 40, 60, 80, 100] {
        let x = x(f64::from(percent) / 100.0);
        svg.line("axis", (x, bottom), (x, bottom + 5.0));
        svg.text((x, bottom + 20.0), Anchor::Middle, "small", &percent.to_string());
    }
    svg.line("axis", (left, bottom), (right, bottom));
    let middle = f64::midpoint(left, right);
    svg.text((middle, HEIGHT - 16.0), Anchor::Middle, "", "routed experts in memory, %");
    svg.upright_text((20.0, f64::midpoint(top, bottom)), "tokens per second");

    svg.clip((left, top), right - left, bottom - top);
    let mut legend = Legend::new(left, 74.0, right);
    for (index, Series { context, points }) in series.iter().enumerate() {
        let colour = COLOURS[[1, 6, 4, 7, 3, 2][index % 6]];
        let limits: Vec<_> = points.iter().map(|p| (x(p.share), y(p.limit))).collect();
        svg.clipped_dashes(colour, &limits);
        let medians: Vec<_> = points.iter().map(|p| (x(p.share), y(p.speed.median))).collect();
        svg.path(colour, &medians);
        for (point, &at) in points.iter().zip(&medians) {
            let (low, high) = (y(point.speed.min), y(point.speed.max));
            svg.path(colour, &[(at.0, low), (at.0, high)]);
            for end in [low, high] {
                svg.path(colour, &[(at.0 - 5.0, end), (at.0 + 5.0, end)]);
            }
            svg.dot(colour, at);
        }
        legend.add(&mut svg, colour, &format!("after {context} tokens"));
    }
    let cut = if limit > top_tick { ", cut off above" } else { "" };
    legend.plain(&mut svg, &format!("dashed: limit of memory and drive{cut}"));
    svg.finish()
}

/// A bar for each measurement of decoding, cut into phases.
pub fn phases(results: &Results, titles: &Titles) -> String {
    const BAR: f64 = 22.0;
    const STEP: f64 = 28.0;
    const GAP: f64 = 14.0;
    let name = |(budget, cell): (&BudgetResult, &Cell)| {
        let share = 100.0 * budget.experts_in_memory();
        let state = if cell.cold { "cold" } else { "warm" };
        format!("{share:.0} %, after {}, {state}", cell.length())
    };
    // Bars of a budget stand together.
    let mut offset = 0.0;
    let mut last: Option<&BudgetResult> = None;
    let mut bars: Vec<(String, &Cell, f64)> = Vec::new();
    for place in results.cells(true) {
        if last.replace(place.0).is_some_and(|last| !std::ptr::eq(last, place.0)) {
            offset += GAP;
        }
        bars.push((name(place), place.1, offset));
        offset += STEP;
    }
    let names = bars.iter().map(|(name, ..)| text_width(name)).fold(170.0, f64::max);
    let (left, right, top) = (names + 24.0, WIDTH - 76.0, 134.0);
    let bottom = top + offset;
    let height = bottom + 62.0;
    let mut svg = Svg::new(WIDTH, height, &format!("Time of a token of {} by phase", titles.model));
    head(&mut svg, &format!("{}: time of a decoded token by phase", titles.model), titles);

    let phases: Vec<Option<Phase>> = Phase::ALL.into_iter().map(Some).chain([None]).collect();
    let total = |cell: &Cell| phases.iter().map(|&phase| cell.phase_ms(phase)).sum::<f64>();
    let max = bars.iter().map(|(_, cell, _)| total(cell)).fold(0.0, f64::max);
    let ticks = ticks(max);
    let x = |ms: f64| left + ms / ticks.last().copied().unwrap_or(1.0) * (right - left);
    for &tick in &ticks {
        svg.line("grid", (x(tick), top - 6.0), (x(tick), bottom));
        svg.text((x(tick), bottom + 18.0), Anchor::Middle, "small", &number(tick));
    }
    svg.text(
        (f64::midpoint(left, right), height - 14.0),
        Anchor::Middle,
        "",
        "milliseconds per token",
    );
    svg.text((24.0, top - 12.0), Anchor::Start, "small", "experts in memory, context");
    for (name, cell, offset) in &bars {
        let y = top + offset;
        svg.text((left - 10.0, y + 16.0), Anchor::End, "", name);
        let mut begin = 0.0;
        for (&phase, colour) in phases.iter().zip(COLOURS) {
            let ms = cell.phase_ms(phase);
            let width = x(begin + ms) - x(begin);
            let title = format!("{}: {ms:.2} ms", label(phase));
            svg.bar(colour, (x(begin), y), width, BAR, &title);
            let inside = format!("{ms:.1}");
            if width > text_width(&inside) + 6.0 {
                let middle = (x(begin) + width / 2.0, y + 15.0);
                svg.text(middle, Anchor::Middle, "inside", &inside);
            }
            begin += ms;
        }
        svg.text((x(begin) + 8.0, y + 16.0), Anchor::Start, "small", &format!("{begin:.1} ms"));
    }
    svg.line("axis", (left, top - 6.0), (left, bottom));
    let mut legend = Legend::new(24.0, 74.0, WIDTH - 20.0);
    for (&phase, colour) in phases.iter().zip(COLOURS) {
        legend.add(&mut svg, colour, label(phase));
    }
    svg.finish()
}

/// Speeds at one context, by the share of experts in memory.
struct Series {
    context: usize,
    points: Vec<Point>,
}

struct Point {
    share: f64,
    speed: Spread,
    limit: f64,
}

fn series(results: &Results) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for budget in &results.budgets {
        for cell in budget.cells.iter().filter(|cell| cell.is_decode() && !cell.cold) {
            let Some(speed) = cell.speed() else { continue };
            let limit = cell.roofline(&budget.speeds).map_or(0.0, |(limit, ..)| limit);
            let point = Point { share: budget.experts_in_memory(), speed, limit };
            let context = cell.length();
            match all.iter_mut().find(|series| series.context == context) {
                Some(series) => series.points.push(point),
                None => all.push(Series { context, points: vec![point] }),
            }
        }
    }
    all.sort_by_key(|series| series.context);
    for series in &mut all {
        series.points.sort_by(|a, b| a.share.total_cmp(&b.share));
    }
    all
}

fn label(phase: Option<Phase>) -> &'static str {
    phase.map_or("other", timing::label)
}

fn head(svg: &mut Svg, title: &str, titles: &Titles) {
    svg.text((24.0, 30.0), Anchor::Start, "title", title);
    svg.text((24.0, 50.0), Anchor::Start, "small", &titles.machine);
}

/// Names of colours, in as many lines as they take.
struct Legend {
    left: f64,
    x: f64,
    y: f64,
    right: f64,
}

impl Legend {
    fn new(left: f64, y: f64, right: f64) -> Self {
        Self { left, x: left, y, right }
    }

    fn add(&mut self, svg: &mut Svg, colour: &str, name: &str) {
        self.make_room(18.0 + text_width(name));
        svg.bar(colour, (self.x, self.y - 10.0), 12.0, 12.0, name);
        svg.text((self.x + 18.0, self.y), Anchor::Start, "", name);
        self.x += 18.0 + text_width(name) + 18.0;
    }

    fn plain(&mut self, svg: &mut Svg, text: &str) {
        self.make_room(text_width(text));
        svg.text((self.x, self.y), Anchor::Start, "small", text);
    }

    fn make_room(&mut self, width: f64) {
        if self.x > self.left && self.x + width > self.right {
            (self.x, self.y) = (self.left, self.y + 20.0);
        }
    }
}
