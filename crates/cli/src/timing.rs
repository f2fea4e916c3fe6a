//! Where the time went, as a table and as JSON.

use engine::{Phase, Usage};
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
    row("total", milliseconds(prompt.wall), milliseconds(decode.wall / tokens));
    row("tokens", prompt.tokens.to_string(), decode.tokens.to_string());
    let speed = |usage: &Usage| format!("{:.2}", usage.tokens_per_second());
    row("tokens/s", speed(prompt), speed(decode));
    let hits = |usage: &Usage| match usage.hit_rate() {
        Some(rate) => format!("{:.1} %", 100.0 * rate),
        None => "-".to_owned(),
    };
    row("expert hits", hits(prompt), hits(decode));
    let megabytes = |bytes: f64| format!("{:.2} MB", bytes / 1e6);
    let each = decode.bytes_read as f64 / f64::from(tokens);
    row("read from drive", megabytes(prompt.bytes_read as f64), megabytes(each));
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
        "bytes_read": usage.bytes_read,
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
