//! `flash-moe eval`: what a model's output is worth, and what its bytes buy.

mod front;
mod run;
mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use eval::{Results, Summary};
use serde_json::json;

use crate::args::{EngineArgs, Switch, positive};
use crate::output;

#[derive(Args, Debug)]
pub struct EvalArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model.
    #[arg(required_unless_present = "compare")]
    pub model: Option<String>,
    /// Compare with a reference: a checkpoint, which is run with --precise and nothing lossy (the same one shows
    /// what 8-bit activations cost), or a file of --keep-reference.
    #[arg(long, value_name = "MODEL|FILE", requires = "text")]
    pub against: Option<String>,
    /// Keep the reference's predictions there, so that a huge reference runs once.
    #[arg(long, value_name = "FILE", requires = "against")]
    pub keep_reference: Option<PathBuf>,
    /// Tokens whose probabilities are kept of each prediction of the reference; the others count as one.
    #[arg(long, value_name = "N", default_value_t = eval::DEFAULT_TOP, value_parser = positive)]
    pub reference_top: usize,
    /// Texts to predict: plain, or .jsonl with "text" or "segments" in each line.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub text: Vec<PathBuf>,
    /// Requests with the calls, the JSON or the number that they should lead to, a line of JSON each.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub tools: Vec<PathBuf>,
    /// Longest sequence of text; longer ones are cut.
    #[arg(long, value_name = "TOKENS", default_value_t = eval::DEFAULT_WINDOW, value_parser = positive)]
    pub window: usize,
    /// Only the first N documents and requests of each file.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub limit: Option<usize>,
    /// Let the model think before it answers requests.
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    pub think: Switch,
    /// Write all results there, as JSON. An interrupted run goes on from FILE.progress.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Compare results of earlier runs; the first is the base.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 1..,
        conflicts_with_all = ["model", "text", "tools", "out"]
    )]
    pub compare: Vec<PathBuf>,
    /// Draw quality against bytes there (SVG).
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// The bytes that the plot shows: those that a token uses, or those that were read for it.
    #[arg(long, value_enum, default_value_t = BytesArg::Used)]
    pub plot_bytes: BytesArg,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Kinds of bytes.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum BytesArg {
    /// Of the routed experts that a token used.
    Used,
    /// Read from the drive.
    Read,
}

/// Runs the command.
pub fn eval(args: EvalArgs) -> anyhow::Result<ExitCode> {
    let all = match &args.model {
        Some(model) => {
            if args.text.is_empty() && args.tools.is_empty() {
                bail!(
                    "there is nothing to evaluate\nhint: give texts with --text, requests with --tools"
                );
            }
            vec![run::run(&args, model)?]
        }
        None => {
            let read = |path: &PathBuf| Ok(Results::read(path)?);
            args.compare.iter().map(read).collect::<anyhow::Result<Vec<Results>>>()?
        }
    };
    let summaries: Vec<Summary> = all.iter().map(Summary::of).collect();
    if let Some(path) = &args.plot {
        write(path, &front::plot(&all, &summaries, args.plot_bytes)?)?;
    }
    match (&all[..], args.json) {
        ([one], true) if args.compare.is_empty() => {
            output::json(&json!({ "facts": one.facts, "summary": summaries[0] }))?;
        }
        (all, true) => {
            let runs = all.iter().zip(&summaries).map(|(results, summary)| {
                let paired = eval::compare(&all[0], results);
                json!({ "facts": results.facts, "summary": summary, "beside_the_first": paired })
            });
            output::json(&json!({ "runs": runs.collect::<Vec<_>>() }))?;
        }
        ([one], false) => output::stream(&tables::one(one, &summaries[0]))?,
        (all, false) => output::stream(&tables::several(all, &summaries))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
