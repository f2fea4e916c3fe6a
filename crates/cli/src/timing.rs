//! Where the time went, as a table and as JSON.

use std::time::Duration;

use engine::{HeatReport, KernelReport, Phase, ReaderReport, Usage};
use serde_json::{Value, json};

/// Prints a table with columns for the whole prompt, a token of it, and a generated token.
/// `decode_steps` are the generated tokens one by one.
pub fn print(prompt: &Usage, decode: &Usage, decode_steps: &[Usage]) {
    eprintln!();
    eprintln!("{:<22}{:>14}{:>14}{:>14}{:>9}", "", "prompt", "its token", "new token", "share");
    let row = |name: &str, cells: [String; 4]| {
        let [prompt, its_token, token, share] = cells;
        eprintln!("{name:<22}{prompt:>14}{its_token:>14}{token:>14}{share:>9}");
    };
    let count = |usage: &Usage| usage.tokens.max(1) as u32;
    let times = |name: &str, of: &dyn Fn(&Usage) -> Duration| {
        let [whole, each] = [of(prompt), of(decode)];
        let total = decode.wall.as_secs_f64();
        let share = if total > 0.0 { each.as_secs_f64() / total } else { 0.0 };
        let [its_token, token] = [whole / count(prompt), each / count(decode)];
        let share = format!("{:.1} %", 100.0 * share);
        row(name, [milliseconds(whole), milliseconds(its_token), milliseconds(token), share]);
    };
    for phase in Phase::ALL {
        times(label(phase), &|usage| usage.phase(phase));
    }
    times("other", &Usage::other);
    times("total", &|usage| usage.wall);
    times("of it, submitting", &|usage| usage.submitting);
    times("of it, bookkeeping", &|usage| usage.bookkeeping);
    times("drive busy", &|usage| usage.drive_busy);
    let row = |name: &str, prompt: String, its_token: &str, token: String| {
        row(name, [prompt, its_token.to_owned(), token, String::new()]);
    };
    row("tokens", prompt.tokens.to_string(), "", decode.tokens.to_string());
    let speed = |usage: &Usage| format!("{:.2}", usage.tokens_per_second());
    row("tokens/s", speed(prompt), "", speed(decode));
    let hits = |usage: &Usage| match usage.hit_rate() {
        Some(rate) => format!("{:.1} %", 100.0 * rate),
        None => "-".to_owned(),
    };
    row("expert hits", hits(prompt), "", hits(decode));
    if prompt.held_uses + decode.held_uses > 0 {
        let uses =
            |usage: &Usage| format!("{:.1}", usage.held_uses as f64 / f64::from(count(usage)));
        row("experts on the device", String::new(), &uses(prompt), uses(decode));
    }
    if prompt.handoffs.waits + decode.handoffs.waits > 0 {
        let each = |n: u64, usage: &Usage| format!("{:.1}", n as f64 / f64::from(count(usage)));
        let counts = |name: &str, of: &dyn Fn(&Usage) -> u64| {
            row(name, of(prompt).to_string(), &each(of(prompt), prompt), each(of(decode), decode));
        };
        counts("waits for the device", &|usage| usage.handoffs.waits);
        counts("submissions to it", &|usage| usage.handoffs.submissions);
        counts("kernels started", &|usage| usage.handoffs.dispatches);
    }
    if prompt.handoffs.expert_bytes + decode.handoffs.expert_bytes > 0 {
        let moved = |usage: &Usage| usage.handoffs.expert_bytes as f64 / 1e6;
        let each = |usage: &Usage| format!("{:.2} MB", moved(usage) / f64::from(count(usage)));
        row("moved to the device", format!("{:.2} MB", moved(prompt)), &each(prompt), each(decode));
        times("of it, taking them", &|usage| usage.handoffs.expert_time);
    }
    if prompt.handoffs.in_place_bytes + decode.handoffs.in_place_bytes > 0 {
        let read = |usage: &Usage| usage.handoffs.in_place_bytes as f64 / 1e6;
        let each = |usage: &Usage| format!("{:.2} MB", read(usage) / f64::from(count(usage)));
        row("read without a copy", format!("{:.2} MB", read(prompt)), &each(prompt), each(decode));
    }
    if prompt.handoffs.host_uses + decode.handoffs.host_uses > 0 {
        let uses = |usage: &Usage| {
            format!("{:.1}", usage.handoffs.host_uses as f64 / f64::from(count(usage)))
        };
        row("experts on the CPU", String::new(), &uses(prompt), uses(decode));
    }
    let ahead = |usage: &Usage| match usage.ahead_reads {
        0 => "-".to_owned(),
        reads => {
            let share = 100.0 * usage.ahead_useful as f64 / reads as f64;
            format!("{:.1}, {share:.0} %", reads as f64 / f64::from(count(usage)))
        }
    };
    row("read ahead, of use", String::new(), &ahead(prompt), ahead(decode));
    if prompt.warm_reads + decode.warm_reads + prompt.warm_useful + decode.warm_useful > 0 {
        let warm = |usage: &Usage| format!("{}, {} used", usage.warm_reads, usage.warm_useful);
        row("read for heat map", warm(prompt), "", warm(decode));
    }
    if prompt.twin_uses + decode.twin_uses > 0 {
        let each = |n: u64, usage: &Usage| n as f64 / f64::from(count(usage));
        let uses = |usage: &Usage| format!("{:.1}", each(usage.twin_uses, usage));
        let saved = |usage: &Usage| format!("{:.2} MB", each(usage.twin_saved_bytes, usage) / 1e6);
        row("twins used", String::new(), &uses(prompt), uses(decode));
        row("saved by them", String::new(), &saved(prompt), saved(decode));
    }
    let read = |usage: &Usage| usage.bytes_read as f64 / 1e6;
    let each = |usage: &Usage| format!("{:.2} MB", read(usage) / f64::from(count(usage)));
    row("read from drive", format!("{:.2} MB", read(prompt)), &each(prompt), each(decode));
    let drive = |usage: &Usage| match usage.drive_bytes_per_second() {
        Some(speed) => format!("{:.0} MB/s", speed / 1e6),
        None => "-".to_owned(),
    };
    row("drive while busy", drive(prompt), "", drive(decode));
    if let Some([median, slowest]) = spread(decode_steps) {
        row("median token", String::new(), "", milliseconds(median));
        row("slowest token", String::new(), "", milliseconds(slowest));
    }
}

