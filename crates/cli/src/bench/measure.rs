//! The measurements, in an order in which a change of the machine's mood hits all of them alike.
//!
//! A repeat goes through all budgets. Under each, the machine's speeds are measured with no engine in
//! memory; then an engine is opened with cold caches for each cold measurement; the last one goes on to
//! the warm ones; then the machine's speeds again. Every measurement has tokens of its own, the same in
//! each repeat and under each budget.

use std::time::Instant;

use anyhow::Context;
use engine::measure::{self, DecodeBytes, Drive};
use engine::{Engine, EngineOptions, Inventory, Session, Usage};

use crate::bench::results::{BudgetResult, Cell, Opening, Results, Sample, Speeds, Work};
use crate::bench::settings::{Budget, Settings};
use crate::output::Progress;
use crate::trace::Trace;

/// Bytes that the drive is asked for at once: it is measured with few and with many, and the better
/// counts, because drives differ in what they like.
const IN_FLIGHT_BYTES: [u64; 2] = [8 << 20, 32 << 20];

/// The benchmark of a model.
pub struct Bench<'a> {
    settings: &'a Settings,
    path: &'a std::path::Path,
    drive: Drive,
    /// Threads and bytes by which memory is measured.
    memory_reads: (usize, usize),
    progress: Progress,
    vocab: u64,
    results: Results,
}

impl<'a> Bench<'a> {
    /// Checks that all budgets can be had before anything is measured. `memory_bytes` is more than all
    /// caches hold.
    pub fn new(
        settings: &'a Settings,
        path: &'a std::path::Path,
        inventory: &Inventory,
        memory_bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut budgets = Vec::new();
        let all_experts = engine::plan_memory(inventory, &settings.engine)?.all_experts;
        for &budget in &settings.budgets {
            let options = settings.options(budget, all_experts);
            let plan = engine::plan_memory(inventory, &options)
                .with_context(|| format!("with a budget of {budget}"))?;
            budgets.push(BudgetResult {
                budget,
                cells: cells(settings, inventory, &options)?,
                plan,
                speeds: Vec::new(),
                peak_resident: None,
            });
        }
        let drive = Drive::open(inventory)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory_reads = (settings.engine.threads.unwrap_or(cores), memory_bytes);
        let results = Results {
            device: String::new(),
            drive_reads: (drive.read_bytes(), 0),
            direct: false,
            memory_reads,
            is_device_memory: false,
            speeds: Vec::new(),
            loads: Vec::new(),
            budgets,
        };
        let vocab = inventory.checkpoint.config().vocab_size as u64;
        let progress = Progress::new();
        Ok(Self { settings, path, drive, memory_reads, progress, vocab, results })
    }

    /// Measures everything.
    pub fn run(mut self, trace: Option<&Trace>) -> anyhow::Result<Results> {
        if let Some(trace) = trace {
            trace.recorder().set_recording(false);
        }
        for repeat in 0..self.settings.repeats {
            self.results.loads.extend(super::machine::load_average());
            for index in 0..self.settings.budgets.len() {
                let last =
                    repeat + 1 == self.settings.repeats && index + 1 == self.settings.budgets.len();
                self.budget(repeat, index, trace.filter(|_| last)).with_context(|| {
                    format!("with a budget of {}", self.settings.budgets[index])
                })?;
            }
        }
        self.progress.clear();
        Ok(self.results)
    }

