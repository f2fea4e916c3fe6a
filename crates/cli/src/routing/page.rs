//! The page: one file with everything in it, light and dark, that can be read without scripts.

use std::fmt::Write;

use engine::cache::SimulatedHits;
use engine::format_bytes;
use routing::{DEFAULT_POLICY, LookAhead};

use crate::routing::findings::{Finding, findings, percent};
use crate::routing::{Report, guess_plots, plots, sizes};
use crate::svg::escape;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Speeds of drives for which the table tells what they allow, in GB/s.
const DRIVES: [f64; 3] = [1.0, 3.5, 7.0];

/// The whole document.
pub fn page(report: &Report) -> String {
    let title = format!("Routing of {}", report.name);
    let mut body = String::new();
    head(&mut body, report, &title);
    uses(&mut body, report);
    locality(&mut body, report);
    caches(&mut body, report);
    if let Some(ahead) = &report.look_ahead {
        look_ahead(&mut body, report, ahead);
    }
    method(&mut body, report);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <div id=\"tip\" role=\"status\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(&title)
    )
}

fn head(body: &mut String, report: &Report, title: &str) {
    let shape = format!(
        "{}. {} layers with {} experts each; a token uses {} of them in each layer. An expert takes {} in \
         memory, all of them {}.",
        report.source,
        report.layers().count(),
        report.experts_of_layer(),
        report.analysis.locality.top_k,
        format_bytes(report.trace.slot_bytes),
        format_bytes(report.trace.slot_bytes * report.n_experts() as u64),
    );
    add(
        body,
        &format!(
            "<header>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n</header>",
            escape(title),
            escape(&shape)
        ),
    );
    add(body, "<section>\n<h2>In short</h2>\n<dl class=\"findings\">");
    for Finding { figure, text } in findings(report) {
        add(body, &format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(&figure), escape(&text)));
    }
    add(body, "</dl>\n</section>");
}

fn uses(body: &mut String, report: &Report) {
    add(body, "<section>\n<h2>Which experts are used</h2>");
    paragraph(
        body,
        "Each row is a layer, with its experts sorted from the most used to the least used. A row \
        of one colour means that all are used alike; the more it runs from dark to pale, the fewer experts do \
        most of the work. <em>Used as if alike</em> is the number of experts that would spread the uses as \
        evenly.",
    );
    add(body, &plots::uses(report));
    add(body, &plots::histogram(report));
    let [half, most] = plots::experts_for_shares(report);
    paragraph(
        body,
        &format!(
            "If the hottest experts were known, how many would have to be in memory? {half} of {} cover half of all \
         uses, and {most} cover nine tenths: {} and {} of memory. The farther a line bends away from the \
         diagonal, the more a small memory is worth.",
            report.n_experts(),
            format_bytes(half as u64 * report.trace.slot_bytes),
            format_bytes(most as u64 * report.trace.slot_bytes),
        ),
    );
    add(body, &plots::coverage_curves(report));
    add(body, "</section>");
}

fn locality(body: &mut String, report: &Report) {
    let locality = &report.analysis.locality;
    add(body, "<section>\n<h2>How soon an expert comes again</h2>");
    paragraph(
        body,
        "A popular expert comes again soon by chance alone. What matters is whether it comes sooner \
        than that: then it pays to remember who was used last. The dashed line is what the same tokens would do \
        in shuffled order; the space between the lines is what their order adds.",
    );
    add(body, &plots::gaps(report));
    let uses: u64 = locality.distances.iter().sum();
    let mut sum = 0;
    let median = locality.distances.iter().position(|&count| {
        sum += count;
        2 * sum >= uses
    });
    if let (Some(class), true) = (median, uses > 0) {
        paragraph(
            body,
            &format!(
                "Counted in experts instead of tokens: half of the returning experts come back before {} others \
             of all layers were used ({} of slots). A cache that forgets the least recently used has to be \
             larger than that to hit them.",
                1_u64 << class,
                format_bytes((1_u64 << class) * report.trace.slot_bytes),
            ),
        );
    }
    if let Some(plot) = plots::overlaps(report) {
        add(body, &plot);
    }
    add(body, "</section>");
}

