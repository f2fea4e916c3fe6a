//! What was measured, with its medians, spreads and limits.

use engine::measure::DecodeBytes;
use engine::{MemoryPlan, Phase, Usage};
use serde_json::{Value, json};

use crate::bench::settings::{Budget, Settings};
use crate::timing;

/// Version of the JSON's form.
pub const SCHEMA: &str = "flash-moe-bench/1";

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A prompt of so many tokens in an empty session.
    Prompt(usize),
    /// Single tokens after so many others.
    Decode(usize),
}

/// One measurement of a piece of work.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which repeat it was.
    pub repeat: usize,
    /// Time from beginning to end.
    pub seconds: f64,
    /// What the engine counted.
    pub usage: Usage,
    /// Of decoding: each token's time.
    pub token_seconds: Vec<f64>,
    /// Of a cold measurement: how the engine came up before it.
    pub opening: Option<Opening>,
}

/// How an engine came up with nothing in memory.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Time to open it: headers, tokenizer, trunk.
    pub seconds: f64,
    /// Share of the model's files that the page cache still held after it was told to forget them; or
    /// why that is not known.
    pub resident: Result<f64, String>,
}

/// All measurements of a piece of work under a budget.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The work.
    pub work: Work,
    /// Whether the engine had just been opened.
    pub cold: bool,
    /// Bytes of memory that a token reads at least.
    pub touched: DecodeBytes,
    /// A sample a repeat.
    pub samples: Vec<Sample>,
}

/// The machine's speeds around a repeat, in bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// All threads reading memory, or a device reading that of its own.
    pub memory: f64,
    /// Direct random reads of an expert's size.
    pub drive: f64,
}

