//! `flash-moe routing`: how a model routes a text, and what follows for memory and reading ahead.

mod chart;
mod findings;
mod guess_plots;
mod json;
mod page;
mod plots;
mod sizes;
mod summary;

use std::fs::{self, File, OpenOptions};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use clap::Args;
use engine::cache::Trace;
use engine::{Engine, Inventory};
use routing::{Analysis, CacheSize, LookAhead, Shape};

use crate::args::{EngineArgs, positive};
use crate::demo;
use crate::output::{self, Progress};
use crate::run::warn_of_unknown_tensors;

#[derive(Args, Debug)]
pub struct RoutingArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model.
    #[arg(required_unless_present = "trace", requires = "text", conflicts_with = "trace")]
    pub model: Option<String>,
    /// The text that the model reads, as it is, without the chat template.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub text: Option<PathBuf>,
    /// Routing that run --trace-routing has recorded, instead of a model and a text; without look-ahead.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Most tokens of the text.
    #[arg(long, short = 'n', value_name = "N", default_value = "4096", value_parser = positive)]
    pub tokens: usize,
    /// Rank of the trained predictors.
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    pub rank: usize,
    /// Write everything as one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// All that is told.
struct Report {
    /// The model or the trace, for people.
    name: String,
    /// Where the routing comes from, as a part of a sentence.
    source: String,
    /// Tokens, of how many of the text; `None` for a trace.
    tokens: Option<(usize, usize)>,
    trace: Trace,
    analysis: Analysis,
    /// Of a model.
    look_ahead: Option<LookAhead>,
    /// Width of the residual stream, of a model.
    hidden: Option<usize>,
    memory: Vec<MemorySize>,
}

/// What some memory gives.
struct MemorySize {
    /// The whole budget, `--memory`; `None` for a trace, where only the memory for experts is known.
    memory: Option<u64>,
    cache: CacheSize,
}

/// Runs the command.
pub fn routing(args: RoutingArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.report {
        // Opened before the minutes of work, so that a mistyped path does not cost them. What is there stays
        // until there is something in its place.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        options.open(path).with_context(|| format!("creating {}", path.display()))?;
    }
    let report = match (&args.trace, &args.model, &args.text) {
        (Some(trace), ..) => of_trace(trace)?,
        (None, Some(model), Some(text)) => of_model(&args, model, text)?,
        _ => bail!("there is no text\nhint: flash-moe routing MODEL --text FILE"),
    };
    if let Some(path) = &args.report {
        fs::write(path, page::page(&report))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if args.json {
        output::json(&json::json(&report))?;
    } else {
        output::stream(&summary::summary(&report, args.report.as_deref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn of_trace(path: &Path) -> anyhow::Result<Report> {
    let open = || -> anyhow::Result<Trace> { Ok(Trace::read(BufReader::new(File::open(path)?))?) };
    let trace = open().with_context(|| format!("reading {}", path.display()))?;
    if trace.requests.iter().all(|request| request.experts.is_empty()) {
        bail!("{} has no use of an expert", path.display());
    }
    let analysis = analyse(&trace);
    let memory = analysis.caches.iter().cloned();
    let memory = memory.map(|cache| MemorySize { memory: None, cache }).collect();
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    let source = format!("{} recorded passes", analysis.n_passes);
    let (tokens, look_ahead, hidden) = (None, None, None);
    Ok(Report { name, source, tokens, trace, analysis, look_ahead, hidden, memory })
}

fn of_model(args: &RoutingArgs, model: &str, text_file: &Path) -> anyhow::Result<Report> {
    let text = fs::read_to_string(text_file)
        .with_context(|| format!("reading {}", text_file.display()))?;
    let directory = demo::resolve(model)?;
    let mut inventory = Inventory::read(&directory).with_context(|| format!("opening {model}"))?;
    inventory.add_twin(&args.engine.options())?;
    // Plans are made before anything is loaded, so that what is loaded does not count twice.
    let planned = sizes::planned(&inventory, &args.engine.options())?;
    let shape = Shape::new(inventory.checkpoint.config(), 0);
    drop(inventory);

    let mut options = args.engine.options();
    // A token is at least a byte of text.
    options.beside.bytes = shape.needed_bytes(args.tokens.min(text.len()));
    let mut progress = Progress::new();
    progress.show(&format!("loading {model} ..."));
    let mut engine =
        Engine::open(&directory, &options).with_context(|| format!("opening {model}"))?;
    progress.clear();
    warn_of_unknown_tensors(&engine);
    let mut tokens = engine.tokenizer()?.encode_trusted(&text)?;
    let n_tokens = tokens.len();
    tokens.truncate(args.tokens);
    if tokens.is_empty() {
        bail!("{} has no text", text_file.display());
    }
    let collected = routing::collect(&mut engine, &tokens, |done| {
        progress.show(&format!("{done} of {} tokens read ...", tokens.len()));
    })?;
    progress.clear();
    drop(engine);

    let analysis = analyse(&collected.trace);
    let n_layers = collected.sample.layers.len();
    let shown = Mutex::new(progress);
    let trained = |done: usize| {
        let mut progress = shown.lock().unwrap_or_else(PoisonError::into_inner);
        progress.show(&format!("predictors of {done} of {n_layers} layers trained ..."));
    };
    let look_ahead = LookAhead::measure(&collected, &analysis, args.rank, &trained);
    drop(shown);
    let trace = collected.trace;
    let memory = planned.into_iter().map(|(memory, slots)| MemorySize {
        memory: Some(memory),
        cache: CacheSize::simulate(&trace, slots, analysis.skip),
    });
    let memory = memory.collect();
    let file = text_file.file_name().map_or_else(String::new, |f| f.to_string_lossy().into());
    Ok(Report {
        name: model.to_owned(),
        source: format!("{} tokens of {file}", tokens.len()),
        tokens: Some((tokens.len(), n_tokens)),
        trace,
        analysis,
        look_ahead: Some(look_ahead),
        hidden: Some(shape.hidden),
        memory,
    })
}

fn analyse(trace: &Trace) -> Analysis {
    let mut progress = Progress::new();
    Analysis::of_trace(trace, |share| {
        progress.show(&format!("simulating caches, {:.0} % ...", 100.0 * share));
    })
}

impl Report {
    /// Experts of all layers.
    fn n_experts(&self) -> usize {
        routing::n_experts(&self.trace)
    }

    /// The layers with routed experts.
    fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        let counts = self.trace.experts.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).map(|(layer, _)| layer)
    }

    /// Experts of a layer with routed ones; of the widest if they differ.
    fn experts_of_layer(&self) -> usize {
        self.trace.experts.iter().copied().max().unwrap_or(0) as usize
    }

    /// What a cache of some slots holds, as a share of all experts.
    fn share(&self, slots: usize) -> f64 {
        slots as f64 / self.n_experts().max(1) as f64
    }

    /// Bytes that a pass reads with some misses among what counts for caches.
    fn bytes_per_pass(&self, misses: u64) -> f64 {
        let counted = (self.analysis.n_passes - self.analysis.n_warming).max(1);
        misses as f64 / counted as f64 * self.trace.slot_bytes as f64
    }

    /// What a pass is called.
    fn pass(&self) -> &'static str {
        if self.tokens.is_some() { "token" } else { "pass" }
    }
}
