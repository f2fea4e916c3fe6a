//! As much of SVG as the plots need.
//!
//! A picture paints its own ground and follows the viewer's preference for light or dark, so that it
//! can be read on any page.

use std::fmt::Write;

/// Colours that stand out on light and on dark ground.
pub const COLOURS: [&str; 9] = [
    "#8b949e", "#4f8fea", "#35b0ab", "#a371f7", "#58a65c", "#e5534b", "#e09b3d", "#d46fa8",
    "#6e7681",
];

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px;\
fill:#1f2328}\
.title{font-size:16px;font-weight:600}\
.small{font-size:12px;fill:#59636e}\
.inside{font-size:11px;fill:#0d1117}\
.ground{fill:#ffffff}\
.axis{stroke:#59636e;stroke-width:1}\
.grid{stroke:#d8dee4;stroke-width:1}\
@media(prefers-color-scheme:dark){\
text{fill:#f0f6fc}.small{fill:#9198a1}.inside{fill:#0d1117}.ground{fill:#0d1117}\
.axis{stroke:#9198a1}.grid{stroke:#30363d}}";

/// A picture.
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text begins, ends, or has its middle.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// An empty picture with a description for those who cannot see it.
    pub fn new(width: f64, height: f64, description: &str) -> Self {
        let body = format!("<title>{}</title>\n", escape(description));
        Self { width, height, body }
    }

    /// The whole document.
    pub fn finish(self) -> String {
        let Self { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\">\n<style>{STYLE}</style>\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n{body}</svg>\n"
        )
    }

    /// Text on a base line.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = anchor.name();
        let text = escape(text);
        self.add(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
        ));
    }

    /// Text from bottom to top around a point.
    pub fn upright_text(&mut self, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        self.add(&format!(
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{text}</text>"
        ));
    }

    /// A line of a class.
    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(&format!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// Lines from point to point.
    pub fn path(&mut self, colour: &str, points: &[(f64, f64)]) {
        self.polyline(colour, "", points);
    }

    /// Dashed lines from point to point, as far as they lie inside the last [`Svg::clip`].
    pub fn clipped_dashes(&mut self, colour: &str, points: &[(f64, f64)]) {
        self.polyline(colour, " stroke-dasharray=\"6 4\" clip-path=\"url(#inside)\"", points);
    }

    /// What clipped lines stay inside of; once a picture.
    pub fn clip(&mut self, (x, y): (f64, f64), width: f64, height: f64) {
        self.add(&format!(
            "<clipPath id=\"inside\"><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\"/></clipPath>"
        ));
    }

    fn polyline(&mut self, colour: &str, attributes: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(&format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{attributes} \
             points=\"{}\"/>",
            points.join(" ")
        ));
    }

    /// A filled circle.
    pub fn dot(&mut self, colour: &str, (x, y): (f64, f64)) {
        self.add(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"));
    }

    /// A filled rectangle that tells its name when pointed at.
    pub fn bar(&mut self, colour: &str, (x, y): (f64, f64), width: f64, height: f64, name: &str) {
        let name = escape(name);
        self.add(&format!(
            "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\" \
             fill=\"{colour}\"><title>{name}</title></rect>"
        ));
    }

    fn add(&mut self, element: &str) {
        writeln!(self.body, "{element}").expect("a String takes all");
    }
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// Ticks of an axis from zero to at least `max`: 4 to 7 round numbers.
pub fn ticks(max: f64) -> Vec<f64> {
    if !(max > 0.0 && max.is_finite()) {
        return vec![0.0, 1.0];
    }
    let decade = 10_f64.powf((max / 6.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade);
    let step = step.into_iter().find(|step| max / step <= 6.0).unwrap_or(10.0 * decade);
    let n_steps = (max / step - 1e-9).ceil() as usize;
    (0..=n_steps).map(|index| index as f64 * step).collect()
}

/// A tick's number: no more digits than it needs.
pub fn number(value: f64) -> String {
    let digits = if value == value.round() {
        0
    } else if value * 10.0 == (value * 10.0).round() {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// How wide a text of 13 pixels is, roughly.
pub fn text_width(text: &str) -> f64 {
    7.4 * text.chars().count() as f64
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // XML has no way to write these.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(5.3), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(0.25), [0.0, 0.05, 0.1, 0.15000000000000002, 0.2, 0.25]);
        assert_eq!(ticks(0.0), [0.0, 1.0]);
        for max in [1e-3, 0.7, 13.0, 240.0, 1e6] {
            let ticks = ticks(max);
            let top = ticks.last().copied().unwrap_or(0.0);
            assert!((3..=7).contains(&(ticks.len() - 1)) && top >= max, "{max}: {ticks:?}");
        }
    }

    #[test]
    fn texts_cannot_break_the_document() {
        let mut svg = Svg::new(10.0, 10.0, "a<b>");
        svg.text((1.0, 2.0), Anchor::Start, "small", "x & \"y\"\n</text>");
        let document = svg.finish();
        assert!(document.contains("a&lt;b&gt;"));
        assert!(document.contains("x &amp; &quot;y&quot; &lt;/text&gt;"));
    }
}