    /// One repeat under one budget.
    fn budget(&mut self, repeat: usize, index: usize, trace: Option<&Trace>) -> anyhow::Result<()> {
        let budget = self.settings.budgets[index];
        let before = self.speeds(repeat)?;
        let all_experts = self.results.budgets[index].plan.all_experts;
        let options = self.settings.options(budget, all_experts);

        let mut engine: Option<Engine> = None;
        let mut session: Option<Session> = None;
        let mut peak_is_ours = false;
        let n_cells = self.results.budgets[index].cells.len();
        for cell in 0..n_cells {
            let Cell { work, cold, .. } = self.results.budgets[index].cells[cell];
            self.tell(repeat, budget, work, cold);
            let tokens = Tokens::new(self.settings.seed, cell as u64, self.vocab);
            let mut opening = None;
            if cold {
                // One engine's memory is given back before the next one takes its own.
                (session, engine) = (None, None);
                opening = Some(self.make_cold());
                // Without a reset, the peak would be that of measuring the memory's speed.
                peak_is_ours = measure::reset_peak_resident();
            }
            let engine = match &mut engine {
                Some(engine) => engine,
                none => {
                    let begin = Instant::now();
                    let opened = Engine::open(self.path, &options).context("opening the model")?;
                    if let Some(opening) = &mut opening {
                        opening.seconds = begin.elapsed().as_secs_f64();
                    }
                    self.results.device = opened.device_name();
                    if opened.lossy().is_on() {
                        self.results.device += &format!(", lossy: {}", opened.lossy());
                    }
                    self.results.budgets[index].plan = opened.plan().clone();
                    none.insert(opened)
                }
            };
            let mut sample = self.measure(engine, &mut session, work, cold, tokens)?;
            (sample.repeat, sample.opening) = (repeat, opening);
            let result = &mut self.results.budgets[index];
            result.cells[cell].samples.push(sample);
            if peak_is_ours {
                let peak = measure::peak_resident_bytes();
                result.peak_resident = result.peak_resident.max(peak);
            }
        }
        if let (Some(trace), Some(engine)) = (trace, &mut engine) {
            self.progress.show("decoding for the trace ...");
            let mut tokens = Tokens::new(self.settings.seed, n_cells as u64, self.vocab);
            drop(session.take());
            let mut session = engine.session()?;
            trace.recorder().set_recording(true);
            decode(engine, &mut session, &tokens.take(self.settings.tokens))?;
            trace.recorder().set_recording(false);
        }
        drop(engine);
        let after = self.speeds(repeat)?;
        self.results.budgets[index].speeds.push(Speeds {
            memory: f64::midpoint(before.memory, after.memory),
            drive: f64::midpoint(before.drive, after.drive),
        });
        Ok(())
    }

    /// One measurement; repeat and opening are left to the caller. The session of a prompt is kept for
    /// decoding after it.
    fn measure(
        &self,
        engine: &mut Engine,
        kept: &mut Option<Session>,
        work: Work,
        cold: bool,
        mut tokens: Tokens,
    ) -> anyhow::Result<Sample> {
        let wanted = match work {
            Work::Prompt(_) => 0,
            Work::Decode(context) => context,
        };
        let session = match kept.take().filter(|session| session.tokens().len() == wanted) {
            Some(session) => kept.insert(session),
            None => {
                let session = kept.insert(engine.session()?);
                engine.evaluate(session, &tokens.take(wanted), |_| false, |_, _| {})?;
                session
            }
        };
        let (usage, token_seconds, seconds) = match work {
            Work::Prompt(length) => {
                let prompt = tokens.take(length);
                let begin = Instant::now();
                let (_, usage) = engine.best_after(session, &prompt)?;
                (usage, Vec::new(), begin.elapsed().as_secs_f64())
            }
            Work::Decode(_) => {
                if !cold {
                    decode(engine, session, &tokens.take(self.settings.warmup))?;
                }
                let (usage, times) = decode(engine, session, &tokens.take(self.settings.tokens))?;
                let seconds = times.iter().sum();
                (usage, times, seconds)
            }
        };
        Ok(Sample { repeat: 0, seconds, usage, token_seconds, opening: None })
    }