/// All measurements under a budget.
#[derive(Clone, Debug)]
pub struct BudgetResult {
    /// The budget as given.
    pub budget: Budget,
    /// How it was spent.
    pub plan: MemoryPlan,
    /// The kinds of work.
    pub cells: Vec<Cell>,
    /// For each repeat the machine's speeds: the mean of before and after.
    pub speeds: Vec<Speeds>,
    /// Most bytes that were resident at once, where the system tells.
    pub peak_resident: Option<u64>,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct Results {
    /// The device that computed.
    pub device: String,
    /// Bytes of each read by which the drive was measured, and how many threads read at once, at
    /// most.
    pub drive_reads: (u64, usize),
    /// Whether those went past the page cache.
    pub direct: bool,
    /// Threads and bytes by which memory was measured, if it was the host's.
    pub memory_reads: (usize, usize),
    /// Whether it was that of the device.
    pub is_device_memory: bool,
    /// Every measurement of the machine's speeds.
    pub speeds: Vec<Speeds>,
    /// The machine's load before each repeat, where the system tells.
    pub loads: Vec<f64>,
    /// For each budget.
    pub budgets: Vec<BudgetResult>,
}

/// The median of some values, with the least and the largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of values; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
        Some(Self { median: f64::midpoint(values[low], values[high]), min, max })
    }

    fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Sample {
    /// Tokens a second.
    pub fn speed(&self) -> f64 {
        if self.seconds > 0.0 { self.usage.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Bytes read from the drive for a token.
    pub fn read_per_token(&self) -> f64 {
        self.usage.bytes_read as f64 / self.usage.tokens.max(1) as f64
    }
}

impl Cell {
    /// Whether the work is decoding.
    pub fn is_decode(&self) -> bool {
        matches!(self.work, Work::Decode(_))
    }

    /// Tokens of the prompt, or before those that are decoded.
    pub fn length(&self) -> usize {
        match self.work {
            Work::Prompt(length) | Work::Decode(length) => length,
        }
    }

    /// Tokens a second.
    pub fn speed(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(Sample::speed))
    }

    /// Seconds from the start of the program's work to the first token, of a cold prompt.
    pub fn first_token(&self) -> Option<Spread> {
        let seconds = |s: &Sample| s.opening.as_ref().map(|opening| opening.seconds + s.seconds);
        if self.is_decode() { None } else { Spread::of(self.samples.iter().filter_map(seconds)) }
    }

    /// Share of the experts that were in memory, over all samples.
    pub fn hit_rate(&self) -> Option<f64> {
        self.usage().hit_rate()
    }

    /// Bytes read from the drive for a token, over all samples.
    pub fn read_per_token(&self) -> f64 {
        let usage = self.usage();
        usage.bytes_read as f64 / usage.tokens.max(1) as f64
    }

    /// The sample of middle speed, which is the median when the number of samples is odd.
    fn middle_sample(&self) -> Option<&Sample> {
        let mut samples: Vec<&Sample> = self.samples.iter().collect();
        samples.sort_by(|a, b| a.speed().total_cmp(&b.speed()));
        samples.get(samples.len().saturating_sub(1) / 2).copied()
    }

    /// Milliseconds of a token spent in a phase, in the sample of middle speed; `None` as phase means in
    /// none of them.
    pub fn phase_ms(&self, phase: Option<Phase>) -> f64 {
        let Some(Sample { usage, .. }) = self.middle_sample() else { return 0.0 };
        let time = phase.map_or_else(|| usage.other(), |phase| usage.phase(phase));
        1e3 * time.as_secs_f64() / usage.tokens.max(1) as f64
    }

    /// The least time of a token on this machine, by memory and by drive, in seconds.
    pub fn limits(&self, sample: &Sample, speeds: Speeds) -> [f64; 2] {
        let time = |bytes: f64, speed: f64| if speed > 0.0 { bytes / speed } else { 0.0 };
        let touched = self.touched.total() as f64;
        [time(touched, speeds.memory), time(sample.read_per_token(), speeds.drive)]
    }

    /// Of decoding: the limit in tokens a second, the share of it that was reached, and whether memory
    /// sets it and not the drive; medians over the repeats, each with the speeds around it.
    pub fn roofline(&self, speeds: &[Speeds]) -> Option<(f64, f64, bool)> {
        if !self.is_decode() {
            return None;
        }
        let limits = |s: &Sample| Some(self.limits(s, *speeds.get(s.repeat)?));
        let all: Vec<([f64; 2], f64)> =
            self.samples.iter().filter_map(|s| Some((limits(s)?, s.speed()))).collect();
        let limit = |[memory, drive]: [f64; 2]| memory.max(drive);
        let speed = |&(limits, _): &([f64; 2], f64)| 1.0 / limit(limits);
        let reached = |&(limits, speed): &([f64; 2], f64)| speed * limit(limits);
        let by_memory = all.iter().filter(|([memory, drive], _)| memory >= drive).count();
        let speeds = Spread::of(all.iter().map(speed).filter(|speed| speed.is_finite()))?;
        let reached = Spread::of(all.iter().map(reached))?;
        Some((speeds.median, reached.median, 2 * by_memory >= all.len()))
    }

    /// All samples added up.
    pub fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        self.samples.iter().for_each(|sample| sum += &sample.usage);
        sum
    }

    fn to_json(&self, speeds: &[Speeds]) -> Value {
        let (work, length) = match self.work {
            Work::Prompt(tokens) => ("prompt", tokens),
            Work::Decode(context) => ("decode", context),
        };
        let mut times: Vec<f64> =
            self.samples.iter().flat_map(|sample| sample.token_seconds.iter().copied()).collect();
        times.sort_by(f64::total_cmp);
        let quantile = |share: f64| times.get((share * (times.len().max(1) - 1) as f64) as usize);
        let samples = self.samples.iter().map(|sample| {
            let opening = sample.opening.as_ref().map(|opening| {
                json!({
                    "seconds": opening.seconds,
                    "resident_share": opening.resident.as_ref().ok(),
                    "not_evicted": opening.resident.as_ref().err(),
                })
            });
            let microseconds = sample.token_seconds.iter().map(|s| (1e6 * s).round() as u64);
            json!({
                "repeat": sample.repeat,
                "tokens_per_second": sample.speed(),
                "usage": timing::to_json(&sample.usage),
                "token_microseconds": microseconds.collect::<Vec<_>>(),
                "opening": opening,
            })
        });
        let phases = Phase::ALL.map(|phase| (phase.name().to_owned(), self.phase_ms(Some(phase))));
        let other = [("other".to_owned(), self.phase_ms(None))];
        let phases = phases.into_iter().chain(other).map(|(name, ms)| (name, json!(ms)));
        let roofline = self.roofline(speeds).map(|(limit, reached, by_memory)| {
            json!({
                "tokens_per_second": limit,
                "fraction_reached": reached,
                "bound_by": if by_memory { "memory" } else { "drive" },
            })
        });
        json!({
            "work": work,
            "length": length,
            "state": if self.cold { "cold" } else { "warm" },
            "tokens_per_second": self.speed().map(Spread::to_json),
            "token_seconds_p50": quantile(0.5),
            "token_seconds_p95": quantile(0.95),
            "first_token_seconds": self.first_token().map(Spread::to_json),
            "hit_rate": self.hit_rate(),
            "bytes_read_per_token": self.read_per_token(),
            "memory_bytes_per_token": self.is_decode().then(|| json!({
                "dense": self.touched.dense,
                "experts": self.touched.experts,
                "states": self.touched.states,
                "total": self.touched.total(),
            })),
            "phase_ms_per_token": Value::Object(phases.collect()),
            "roofline": roofline,
            "samples": samples.collect::<Vec<_>>(),
        })
    }
}

impl BudgetResult {
    /// Share of the routed experts that the slots hold, with those of a device.
    pub fn experts_in_memory(&self) -> f64 {
        let all = self.plan.all_experts.max(1) as f64;
        let device = self.plan.device.map_or(0, |device| device.experts);
        ((self.plan.experts + device) as f64 / all).min(1.0)
    }

