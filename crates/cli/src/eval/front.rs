//! The picture: quality against bytes.

use anyhow::bail;
use eval::{Estimate, Results, Summary};

use crate::eval::{BytesArg, tables};
use crate::svg::{Anchor, COLOURS, Svg, number, text_width, ticks};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;

/// A run: bytes of a token, in MB, and perplexity.
struct Point {
    name: String,
    megabytes: f64,
    perplexity: Estimate,
}

/// Perplexity against routed-expert bytes a token, with intervals; a line joins the runs that no other run
/// beats in both.
pub fn plot(all: &[Results], summaries: &[Summary], bytes: BytesArg) -> anyhow::Result<String> {
    let mut points = Vec::new();
    for (results, summary) in all.iter().zip(summaries) {
        let Some(texts) = summary.all_texts() else {
            bail!("{} has no texts to plot\nhint: evaluate with --text", results.facts.model);
        };
        let of_token = match bytes {
            BytesArg::Used => summary.text_cost.used_bytes_per_token(),
            BytesArg::Read => summary.text_cost.read_bytes_per_token(),
        };
        let name = tables::name(results);
        let name = name.rsplit_once('/').map_or(name.as_str(), |(_, name)| name).to_owned();
        points.push(Point { name, megabytes: of_token / 1e6, perplexity: texts.perplexity });
    }
    points.sort_by(|a, b| a.megabytes.total_cmp(&b.megabytes));
    Ok(draw(&points, bytes))
}

fn draw(points: &[Point], bytes: BytesArg) -> String {
    let (left, right, top, bottom) = (72.0, WIDTH - 32.0, 72.0, HEIGHT - 58.0);
    let mut svg = Svg::new(WIDTH, HEIGHT, "Perplexity by bytes of routed experts a token");
    svg.text((24.0, 30.0), Anchor::Start, "title", "Quality against bytes");
    let words =
        "95 % intervals; the line joins runs that no other beats in both; lower left is better";
    svg.text((24.0, 50.0), Anchor::Start, "small", words);

    let widest = points.iter().map(|point| point.megabytes).fold(0.0, f64::max);
    let x_ticks = ticks(widest * 1.05);
    let lowest = points.iter().map(|it| it.perplexity.interval.low).fold(f64::MAX, f64::min);
    let highest = points.iter().map(|it| it.perplexity.interval.high).fold(0.0, f64::max);
    let step = ticks((highest - lowest).max(1e-3)).get(1).copied().unwrap_or(1.0);
    let (first, last) = ((lowest / step).floor() * step, (highest / step).ceil() * step);
    let x = |mb: f64| left + mb / x_ticks.last().copied().unwrap_or(1.0) * (right - left);
    let y = |value: f64| bottom - (value - first) / (last - first).max(step) * (bottom - top);
    for index in 0..=((last - first) / step).round() as usize {
        let tick = first + index as f64 * step;
        svg.line("grid", (left, y(tick)), (right, y(tick)));
        svg.text((left - 8.0, y(tick) + 4.0), Anchor::End, "small", &format!("{tick:.2}"));
    }
    for &tick in &x_ticks {
        svg.line("axis", (x(tick), bottom), (x(tick), bottom + 5.0));
        svg.text((x(tick), bottom + 20.0), Anchor::Middle, "small", &number(tick));
    }
    svg.line("axis", (left, bottom), (right, bottom));
    let what = match bytes {
        BytesArg::Used => "routed-expert bytes used by a token, MB",
        BytesArg::Read => "bytes read for a token, MB",
    };
    svg.text((f64::midpoint(left, right), HEIGHT - 16.0), Anchor::Middle, "", what);
    svg.upright_text((20.0, f64::midpoint(top, bottom)), "perplexity");

    // From the fewest bytes on, whatever is better than all before it.
    let mut best = f64::MAX;
    let mut front = Vec::new();
    for point in points {
        if point.perplexity.value < best {
            best = point.perplexity.value;
            front.push((x(point.megabytes), y(best)));
        }
    }
    svg.path(COLOURS[0], &front);
    let mut labels = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let colour = COLOURS[1 + index % (COLOURS.len() - 1)];
        let Estimate { value, interval } = point.perplexity;
        let at = (x(point.megabytes), y(value));
        let (low, high) = (y(interval.low), y(interval.high));
        svg.path(colour, &[(at.0, low), (at.0, high)]);
        svg.dot(colour, at);
        let width = text_width(&point.name);
        let fits = at.0 + 10.0 + width < right;
        let (x, begin, anchor) = match fits {
            true => (at.0 + 10.0, at.0 + 10.0, Anchor::Start),
            false => (at.0 - 10.0, at.0 - 10.0 - width, Anchor::End),
        };
        let y = free_line(&mut labels, (begin, begin + width), at.1 - 6.0);
        svg.text((x, y), anchor, "small", &point.name);
    }
    svg.finish()
}

/// The base line nearest to `y`, rather above it, where a label from `begin` to `end` covers no other.
fn free_line(labels: &mut Vec<(f64, f64, f64)>, (begin, end): (f64, f64), y: f64) -> f64 {
    const LINE: f64 = 15.0;
    let is_free = |line: f64| {
        labels.iter().all(|&(other_begin, other_end, other)| {
            (other - line).abs() >= LINE - 1.0 || end < other_begin || other_end < begin
        })
    };
    let lines = (0..20).flat_map(|n| [y - f64::from(n) * LINE, y + f64::from(n) * LINE]);
    let line = lines.into_iter().find(|&line| is_free(line)).unwrap_or(y);
    labels.push((begin, end, line));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cover_no_others() {
        let mut labels = Vec::new();
        assert_eq!(free_line(&mut labels, (0.0, 50.0), 100.0), 100.0);
        assert_eq!(free_line(&mut labels, (40.0, 90.0), 104.0), 119.0);
        assert_eq!(free_line(&mut labels, (60.0, 90.0), 100.0), 100.0);
        assert_eq!(free_line(&mut labels, (45.0, 65.0), 100.0), 85.0);
    }
}