fn caches(body: &mut String, report: &Report) {
    add(body, "<section>\n<h2>What a cache hits</h2>");
    paragraph(
        body,
        "The engine keeps some experts in memory and reads the others when they are asked for. \
        <em>Frecency</em> is its policy: it weighs how often and how recently an expert was used. The dashed \
        line knows the future, and nothing can be better; the space below it is all that a cleverer policy \
        could gain.",
    );
    add(body, &plots::caches(report));
    let (first, what) = match report.tokens {
        Some(_) => ("--memory", "for the whole process"),
        None => ("--expert-cache", "for routed experts"),
    };
    let pass = report.pass();
    paragraph(
        body,
        &format!(
            "What to give the program: <code>{first}</code> {what}, what is hit then, and what has to be read for a \
         {pass}. The last columns are the {pass}s per second that a drive of such a speed would allow if reading \
         were all there is to do."
        ),
    );
    add(body, "<div class=\"scroll\"><table class=\"memory\"><thead><tr>");
    add(
        body,
        &format!(
            "<th><code>{first}</code></th><th>experts in memory</th><th>hits</th><th>at best</th><th>read for a {pass}</th>"
        ),
    );
    for drive in DRIVES {
        add(body, &format!("<th>{drive} GB/s</th>"));
    }
    add(body, "</tr></thead><tbody>");
    for memory in &report.memory {
        let slots = memory.cache.slots;
        let bytes = memory.memory.unwrap_or(slots as u64 * report.trace.slot_bytes);
        let hits = memory.cache.hits[DEFAULT_POLICY];
        let rate = |hits: SimulatedHits| hits.hit_rate().map_or("-".to_owned(), percent);
        let read = report.bytes_per_pass(hits.misses);
        let share = hits.hit_rate().unwrap_or(0.0);
        add(
            body,
            &format!(
                "<tr><th>{}</th><td>{}</td><td><span class=\"meter\" style=\"--share:{share:.3}\">{}</span></td><td>{}</td><td>{:.2} MB</td>",
                sizes::typed(bytes),
                percent(report.share(slots)),
                rate(hits),
                rate(memory.cache.hits[4]),
                read / 1e6,
            ),
        );
        for drive in DRIVES {
            let speed = drive * 1e9 / read;
            let text = match speed {
                speed if !speed.is_finite() => "no reads".to_owned(),
                speed if speed >= 100.0 => format!("{speed:.0}"),
                speed => format!("{speed:.1}"),
            };
            add(body, &format!("<td>{text}</td>"));
        }
        add(body, "</tr>");
    }
    add(body, "</tbody></table></div>\n</section>");
}

fn look_ahead(body: &mut String, report: &Report, ahead: &LookAhead) {
    add(body, "<section>\n<h2>Guessing the next layers</h2>");
    paragraph(
        body,
        "A layer's experts are known only when its router has spoken. But the router can be asked \
        early, on what the layers before have left: what it says then is a guess, and what it guesses can be \
        read while the drive would idle. One layer ahead misses only the mixer in between, and the guess gets \
        worse with every layer that is skipped.",
    );
    add(body, &guess_plots::strides(report, ahead));
    paragraph(
        body,
        "Guesses are not equally good. An expert far ahead of the last guessed one comes true more \
        often, so the engine reads only guesses of a margin at which more come true than not.",
    );
    add(body, &guess_plots::margins(ahead));
    paragraph(
        body,
        "Does it pay? Only guesses of experts that are not in memory cause reads. Green was read in \
        time, grey is still read when it is asked for, red is read for nothing. Where red is taller than \
        green, <code>--look-ahead off</code> is right; the default, <code>auto</code>, finds that out by \
        itself.",
    );
    add(body, &guess_plots::read_ahead(report, ahead));
    match (guess_plots::methods(report, ahead), &ahead.comparison) {
        (Some(plot), Some(comparison)) => {
            let (learned, guessed) = comparison.tokens;
            let hidden = report.hidden.unwrap_or(0);
            let bytes = 4
                * comparison.rank
                * (hidden + report.experts_of_layer())
                * report.layers().count();
            paragraph(
                body,
                &format!(
                    "Could something that is trained do better? Beside the router itself stand the experts that were \
                 used most, those of the token before, a linear map of rank {} from what the router is asked \
                 early on to what it will say, and the router with such a map as a correction (weights: {}). \
                 They learned from {learned} tokens and are compared on {guessed} later ones. Reading more \
                 than a token's experts finds more of them: each line tells how many.",
                    comparison.rank,
                    format_bytes(bytes as u64),
                ),
            );
            add(body, &plot);
        }
        _ => paragraph(body, "The text is too short to train a predictor on."),
    }
    add(body, "</section>");
}

fn method(body: &mut String, report: &Report) {
    add(body, "<section class=\"method\">\n<h2>How this was measured</h2>");
    let warming = report.analysis.n_warming;
    let pass = report.pass();
    let mut text = match report.tokens {
        Some((tokens, all)) if tokens < all => {
            format!("The first {tokens} of {all} tokens were read. ")
        }
        Some((tokens, _)) => format!("All {tokens} tokens of the text were read. "),
        None => "Prompts that were read in one pass count as time that goes by, and not as tokens, where \
                 tokens are compared. Without the model there is nothing to guess from. "
            .to_owned(),
    };
    write!(text, "The routing of a token does not depend on how the text is cut into passes, so this is what \
        writing the same text token by token would ask for. Caches are simulated by the engine's own policies \
        and start empty; the first {warming} of {} {pass}s fill them and are not counted. ",
        report.analysis.n_passes).expect("a String takes all");
    if report.look_ahead.is_some() {
        text += "What is read ahead is not simulated as a cache: it is taken to come in time and to displace \
                 nothing. Trained maps are ridge regressions of reduced rank; the ridge is chosen on the last \
                 fifth of what they learn from. ";
    }
    text += "The same command gives the same numbers; only the sizes of memory depend on what the program takes \
             at the time. In a plot, arrow keys walk through the numbers.";
    paragraph(body, &text);
    add(body, "</section>");
}

/// A paragraph of our own words: marks in it are marks.
fn paragraph(body: &mut String, text: &str) {
    add(body, &format!("<p>{text}</p>"));
}

fn add(body: &mut String, text: &str) {
    body.push_str(text);
    body.push('\n');
}