    fn to_json(&self) -> Value {
        json!({
            "budget": self.budget.to_string(),
            "budget_bytes": self.plan.total,
            "expert_slot_bytes": self.plan.experts,
            "all_expert_bytes": self.plan.all_experts,
            "experts_in_memory": self.experts_in_memory(),
            "prompt_chunk": self.plan.chunk,
            "peak_resident_bytes": self.peak_resident,
            "speeds": self.speeds.iter().map(|s| s.to_json()).collect::<Vec<_>>(),
            "cells": self.cells.iter().map(|c| c.to_json(&self.speeds)).collect::<Vec<_>>(),
        })
    }
}

impl Speeds {
    fn to_json(self) -> Value {
        json!({
            "memory_bytes_per_second": self.memory,
            "drive_bytes_per_second": self.drive,
        })
    }
}

impl Results {
    /// The cells of a kind under all budgets, by length, cold before warm.
    pub fn cells(&self, decode: bool) -> Vec<(&BudgetResult, &Cell)> {
        let mut all = Vec::new();
        for budget in &self.budgets {
            let mut cells: Vec<&Cell> =
                budget.cells.iter().filter(|cell| cell.is_decode() == decode).collect();
            cells.sort_by_key(|cell| (cell.length(), !cell.cold));
            all.extend(cells.into_iter().map(|cell| (budget, cell)));
        }
        all
    }

    /// Spread of the memory's speed.
    pub fn memory(&self) -> Option<Spread> {
        Spread::of(self.speeds.iter().map(|speeds| speeds.memory))
    }

    /// Spread of the drive's speed.
    pub fn drive(&self) -> Option<Spread> {
        Spread::of(self.speeds.iter().map(|speeds| speeds.drive))
    }

    /// The largest share of the model that the page cache held before a cold measurement, and why that
    /// is not known, if it is not.
    pub fn coldness(&self) -> (Option<f64>, Option<&str>) {
        let cells = self.budgets.iter().flat_map(|budget| &budget.cells);
        let openings = cells.flat_map(|cell| &cell.samples).filter_map(|s| s.opening.as_ref());
        let mut worst = None;
        let mut unknown = None;
        for opening in openings {
            match &opening.resident {
                Ok(share) => worst = Some(share.max(worst.unwrap_or(0.0))),
                Err(reason) => unknown = Some(reason.as_str()),
            }
        }
        (worst, unknown)
    }

    /// Everything for machines; `head` has what is known besides the measurements.
    pub fn to_json(&self, settings: &Settings, mut head: Value) -> Value {
        head["schema"] = json!(SCHEMA);
        head["settings"] = json!({
            "contexts": settings.contexts,
            "prompts": settings.prompts,
            "budgets": settings.budgets.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tokens": settings.tokens,
            "warmup": settings.warmup,
            "repeats": settings.repeats,
            "seed": settings.seed,
            "io_threads": settings.engine.io_threads,
        });
        head["device"] = json!(self.device);
        head["machine_speeds"] = json!({
            "memory_bytes_per_second": self.memory().map(Spread::to_json),
            "memory_of": if self.is_device_memory { "device" } else { "host" },
            "memory_threads": (!self.is_device_memory).then_some(self.memory_reads.0),
            "memory_buffer_bytes": (!self.is_device_memory).then_some(self.memory_reads.1),
            "drive_bytes_per_second": self.drive().map(Spread::to_json),
            "drive_read_bytes": self.drive_reads.0,
            "drive_threads": self.drive_reads.1,
            "drive_direct": self.direct,
            "samples": self.speeds.iter().map(|s| s.to_json()).collect::<Vec<_>>(),
            "load_average": self.loads,
        });
        let (resident, unknown) = self.coldness();
        head["cold"] = json!({ "resident_share_max": resident, "not_evicted": unknown });
        head["budgets"] = self.budgets.iter().map(BudgetResult::to_json).collect();
        head
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn the_roofline_is_the_slower_of_memory_and_drive() {
        let sample = |repeat, bytes_read| Sample {
            repeat,
            seconds: 1.0,
            usage: Usage {
                tokens: 10,
                bytes_read,
                wall: Duration::from_secs(1),
                ..Usage::default()
            },
            token_seconds: vec![0.1; 10],
            opening: None,
        };
        let touched = DecodeBytes { dense: 600, experts: 300, states: 100 };
        let cell = |bytes_read| Cell {
            work: Work::Decode(0),
            cold: false,
            touched,
            samples: vec![sample(0, bytes_read)],
        };
        let speeds = [Speeds { memory: 20_000.0, drive: 1000.0 }];
        // Memory: 1000 bytes at 20000 a second. Drive: a tenth of the bytes at 1000 a second.
        assert_eq!(cell(100).roofline(&speeds), Some((20.0, 0.5, true)));
        assert_eq!(cell(800).roofline(&speeds), Some((12.5, 0.8, false)));
        let prompt = Cell { work: Work::Prompt(10), ..cell(1) };
        assert_eq!(prompt.roofline(&speeds), None);
    }
}