/// Prints what each kernel of a GPU took of a token, and how long the GPU did nothing.
pub fn print_kernels(report: &KernelReport) {
    let tokens = report.tokens.max(1) as f64;
    // "nothing, between submissions" is the longest of the others.
    let width = report.kernels.iter().map(|kernel| kernel.name.len()).fold(28, usize::max) + 2;
    let row = |name: &str, count: String, time: Duration| {
        let share = 100.0 * time.as_secs_f64() / report.wall.as_secs_f64().max(1e-9);
        let each = 1e6 * time.as_secs_f64() / tokens;
        eprintln!("{name:<width$}{count:>12}{each:>12.1} us{share:>9.1} %");
    };
    let count = |n: u64| format!("{:.1}", n as f64 / tokens);
    let all = format!("GPU, of {} tokens one by one", report.tokens);
    eprintln!("\n{all:<width$}{:>12}{:>15}{:>11}", "a token", "time a token", "share");
    for kernel in &report.kernels {
        row(kernel.name, count(kernel.count), kernel.time);
    }
    row("nothing, between kernels", String::new(), report.between_kernels);
    row("nothing, between submissions", String::new(), report.between_submissions);
    let runs = report.kernels.iter().map(|kernel| kernel.count).sum();
    row("total", count(runs), report.wall);
    let microseconds = 1e6 * report.uncertainty.as_secs_f64();
    eprintln!(
        "timestamps take time, too; the GPU's clock is the host's within {microseconds:.1} us"
    );
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

/// What came of the heat map, in a line.
pub fn heat_map_line(report: &HeatReport) -> String {
    let path = report.path.display();
    match (&report.n_used, &report.ignored) {
        (Some(n_used), _) => format!("heat map of {n_used} experts from {path}"),
        (None, Some(reason)) => format!("heat map ignored: {reason} ({path})"),
        (None, None) => format!("no heat map yet at {path}"),
    }
}

/// The same as JSON.
pub fn heat_map_json(report: &HeatReport) -> Value {
    json!({ "path": report.path, "experts": report.n_used, "ignored": report.ignored })
}

/// How experts are read, as JSON.
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
    json!({
        "tokens": usage.tokens,
        "seconds": usage.wall.as_secs_f64(),
        "tokens_per_second": usage.tokens_per_second(),
        "device_expert_uses": usage.held_uses,
        "device_waits": usage.handoffs.waits,
        "device_submissions": usage.handoffs.submissions,
        "device_dispatches": usage.handoffs.dispatches,
        "moved_expert_bytes": usage.handoffs.expert_bytes,
        "in_place_expert_bytes": usage.handoffs.in_place_bytes,
        "moving_experts_seconds": usage.handoffs.expert_time.as_secs_f64(),
        "host_expert_uses": usage.handoffs.host_uses,
        "expert_hits": usage.hits,
        "expert_misses": usage.misses,
        "hit_rate": usage.hit_rate(),
        "ahead_reads": usage.ahead_reads,
        "ahead_useful": usage.ahead_useful,
        "warm_reads": usage.warm_reads,
        "warm_useful": usage.warm_useful,
        "twin_uses": usage.twin_uses,
        "twin_saved_bytes": usage.twin_saved_bytes,
        "bytes_read": usage.bytes_read,
        "drive_busy_seconds": usage.drive_busy.as_secs_f64(),
        "drive_bytes_per_second": usage.drive_bytes_per_second(),
        "submitting_seconds": usage.submitting.as_secs_f64(),
        "bookkeeping_seconds": usage.bookkeeping.as_secs_f64(),
        "phase_seconds": phases_to_json(usage),
    })
}

fn phases_to_json(usage: &Usage) -> Value {
    let phases = Phase::ALL.into_iter();
    let phases =
        phases.map(|phase| (phase.name().to_owned(), json!(usage.phase(phase).as_secs_f64())));
    Value::Object(phases.collect())
}

/// A phase's name in tables and plots.
pub fn label(phase: Phase) -> &'static str {
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

/// The median and the longest time of a step, when there are several.
fn spread(steps: &[Usage]) -> Option<[Duration; 2]> {
    let mut times: Vec<Duration> = steps.iter().map(|step| step.wall).collect();
    times.sort_unstable();
    (times.len() > 1).then(|| [times[times.len() / 2], times[times.len() - 1]])
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", 1e3 * time.as_secs_f64())
}
