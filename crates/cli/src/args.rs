//! The command line as typed, and the engine's options made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::{Device, EngineOptions, Isa, KvType, LookAhead, Lossy, ReaderKind};

use crate::bench::Budget;
use crate::chat::ChatArgs;
use crate::eval::EvalArgs;
use crate::quantize::{PackArgs, QuantizeArgs};
use crate::routing::RoutingArgs;
use crate::serve::ServeArgs;

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

/// What every command that loads a model takes.
#[derive(Args, Debug)]
pub struct EngineArgs {
    /// Bound of all memory that the process uses, such as 8G; default: nine tenths of what is free.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Bound of the memory for routed experts within that; default: all that is left.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub expert_cache: Option<u64>,
    /// Threads that compute; default: all cores.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// How experts are read.
    #[arg(long, value_enum, default_value_t = ReaderArg::Auto)]
    pub reader: ReaderArg,
    /// Read experts before they are asked for, while the drive is idle; auto: while that pays.
    #[arg(long, value_enum, default_value_t = LookAheadArg::Auto)]
    pub look_ahead: LookAheadArg,
    /// Threads that read from the drive, where threads do.
    #[arg(long, value_name = "N", default_value = "4", value_parser = positive)]
    pub io_threads: usize,
    /// Longest sequence in tokens; default: what the budget allows.
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub context: Option<usize>,
    /// Most prompt tokens in one forward pass; default: what the budget allows.
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub prompt_chunk: Option<usize>,
    /// What computes: cpu, gpu, or gpu:N with a number from `flash-moe devices`; auto takes the GPU if it
    /// reads its memory faster than the CPU and the model's trunk fits into that. For tests: reference,
    /// which is slow and what everything is compared with, and the CPU with certain instructions,
    /// cpu-scalar, cpu-avx2, cpu-avx512, cpu-neon, cpu-neon-dotprod.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: Device,
    /// Bound of what is kept in the memory of a GPU, within that the trunk and as many routed experts as
    /// fit; default: nine tenths of it.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub vram: Option<u64>,
    /// Bound of the memory of a GPU for routed experts within that; default: all that is left. Experts beyond it
    /// are kept in the host's memory as far as there is room, and moved when they are used.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub expert_vram: Option<u64>,
    /// Copy experts to a GPU whose memory is the host's instead of letting it read them where they are: to compare.
    #[arg(long)]
    pub copy_experts: bool,
    /// Multiply low-bit weights with activations in 32-bit floats instead of 8-bit integers: slower, and
    /// as near to the reference implementation as rounding allows.
    #[arg(long)]
    pub precise: bool,
    /// How keys and values of attention are stored; default: f16, or f32 with --precise.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub kv_type: Option<KvTypeArg>,
    /// Read through the system's page cache instead of past it.
    #[arg(long)]
    pub buffered_io: bool,
    #[command(flatten)]
    pub lossy: LossyArgs,
}

/// Savings that change what the model says; `flash-moe eval` measures what they cost.
#[derive(Args, Debug)]
#[command(next_help_heading = "Lossy savings, off by default")]
pub struct LossyArgs {
    /// Use only the best K experts of each token, fewer than the model was trained with.
    #[arg(long, value_name = "K", value_parser = positive)]
    pub experts_per_token: Option<usize>,
    /// Leave out experts with less than this share of a token's routed weight, such as 0.05.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub expert_drop: f32,
    /// Let an expert in memory replace one that is not, if its router logit is at most so much smaller, such
    /// as 0.5. The output then depends on what was computed before.
    #[arg(long, value_name = "LOGITS", default_value_t = 0.0)]
    pub cache_bias: f32,
    /// With a GPU: let the CPU compute experts that are in the host's memory, in its own 8-bit arithmetic, when
    /// that is measured to be sooner than moving them to the GPU. The output then depends on which those
    /// are, within rounding.
    #[arg(long)]
    pub device_split: bool,
    /// A checkpoint of the same model with fewer bits, such as `flash-moe quantize` makes: with --twin-share,
    /// its experts are used in the place of those that are not in memory and weigh little.
    #[arg(long, value_name = "DIR", requires = "twin_share")]
    pub twin: Option<PathBuf>,
    /// Use the twin of an expert that is not in memory if it has at most this share of a token's routed weight,
    /// such as 0.1. The output then depends on what was computed before.
    #[arg(long, value_name = "SHARE", requires = "twin")]
    pub twin_share: Option<f32>,
}

impl EngineArgs {
    /// The engine's options.
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            memory: self.memory,
            expert_cache: self.expert_cache,
            threads: self.threads,
            reader: self.reader.into(),
            look_ahead: self.look_ahead.into(),
            io_threads: self.io_threads,
            context: self.context,
            prompt_chunk: self.prompt_chunk,
            device: self.device,
            vram: self.vram,
            expert_vram: self.expert_vram,
            copy_experts: self.copy_experts,
            precise: self.precise,
            kv_type: self.kv_type.map(KvTypeArg::into),
            direct_io: !self.buffered_io,
            lossy: Lossy {
                experts_per_token: self.lossy.experts_per_token,
                expert_drop: self.lossy.expert_drop,
                cache_bias: self.lossy.cache_bias,
                device_split: self.lossy.device_split,
                twin_share: self.lossy.twin_share.unwrap_or(0.0),
            },
            twin: self.lossy.twin.clone(),
            kernel_cache: crate::cache::directory(),
            ..EngineOptions::default()
        }
    }
}

/// Names of readers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReaderArg {
    /// Whichever a short measurement finds better on this machine and this file.
    Auto,
    /// A pool of threads.
    Threads,
    /// Linux's io_uring, or threads where it cannot be had.
    Uring,
}