    /// The machine's speeds, with no engine in memory.
    fn speeds(&mut self, repeat: usize) -> anyhow::Result<Speeds> {
        self.progress.show("measuring memory and drive ...");
        let (threads, bytes) = self.memory_reads;
        let probe = self.settings.probe;
        let memory = match measure::own_memory_bandwidth(self.settings.engine.device, probe) {
            Some(speed) => {
                self.results.is_device_memory = true;
                speed.map_err(anyhow::Error::msg)
            }
            None => measure::memory_bandwidth(threads, bytes, probe).map_err(Into::into),
        };
        let memory = memory.context("measuring the speed of memory")?;
        // Other places each time: the host of a virtual machine may remember.
        let seed = self.settings.seed ^ ((repeat + self.results.speeds.len()) as u64) << 48;
        let mut best = 0.0;
        for (depth, bytes) in IN_FLIGHT_BYTES.into_iter().enumerate() {
            let drive =
                self.drive.measure(bytes, self.settings.probe, seed ^ (depth as u64) << 32)?;
            best = drive.bytes_per_second.max(best);
            self.results.drive_reads.1 = drive.threads.max(self.results.drive_reads.1);
            self.results.direct = drive.direct;
        }
        let speeds = Speeds { memory, drive: best };
        self.results.speeds.push(speeds);
        Ok(speeds)
    }

    /// Drops the model's pages; the time to open is not known yet.
    fn make_cold(&self) -> Opening {
        let resident = self.drive.make_cold().map_err(|error| error.to_string());
        Opening { seconds: 0.0, resident }
    }

    fn tell(&mut self, repeat: usize, budget: Budget, work: Work, cold: bool) {
        let state = if cold { "cold" } else { "warm" };
        let work = match work {
            Work::Prompt(tokens) => format!("prompt of {tokens}"),
            Work::Decode(context) => format!("decoding after {context}"),
        };
        let of = self.settings.repeats;
        self.progress.show(&format!("repeat {} of {of}: {budget}, {state} {work} ...", repeat + 1));
    }
}

/// What is measured under each budget, in order: cold ones first, each in an engine of its own; then
/// the warm ones, by length, with the empty context last, when prompts have filled the slots.
fn cells(
    settings: &Settings,
    inventory: &Inventory,
    options: &EngineOptions,
) -> anyhow::Result<Vec<Cell>> {
    let cell = |work, cold| {
        let position = match work {
            Work::Prompt(length) => length,
            Work::Decode(context) => context + settings.tokens / 2,
        };
        let touched = DecodeBytes::of(inventory, options, position)?;
        anyhow::Ok(Cell { work, cold, touched, samples: Vec::new() })
    };
    let mut cells = Vec::new();
    for &length in &settings.prompts {
        cells.push(cell(Work::Prompt(length), true)?);
    }
    cells.push(cell(Work::Decode(0), true)?);
    for length in settings.lengths() {
        cells.push(cell(Work::Prompt(length), false)?);
        if settings.contexts.contains(&length) {
            cells.push(cell(Work::Decode(length), false)?);
        }
    }
    if settings.contexts.contains(&0) {
        cells.push(cell(Work::Decode(0), false)?);
    }
    Ok(cells)
}

/// Computes tokens one by one, each with the best token after it, and takes each one's time.
fn decode(
    engine: &mut Engine,
    session: &mut Session,
    tokens: &[u32],
) -> anyhow::Result<(Usage, Vec<f64>)> {
    let mut usage = Usage::default();
    let mut seconds = Vec::with_capacity(tokens.len());
    for token in tokens.chunks(1) {
        let begin = Instant::now();
        usage += &engine.best_after(session, token)?.1;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    Ok((usage, seconds))
}

/// Random tokens of a seed: the SplitMix64 finaliser of a counter.
struct Tokens {
    counter: u64,
    vocab: u64,
}

impl Tokens {
    /// The tokens of a measurement.
    fn new(seed: u64, cell: u64, vocab: u64) -> Self {
        Self { counter: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (cell << 40), vocab }
    }

    fn take(&mut self, n_tokens: usize) -> Vec<u32> {
        let next = |_| {
            self.counter = self.counter.wrapping_add(1);
            let mut x = self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((x ^ (x >> 31)) % self.vocab.max(1)) as u32
        };
        (0..n_tokens).map(next).collect()
    }
}
