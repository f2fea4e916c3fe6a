//! Counters of the server, in Prometheus' text form.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Code;
use crate::facts::Facts;
use crate::picture;
use crate::reply::Counts;

/// Upper ends of the buckets, in seconds.
const BUCKETS: [f64; 12] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0];

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
        writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}")
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
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
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
        self.prompt_tokens.fetch_add(counts.prompt as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(counts.cached as u64, Ordering::Relaxed);
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
        let usage = &facts.usage;
        for (name, kind, help, value) in [
            ("running", "gauge", "Generations that run.", facts.running as f64),
            ("waiting", "gauge", "Requests that wait for their turn.", facts.waiting as f64),
            ("capacity", "gauge", "Generations that can run at once.", facts.capacity as f64),
            ("generated_tokens_total", "counter", "Tokens generated.", facts.generated as f64),
            ("computed_tokens_total", "counter", "Tokens computed, prompts included.", usage.tokens as f64),
            ("prompt_tokens_total", "counter", "Prompt tokens of finished answers.", load(&self.prompt_tokens)),
            ("cached_tokens_total", "counter", "Those of them that were known from before.", load(&self.cached_tokens)),
            ("expert_hits_total", "counter", "Experts that were in memory when they were asked for.", usage.hits as f64),
            ("expert_misses_total", "counter", "Experts that had to be read.", usage.misses as f64),
            ("read_bytes_total", "counter", "Bytes read from the drive.", usage.bytes_read as f64),
            ("drive_busy_seconds_total", "counter", "Time in which the drive was reading.", usage.drive_busy.as_secs_f64()),
            ("answers_failed_total", "counter", "Answers that ended with an error.", load(&self.failed)),
            ("answers_late_total", "counter", "Answers that passed their deadline.", load(&self.too_late)),
        ] {
            writeln!(out, "# HELP flash_moe_{name} {help}\n# TYPE flash_moe_{name} {kind}")?;
            writeln!(out, "flash_moe_{name} {value}")?;
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