impl From<ReaderArg> for ReaderKind {
    fn from(reader: ReaderArg) -> Self {
        match reader {
            ReaderArg::Auto => Self::Auto,
            ReaderArg::Threads => Self::Threads,
            ReaderArg::Uring => Self::Uring,
        }
    }
}

/// Whether to look ahead.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LookAheadArg {
    /// While it pays.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl From<LookAheadArg> for LookAhead {
    fn from(look_ahead: LookAheadArg) -> Self {
        match look_ahead {
            LookAheadArg::Auto => Self::Auto,
            LookAheadArg::On => Self::On,
            LookAheadArg::Off => Self::Off,
        }
    }
}

/// The devices that have names of their own.
const DEVICES: [(&str, Device); 11] = [
    ("auto", Device::Auto),
    ("cpu", Device::Cpu),
    ("cpu-scalar", Device::CpuIsa(Isa::Scalar)),
    ("cpu-avx2", Device::CpuIsa(Isa::Avx2)),
    ("cpu-avx-vnni", Device::CpuIsa(Isa::AvxVnni)),
    ("cpu-avx512", Device::CpuIsa(Isa::Avx512)),
    ("cpu-neon", Device::CpuIsa(Isa::Neon)),
    ("cpu-neon-dotprod", Device::CpuIsa(Isa::NeonDotprod)),
    ("cpu-neon-i8mm", Device::CpuIsa(Isa::NeonI8mm)),
    ("gpu", Device::Gpu(None)),
    ("reference", Device::Reference),
];

fn device(text: &str) -> Result<Device, String> {
    let number = || text.strip_prefix("gpu:")?.parse().ok();
    let named = DEVICES.iter().find(|(name, _)| *name == text).map(|(_, device)| *device);
    named.or_else(|| number().map(|number| Device::Gpu(Some(number)))).ok_or_else(|| {
        let names = DEVICES.map(|(name, _)| name).join(", ");
        format!("must be one of {names}, or gpu:N with a number from `flash-moe devices`")
    })
}

/// Types of keys and values.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KvTypeArg {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// 8.5 bits a value: about half the memory of f16, for longer contexts.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<KvTypeArg> for KvType {
    fn from(kv_type: KvTypeArg) -> Self {
        match kv_type {
            KvTypeArg::F32 => Self::F32,
            KvTypeArg::F16 => Self::F16,
            KvTypeArg::Q8_0 => Self::Q8_0,
        }
    }
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
    /// Record every phase, every read and what each thread computes, for Perfetto or Chrome's trace viewer.
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

#[derive(Args, Debug)]
pub struct SynthArgs {
    /// The model whose shapes to take.
    #[arg(long, value_enum)]
    pub preset: PresetArg,
    /// Layers, if not all.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub layers: Option<usize>,
    /// Experts of a layer, if not all.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub experts: Option<usize>,
    /// What to write.
    #[arg(long, value_enum, default_value_t = FormatArg::Mlx)]
    pub format: FormatArg,
    /// Of MLX: bits of a weight, 2, 3, 4, 5, 6 or 8.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub bits: u8,
    /// Of GGUF: type of the experts; all else is Q8_0.
    #[arg(long, value_enum, default_value_t = QuantArg::Q4K)]
    pub quant: QuantArg,
    /// Rows of the vocabulary; default: the model's own, or 4096 with fewer layers.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub vocab: Option<usize>,
    /// Seed of the random numbers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Directory or GGUF file to write; must not exist.
    pub out: PathBuf,
}

#[derive(Args, Debug)]
pub struct CacheSimArgs {
    /// The recorded routing.
    pub trace: PathBuf,
    /// Numbers of slots to simulate; default: some shares of all experts.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = positive)]
    pub slots: Vec<usize>,
    /// Sizes of the memory for routed experts to simulate, such as 4G,8G.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = size)]
    pub sizes: Vec<u64>,
    /// Do not count the first N passes, such as the prompt's.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// Also try the default policy with other half-lives, in uses of an average expert.
    #[arg(long, value_name = "USES", value_delimiter = ',', value_parser = positive_real)]
    pub half_life: Vec<f64>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Names of shapes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PresetArg {
    /// Qwen3.5-35B-A3B: 40 layers of 256 experts.
    #[value(name = "qwen3.5-35b-a3b", alias = "35b")]
    A3b,
    /// Qwen3.5-122B-A10B: 48 layers of 256 experts.
    #[value(name = "qwen3.5-122b-a10b", alias = "122b")]
    A10b,
    /// Qwen3.5-397B-A17B: 60 layers of 512 experts.
    #[value(name = "qwen3.5-397b-a17b", alias = "397b")]
    A17b,
    /// A few megabytes with the same structure, for tests.
    #[value(name = "tiny")]
    Tiny,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum FormatArg {
    /// A directory of MLX safetensors.
    Mlx,
    /// A GGUF file.
    Gguf,
}

/// Types of experts in a GGUF file.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum QuantArg {
    /// 4.5 bits a weight, in super-blocks.
    #[value(name = "q4_k")]
    Q4K,
    /// 4.5 bits a weight.
    #[value(name = "q4_0")]
    Q4_0,
    /// 8.5 bits a weight.
    #[value(name = "q8_0")]
    Q8_0,
}

/// A number of bytes such as 8G.
pub fn size(text: &str) -> Result<u64, String> {
    engine::parse_size(text).map_err(|error| error.to_string())
}

fn positive_real(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("must be a number above 0".to_owned()),
    }
}

/// A whole number above zero.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number from 1".to_owned()),
        Ok(number) => Ok(number),
    }
}
