//! Counters of the server, in Prometheus' text form.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Code;
use crate::facts::Facts;
use crate::picture;
use crate::reply::Counts;

/// Upper ends of the buckets, in seconds.
const BUCKETS: [f64; 12] =
    [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0];

/// How often something took how long.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, end) in self.buckets.iter().zip(BUCKETS) {
            if seconds <= end {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, name: &str, help: &str, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram")?;
        for (bucket, end) in self.buckets.iter().zip(BUCKETS) {
            writeln!(out, "{name}_bucket{{le=\"{end}\"}} {}", bucket.load(Ordering::Relaxed))?;
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 * 1e-6;
        writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
        )
    }
}

/// What the server counts itself; the rest is in [`Facts`].
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests by the hundreds of their status.
    responses: [AtomicU64; 6],
    /// Answers that ended with an error after they had begun to be computed or to wait.
    failed: AtomicU64,
    too_late: AtomicU64,
    waited: Histogram,
    first_token: Histogram,
    answer: Histogram,
}

impl Metrics {
    /// Counts a response.
    pub(crate) fn response(&self, status: u16) {
        self.responses[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, counts: &Counts, took: Duration) {
        self.waited.add(counts.waited);
        self.first_token.add(counts.waited + counts.reading);
        self.answer.add(took);
    }

    /// Counts an answer that failed.
    pub(crate) fn failed(&self, code: Code) {
        let counter = if code == Code::DeadlineExceeded { &self.too_late } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as text.
    pub(crate) fn text(&self, facts: &Facts) -> String {
        let mut text = String::new();
        self.write(facts, &mut text).expect("writing to a string does not fail");
        text
    }

    fn write(&self, facts: &Facts, out: &mut String) -> std::fmt::Result {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let Facts { waiting, capacity, scheduler, usage } = facts;
        let cache = scheduler.prefix_cache.clone().unwrap_or_default();
        let gauges = [
            ("running", "Generations that run.", scheduler.running as f64),
            ("waiting", "Requests that wait for their turn.", *waiting as f64),
            ("capacity", "Generations that can run at once.", *capacity as f64),
            ("prefix_cache_bytes", "Memory of the prefix cache.", cache.memory_bytes as f64),
            ("prefix_cache_disk_bytes", "Files of the prefix cache.", cache.disk_bytes as f64),
        ];
        let counters = [
            ("requests", "Generations that were started.", scheduler.started as f64),
            ("requests_failed", "Generations that failed.", scheduler.failed as f64),
            ("requests_cancelled", "Generations that were cancelled.", scheduler.cancelled as f64),
            ("passes", "Forward passes.", scheduler.passes as f64),
            ("rows", "Tokens computed in them.", scheduler.rows as f64),
            ("generated_tokens", "Tokens generated.", scheduler.generated_tokens as f64),
            ("prompt_tokens", "Prompt tokens computed.", scheduler.prompt_tokens as f64),
            ("cached_tokens", "Prompt tokens known from before.", scheduler.cached_tokens as f64),
            ("expert_hits", "Experts in memory when asked for.", usage.hits as f64),
            ("expert_misses", "Experts that had to be read.", usage.misses as f64),
            ("twin_uses", "Uses of twins of experts.", usage.twin_uses as f64),
            ("twin_saved_bytes", "Bytes that those had less.", usage.twin_saved_bytes as f64),
            ("read_bytes", "Bytes read from the drive.", usage.bytes_read as f64),
            ("drive_busy_seconds", "Time the drive was reading.", usage.drive_busy.as_secs_f64()),
            ("answers_failed", "Answers that ended with an error.", load(&self.failed)),
            ("answers_late", "Answers that passed their deadline.", load(&self.too_late)),
        ];
        for (name, help, value) in gauges {
            writeln!(out, "# HELP flash_moe_{name} {help}\n# TYPE flash_moe_{name} gauge")?;
            writeln!(out, "flash_moe_{name} {value}")?;
        }
        for (name, help, value) in counters {
            let name = format!("flash_moe_{name}_total");
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}")?;
        }
        let name = "flash_moe_phase_seconds_total";
        writeln!(out, "# HELP {name} Time of forward passes by phase.\n# TYPE {name} counter")?;
        for (phase, seconds) in picture::phases(usage) {
            writeln!(out, "{name}{{phase=\"{phase}\"}} {seconds}")?;
        }
        let name = "flash_moe_responses_total";
        writeln!(out, "# HELP {name} Responses by status.\n# TYPE {name} counter")?;
        for (hundreds, counter) in self.responses.iter().enumerate().skip(2) {
            writeln!(out, "{name}{{status=\"{hundreds}xx\"}} {}", load(counter))?;
        }
        for (name, help, histogram) in [
            ("flash_moe_queue_seconds", "Time until an answer's turn came.", &self.waited),
            ("flash_moe_first_token_seconds", "Time to the first token.", &self.first_token),
            ("flash_moe_answer_seconds", "Time to the end of an answer.", &self.answer),
        ] {
            histogram.write(name, help, out)?;
        }
        Ok(())
    }
}
