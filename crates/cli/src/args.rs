//! The command line as typed: the commands, what several of them take, and what those take that have no module of
//! their own for it.

mod loading;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use crate::args::loading::EngineArgs;
use crate::bench::Budget;
use crate::cache_sim::CacheSimArgs;
use crate::chat::ChatArgs;
use crate::eval::EvalArgs;
use crate::quantize::{PackArgs, QuantizeArgs};
use crate::routing::RoutingArgs;
use crate::serve::ServeArgs;
use crate::synth::SynthArgs;

/// Run Mixture-of-Experts language models larger than memory, on the machine you own.
#[derive(Debug, Parser)]
#[command(name = "flash-moe", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk with a model.
    Chat(ChatArgs),
    /// Answer a prompt.
    Run(RunArgs),
    /// Answer over HTTP: the APIs of OpenAI, Anthropic and Ollama, and a page to talk and to watch.
    Serve(ServeArgs),
    /// Measure speeds under several memory budgets, beside the machine's limits.
    Bench(BenchArgs),
    /// Show what can compute: the CPU and the GPUs, and how fast each reads its memory.
    Devices(DevicesArgs),
    /// Measure what a model's output is worth: perplexity, divergence from a reference, tool calls, and bytes.
    Eval(EvalArgs),
    /// Show what a checkpoint holds and what it needs.
    Inspect(InspectArgs),
    /// Compare with golden outputs of a reference implementation.
    Verify(VerifyArgs),
    /// Write a smaller copy of a checkpoint, with as little loss as its bits allow.
    Quantize(QuantizeArgs),
    /// Write a copy of a checkpoint in which every expert is one read, bit by bit the same.
    Pack(PackArgs),
    /// Write a synthetic checkpoint of a true shape, for measurements.
    Synth(SynthArgs),
    /// Compare eviction policies on routing recorded by run --trace-routing.
    CacheSim(CacheSimArgs),
    /// Show how a model routes: which experts it uses, what a cache of them hits, whether it can be guessed.
    Routing(RoutingArgs),
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model; default: demo.
    pub model: Option<String>,
    /// What to answer; default: standard input.
    pub prompt: Option<String>,
    /// Continue the prompt as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// A system message.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Let the model think before it answers, or not; default: the template's.
    #[arg(long, value_enum, conflicts_with = "raw")]
    pub think: Option<Switch>,
    /// Most tokens to generate; default: as many as the context holds.
    #[arg(long, short = 'n', value_name = "N")]
    pub tokens: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub form: FormArgs,
    /// End the answer at this text; can be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Do not end the answer at the model's own end tokens.
    #[arg(long)]
    pub ignore_eos: bool,
    /// With --json: logarithms of probabilities of each token and of the N best ones.
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Show where the time went, for the prompt and for a generated token; with --json, for each token.
    #[arg(long)]
    pub timing: bool,
    /// Record every phase, every read, what each thread computes and every kernel on a GPU, for Perfetto or Chrome's trace viewer.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Record which experts are asked for, for cache-sim.
    #[arg(long, value_name = "FILE")]
    pub trace_routing: Option<PathBuf>,
    /// Where it is kept which experts were used much, so that the next run begins with those; default: a file
    /// of each checkpoint's own in the user's cache directory, and off for the demo model.
    #[arg(long, value_name = "FILE|off")]
    pub heat_map: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Find how the work is cut best on each GPU and keep it for later starts; some seconds for each. Answers do not
    /// depend on it.
    #[arg(long, conflicts_with = "json")]
    pub tune: bool,
}

/// What the answer has to be.
#[derive(Args, Debug)]
pub struct FormArgs {
    /// Tools that the model may call: a JSON list, in the form of the OpenAI API. Calls match their schemas
    /// and are printed as lines of JSON.
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub tools: Option<PathBuf>,
    /// The answer is JSON that matches this schema.
    #[arg(long, value_name = "FILE|JSON", conflicts_with = "raw", group = "answer_form")]
    pub json_schema: Option<String>,
    /// The answer as a whole matches this regular expression.
    #[arg(long, value_name = "REGEX", conflicts_with = "raw", group = "answer_form")]
    pub regex: Option<String>,
    /// The answer is a text of this grammar, in Lark's notation.
    #[arg(long, value_name = "FILE", conflicts_with = "raw", group = "answer_form")]
    pub grammar: Option<PathBuf>,
    /// The answer is this text; repeated, one of these.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", group = "answer_form")]
    pub choice: Vec<String>,
}

