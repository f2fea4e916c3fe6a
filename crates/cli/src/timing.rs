//! Where the time went, as a table and as JSON.

use engine::{Phase, ReaderReport, Usage};
use serde_json::{Value, json};

/// Prints a table with a column for the prompt and one for a generated token.
pub fn print(prompt: &Usage, decode: &Usage) {
    eprintln!();
    eprintln!("{:<22}{:>14}{:>14}", "", "prompt", "per token");
    let tokens = decode.tokens.max(1) as u32;
    let row = |name: &str, prompt: String, decode: String| {
        eprintln!("{name:<22}{prompt:>14}{decode:>14}");
    };
    for phase in Phase::ALL {
        let (whole, each) = (prompt.phase(phase), decode.phase(phase) / tokens);
        row(label(phase), milliseconds(whole), milliseconds(each));
    }
    row(
        "of it, submitting",
        milliseconds(prompt.submitting),
        milliseconds(decode.submitting / tokens),
    );
    row(
        "of it, bookkeeping",
        milliseconds(prompt.bookkeeping),
        milliseconds(decode.bookkeeping / tokens),
    );
    row("total", milliseconds(prompt.wall), milliseconds(decode.wall / tokens));
    row("tokens", prompt.tokens.to_string(), decode.tokens.to_string());
    let speed = |usage: &Usage| format!("{:.2}", usage.tokens_per_second());
    row("tokens/s", speed(prompt), speed(decode));
    let hits = |usage: &Usage| match usage.hit_rate() {
        Some(rate) => format!("{:.1} %", 100.0 * rate),
        None => "-".to_owned(),
    };
    row("expert hits", hits(prompt), hits(decode));
    let ahead = |usage: &Usage, tokens: u32| match usage.ahead_reads {
        0 => "-".to_owned(),
        reads => {
            let share = 100.0 * usage.ahead_useful as f64 / reads as f64;
            format!("{:.1}, {share:.0} %", reads as f64 / f64::from(tokens))
        }
    };
    row("read ahead, of use", ahead(prompt, 1), ahead(decode, tokens));
    let megabytes = |bytes: f64| format!("{:.2} MB", bytes / 1e6);
    let each = decode.bytes_read as f64 / f64::from(tokens);
    row("read from drive", megabytes(prompt.bytes_read as f64), megabytes(each));
}

/// How experts are read, in a line.
pub fn reader_line(reader: &ReaderReport) -> String {
    let mut line = format!("experts are read by {}", reader.name);
    if let Some(probe) = &reader.probe {
        let gigabytes = |rate: f64| rate / 1e9;
        line += &format!(
            ": {:.2} GB/s by io_uring, {:.2} by threads, measured in {} on {:.0} MB",
            gigabytes(probe.uring),
            gigabytes(probe.threads),
            milliseconds(probe.time),
            probe.bytes as f64 / 1e6,
        );
    }
    if let Some(refusal) = &reader.refusal {
        line += &format!(": io_uring cannot be had ({refusal})");
    }
    line
}

/// The same as JSON.
pub fn reader_json(reader: &ReaderReport) -> Value {
    let probe = reader.probe.map(|probe| {
        json!({
            "threads_bytes_per_second": probe.threads,
            "io_uring_bytes_per_second": probe.uring,
            "bytes": probe.bytes,
            "seconds": probe.time.as_secs_f64(),
        })
    });
    json!({ "name": reader.name, "probe": probe, "refusal": reader.refusal })
}

/// The numbers of a usage.
pub fn to_json(usage: &Usage) -> Value {
    let phases = Phase::ALL.into_iter();
    let phases =
        phases.map(|phase| (phase.name().to_owned(), json!(usage.phase(phase).as_secs_f64())));
    json!({
        "tokens": usage.tokens,
        "seconds": usage.wall.as_secs_f64(),
        "tokens_per_second": usage.tokens_per_second(),
        "expert_hits": usage.hits,
        "expert_misses": usage.misses,
        "hit_rate": usage.hit_rate(),
        "ahead_reads": usage.ahead_reads,
        "ahead_useful": usage.ahead_useful,
        "bytes_read": usage.bytes_read,
        "submitting_seconds": usage.submitting.as_secs_f64(),
        "bookkeeping_seconds": usage.bookkeeping.as_secs_f64(),
        "phase_seconds": Value::Object(phases.collect()),
    })
}

fn label(phase: Phase) -> &'static str {
    match phase {
        Phase::Embedding => "embedding",
        Phase::Attention => "attention",
        Phase::DeltaNet => "delta net",
        Phase::Router => "router",
        Phase::SharedExpert => "shared expert",
        Phase::ExpertWait => "waiting for drive",
        Phase::Experts => "routed experts",
        Phase::Head => "head",
    }
}

fn milliseconds(time: std::time::Duration) -> String {
    format!("{:.2} ms", 1e3 * time.as_secs_f64())
}
