//! The findings and the table of memory, for a terminal.

use std::fmt::Write;
use std::path::Path;

use engine::format_bytes;
use routing::{DEFAULT_POLICY, POLICIES};

use crate::routing::findings::{Finding, findings, percent};
use crate::routing::{Report, sizes};

/// The text.
pub fn summary(report: &Report, page: Option<&Path>) -> String {
    let mut text = format!(
        "{}: {}; {} layers of {} experts, {} a token, one of {}\n\n",
        report.name,
        report.source,
        report.layers().count(),
        report.experts_of_layer(),
        report.analysis.locality.top_k,
        format_bytes(report.trace.slot_bytes),
    );
    for Finding { figure, text: sentence } in findings(report) {
        writeln!(text, "* {figure} {sentence}").expect("a String takes all");
    }
    let first = if report.tokens.is_some() { "--memory" } else { "--expert-cache" };
    write!(text, "\n{first:>14}{:>12}{:>10}", "experts", "MB read").expect("a String takes all");
    for name in POLICIES {
        write!(text, "{name:>11}").expect("a String takes all");
    }
    text.push('\n');
    for memory in &report.memory {
        let slots = memory.cache.slots;
        let bytes = memory.memory.unwrap_or(slots as u64 * report.trace.slot_bytes);
        let read = report.bytes_per_pass(memory.cache.hits[DEFAULT_POLICY].misses) / 1e6;
        let share = percent(report.share(slots));
        write!(text, "{:>14}{share:>12}{read:>10.2}", sizes::typed(bytes))
            .expect("a String takes all");
        for hits in memory.cache.hits {
            let rate = hits.hit_rate().map_or("-".to_owned(), |r| format!("{:.1} %", 100.0 * r));
            write!(text, "{rate:>11}").expect("a String takes all");
        }
        text.push('\n');
    }
    match page {
        Some(page) => writeln!(text, "\nplots: {}", page.display()),
        None => writeln!(text, "\nhint: --report FILE.html writes the plots"),
    }
    .expect("a String takes all");
    text
}
