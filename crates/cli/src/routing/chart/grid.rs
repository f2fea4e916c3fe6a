//! Plots with a part for each layer: shades of all, or a histogram of one at a time.

use std::fmt::Write;

use crate::routing::chart::{BOTTOM, Chart, LEFT, RIGHT, TOP, WIDTH, figure, frame, push, tip};
use crate::svg::escape;

/// Cells by row and column; each row tells its numbers. `shades` are from 0 to 1.
pub fn heat_map(chart: &Chart, shades: &[Vec<f64>]) -> String {
    let n_rows = shades.len().max(1);
    let row_height = (300.0 / n_rows as f64).clamp(6.0, 26.0);
    let bottom = TOP + row_height * n_rows as f64;
    let height = bottom + 56.0;
    let mut svg = String::new();
    for (row, (cells, place)) in shades.iter().zip(&chart.places).enumerate() {
        let y = TOP + row as f64 * row_height;
        let width = (RIGHT - LEFT) / cells.len().max(1) as f64;
        // Few enough names that they do not touch.
        let every = (22.0 / row_height).ceil() as usize;
        if row % every == 0 {
            push(
                &mut svg,
                &format!(
                    "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    LEFT - 8.0,
                    y + row_height / 2.0 + 4.0,
                    escape(&place.name)
                ),
            );
        }
        for (col, shade) in cells.iter().enumerate() {
            push(
                &mut svg,
                &format!(
                    "<rect class=\"cell\" x=\"{:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{:.1}\" opacity=\"{shade:.2}\"/>",
                    LEFT + col as f64 * width,
                    width,
                    (row_height - 1.0).max(1.0),
                ),
            );
        }
        let tip = tip(chart, place);
        push(
            &mut svg,
            &format!(
                "<g class=\"place row\" data-tip=\"{tip}\"><title>{tip}</title><rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{row_height:.1}\"/></g>",
                RIGHT - LEFT,
            ),
        );
    }
    for (value, label) in &chart.x.ticks {
        push(
            &mut svg,
            &format!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                chart.x.x(*value),
                bottom + 20.0,
                escape(label)
            ),
        );
    }
    push(
        &mut svg,
        &format!(
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, RIGHT),
            height - 8.0,
            escape(&chart.x.label)
        ),
    );
    frame(
        chart,
        &format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"group\" tabindex=\"0\" aria-label=\"{}\">\n{svg}</svg>",
            escape(&chart.description),
        ),
        &[],
    )
}

/// A histogram a layer, of which a slider shows one. All share the axes; `names` are said beside the
/// slider.
pub fn histograms(chart: &Chart, layers: &[(String, Vec<f64>)]) -> String {
    let mut body = String::new();
    for (index, (name, heights)) in layers.iter().enumerate() {
        let width = (RIGHT - LEFT) / heights.len().max(1) as f64;
        let mut path = format!("M{LEFT} {BOTTOM}");
        for (bar, &height) in heights.iter().enumerate() {
            write!(path, "V{:.1}H{:.1}", chart.y.y(height), LEFT + (bar + 1) as f64 * width)
                .expect("a String takes all");
        }
        path.push_str(&format!("V{BOTTOM}Z"));
        let hidden = if index == 0 { "" } else { " hidden" };
        push(
            &mut body,
            &format!(
                "<path class=\"layer f1{hidden}\" d=\"{path}\" data-name=\"{}\"/>",
                escape(name)
            ),
        );
    }
    let figure = figure(chart, &body, &[], |_| String::new(), None);
    let first = layers.first().map_or("", |(name, _)| name);
    let slider = format!(
        "</figcaption>\n<label class=\"slider\"><input type=\"range\" min=\"0\" max=\"{}\" value=\"0\"> \
         <output>{}</output></label>",
        layers.len().saturating_sub(1),
        escape(first),
    );
    figure.replacen("</figcaption>", &slider, 1)
}