/// How tokens are chosen; defaults are the model's own.
#[derive(Args, Debug)]
pub struct SamplingArgs {
    /// Take the best token every time; same as --temperature 0.
    #[arg(long, conflicts_with = "temperature")]
    pub greedy: bool,
    /// Softmax temperature.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the best N tokens; 0 keeps all.
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Keep the smallest set of best tokens with this probability.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the best token's probability.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens already in the context; 1 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtract from the logits of tokens generated before; 0 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract from logits as often as the token was generated before; 0 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Seed of the random numbers: the same seed gives the same answer; default: 0.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The model's own sampling, changed by what was given.
    pub fn apply(&self, default: &engine::Sampling) -> engine::Sampling {
        engine::Sampling {
            temperature: if self.greedy {
                0.0
            } else {
                self.temperature.unwrap_or(default.temperature)
            },
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            seed: self.seed.unwrap_or(default.seed),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model; default: that.
    pub model: Option<String>,
    /// Decode after so many tokens; default: 0,512.
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',')]
    pub contexts: Option<Vec<usize>>,
    /// Read prompts of so many tokens; 0 for none; default: 128, and the contexts.
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',')]
    pub prompts: Option<Vec<usize>>,
    /// Memory of the process such as 8G, of the routed experts such as 25%, of those on a GPU and beside it such
    /// as 25%+50%, or all that is free; default: 25%,all.
    #[arg(long, value_name = "SIZE|PERCENT|all,...", value_delimiter = ',')]
    pub budgets: Option<Vec<Budget>>,
    /// Tokens to decode and time; default: 32.
    #[arg(long, short = 'n', value_name = "N", value_parser = positive)]
    pub tokens: Option<usize>,
    /// Tokens to decode before those when measuring warm; default: 16.
    #[arg(long, value_name = "N")]
    pub warmup: Option<usize>,
    /// Times to measure everything; default: 3.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub repeats: Option<usize>,
    /// Seed of the random tokens.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Measure less: one repeat, few tokens, a prompt of 64, no context, all the memory.
    #[arg(long)]
    pub quick: bool,
    /// Write the tables as Markdown, too.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Write one Markdown file with the tables, the machine, the command, and every value. Without a model:
    /// a checklist of this machine and its GPU, each line beside what is expected.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Put this model into the checklist, too.
    #[arg(long, value_name = "MODEL", requires = "report", conflicts_with = "model")]
    pub with: Option<String>,
    /// Write plots there: retention.svg and phases.svg.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
    /// In the end decode some more tokens and record every phase and read, for trace viewers.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args, Debug)]
pub struct InspectArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model.
    pub model: String,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A checkpoint's directory or GGUF file.
    pub model: PathBuf,
    /// The golden outputs; default: golden.safetensors in the directory, or beside the file.
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// Largest difference of a logit that counts as equal; default: 1e-3, and 1e-2 on a GPU, which keeps
    /// keys and values in 16-bit floats.
    #[arg(long, value_name = "X")]
    pub tolerance: Option<f32>,
    /// Compute as `run` does, with activations in 8 bits, instead of as with --precise: shows what that
    /// costs, and fails where low-bit weights are beyond the tolerance.
    #[arg(long, conflicts_with = "precise")]
    pub fast: bool,
    /// Write our own outputs under the golden names.
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// A number of bytes such as 8G.
pub fn size(text: &str) -> Result<u64, String> {
    engine::parse_size(text).map_err(|error| error.to_string())
}

/// A whole number above zero.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number from 1".to_owned()),
        Ok(number) => Ok(number),
    }
}
