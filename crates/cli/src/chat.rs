//! `flash-moe chat`: options and configuration made one, then the talk.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use chat::ChatModel;
use clap::{Args, ValueEnum};
use engine::{Engine, EngineOptions, Error, HeatMapPlace, PrefixCacheOptions};
use terminal::config::{Config, EngineConfig};
use terminal::{Models, Options, When};

use crate::args::{EngineArgs, SamplingArgs, Switch, size};
use crate::demo;
use crate::run::{heat_map_place, tell_of_lossy};

/// Memory for the beginnings of talks, where nothing is said: some states of a model of 35 billion parameters.
const PREFIX_CACHE_BYTES: u64 = 256 << 20;
/// The demo model's states are small.
const DEMO_PREFIX_CACHE_BYTES: u64 = 32 << 20;
/// Bound of the directory in which beginnings of talks are kept.
const CACHE_DIR_BYTES: u64 = 4 << 30;

/// What `flash-moe chat` takes; the configuration file has defaults for most of it.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model; with --url, a model of the
    /// server. Default: the configured one, that of the resumed talk, or demo.
    pub model: Option<String>,
    /// Talk with a server instead, such as http://127.0.0.1:8080; FLASH_MOE_API_KEY may hold its key.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Go on with an earlier talk: its number in /sessions, name, id, or last.
    #[arg(long, value_name = "TALK", num_args = 0..=1, default_missing_value = "last")]
    pub resume: Option<String>,
    /// What the model is told to be.
    #[arg(long, value_name = "TEXT", conflicts_with = "resume")]
    pub system: Option<String>,
    /// Let the model think before it answers, or not; default: the template's.
    #[arg(long, value_enum)]
    pub think: Option<Switch>,
    /// Show what the model thinks, or not; default: on a terminal.
    #[arg(long, value_enum)]
    pub show_thinking: Option<Switch>,
    /// Offer the model the shell; every command is asked for first.
    #[arg(long)]
    pub shell: bool,
    /// Run commands like this without asking; * stands for words. Can be repeated.
    #[arg(long, value_name = "PATTERN")]
    pub yes: Vec<String>,
    /// Keep neither the talk nor the history.
    #[arg(long)]
    pub no_save: bool,
    /// Use colours and styles.
    #[arg(long, value_enum, default_value_t = WhenArg::Auto)]
    pub color: WhenArg,
    /// Render Markdown, or pass it on as it is; auto renders on a terminal.
    #[arg(long, value_enum, default_value_t = WhenArg::Auto)]
    pub markdown: WhenArg,
    /// The configuration file; default: flash-moe/config.toml where the system keeps such files.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Most tokens of a reply; default: as many as the context holds.
    #[arg(long, short = 'n', value_name = "N")]
    pub tokens: Option<usize>,
    /// Memory for the beginnings of talks, so that they need not be read again, or off.
    #[arg(long, value_name = "SIZE|off")]
    pub prefix_cache: Option<String>,
    /// Keep the beginnings of talks there, so that a resumed talk goes on at once.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Where it is kept which experts were used much; default: a file of each checkpoint's own in the user's
    /// cache directory, and off for the demo model.
    #[arg(long, value_name = "FILE|off")]
    pub heat_map: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// When something is done that suits a terminal.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WhenArg {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl From<WhenArg> for When {
    fn from(when: WhenArg) -> Self {
        match when {
            WhenArg::Auto => Self::Auto,
            WhenArg::Always => Self::Always,
            WhenArg::Never => Self::Never,
        }
    }
}

/// Runs the command.
pub fn chat(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(args.config.as_deref())?;
    apply(&args, &mut config);
    let mut engine_options = engine_options(&args.engine, &config.engine)?;
    if config.tools.shell || !config.mcp.is_empty() {
        engine_options.beside = chat::GRAMMAR_MEMORY;
    }
    let mut models = Checkpoints {
        options: engine_options,
        prefix_cache: config.engine.prefix_cache.clone(),
        cache_dir: config.engine.cache_dir.clone(),
        heat_map: args.heat_map,
    };
    let options = Options {
        config,
        resume: args.resume,
        default_model: demo::NAME.to_owned(),
        colour: args.color.into(),
        render: args.markdown.into(),
    };
    terminal::talk(options, &mut models)?;
    Ok(ExitCode::SUCCESS)
}

/// What was typed comes before what is configured.
fn apply(args: &ChatArgs, config: &mut Config) {
    fn take<T: Clone>(typed: &Option<T>, configured: &mut Option<T>) {
        if typed.is_some() {
            configured.clone_from(typed);
        }
    }
    if args.model.is_some() && args.url.is_none() {
        // Whoever names a checkpoint does not mean the configured server.
        config.url = None;
    }
    take(&args.model, &mut config.model);
    if args.url.is_some() && args.model.is_none() {
        config.model = None;
    }
    take(&args.url, &mut config.url);
    take(&args.system, &mut config.system);
    take(&args.think.map(|think| think == Switch::On), &mut config.think);
    take(&args.show_thinking.map(|show| show == Switch::On), &mut config.show_thinking);
    take(&args.prefix_cache, &mut config.engine.prefix_cache);
    take(&args.cache_dir, &mut config.engine.cache_dir);
    config.tools.shell |= args.shell;
    config.tools.yes.extend(args.yes.iter().cloned());
    if args.no_save {
        config.save = Some(false);
    }
    let (typed, sampling) = (&args.sampling, &mut config.sampling);
    take(&typed.greedy.then_some(0.0).or(typed.temperature), &mut sampling.temperature);
    take(&typed.top_k, &mut sampling.top_k);
    take(&typed.top_p, &mut sampling.top_p);
    take(&typed.min_p, &mut sampling.min_p);
    take(&typed.repetition_penalty, &mut sampling.repetition_penalty);
    take(&typed.presence_penalty, &mut sampling.presence_penalty);
    take(&typed.frequency_penalty, &mut sampling.frequency_penalty);
    take(&typed.seed, &mut sampling.seed);
    take(&args.tokens, &mut sampling.max_tokens);
}

/// The engine's options, from what was typed and else from what is configured.
fn engine_options(args: &EngineArgs, config: &EngineConfig) -> anyhow::Result<EngineOptions> {
    let configured = |key: &str, text: &Option<String>| -> anyhow::Result<Option<u64>> {
        let size = text.as_deref().map(engine::parse_size).transpose();
        size.with_context(|| format!("engine.{key} in the configuration"))
    };
    let mut options = args.options();
    options.memory = match options.memory {
        None => configured("memory", &config.memory)?,
        typed => typed,
    };
    options.expert_cache = match options.expert_cache {
        None => configured("expert_cache", &config.expert_cache)?,
        typed => typed,
    };
    options.context = options.context.or(config.context);
    options.prompt_chunk = options.prompt_chunk.or(config.prompt_chunk);
    options.threads = options.threads.or(config.threads);
    Ok(options)
}

/// Models from checkpoints.
struct Checkpoints {
    options: EngineOptions,
    prefix_cache: Option<String>,
    cache_dir: Option<PathBuf>,
    heat_map: Option<PathBuf>,
}

impl Models for Checkpoints {
    fn open(&mut self, name: &str) -> anyhow::Result<(Engine, ChatModel)> {
        let directory = demo::resolve(name)?;
        let is_demo = name == demo::NAME;
        let mut options = self.options.clone();
        if is_demo && options.memory.is_none() && options.expert_cache.is_none() {
            options.expert_cache = Some(demo::EXPERT_CACHE_BYTES);
        }
        options.heat_map = match heat_map_place(self.heat_map.as_deref(), name) {
            _ if is_demo && self.heat_map.is_none() => HeatMapPlace::Off,
            place => place,
        };
        let engine = self.open_engine(name, &directory, options)?;
        if let [first, rest @ ..] = engine.unknown_tensors() {
            let more =
                if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            eprintln!(
                "warning: the checkpoint holds unknown tensors that are not used: {first}{more}"
            );
        }
        tell_of_lossy(&engine);
        let chat = ChatModel::open(&directory, engine.chat_template(), engine.tokenizer()?)?
            .with_stop_tokens(engine.stop_tokens());
        Ok((engine, chat))
    }
}

impl Checkpoints {
    /// Opens an engine with a prefix cache: of the size that was asked for, else of one that fits.
    fn open_engine(
        &self,
        name: &str,
        directory: &std::path::Path,
        mut options: EngineOptions,
    ) -> anyhow::Result<Engine> {
        let cache = |memory_bytes| PrefixCacheOptions {
            memory_bytes,
            directory: self.cache_dir.clone(),
            disk_bytes: CACHE_DIR_BYTES,
        };
        let asked = match self.prefix_cache.as_deref() {
            Some("off") => Some(None),
            Some(text) => {
                Some(Some(size(text).map_err(|error| anyhow::anyhow!("--prefix-cache: {error}"))?))
            }
            None => None,
        };
        let default = if name == demo::NAME { DEMO_PREFIX_CACHE_BYTES } else { PREFIX_CACHE_BYTES };
        options.prefix_cache = asked.unwrap_or(Some(default)).map(cache);
        let mut opened = Engine::open(directory, &options);
        if asked.is_none() && self.cache_dir.is_none() {
            if let Err(Error::PrefixCacheTooSmall { least, .. }) = opened {
                options.prefix_cache = Some(cache(least));
                opened = Engine::open(directory, &options);
            }
            // A talk without it is better than none.
            if let Err(Error::Budget { .. } | Error::OutOfMemory { .. }) = opened {
                options.prefix_cache = None;
                opened = Engine::open(directory, &options);
            }
        }
        opened.with_context(|| format!("opening {name}"))
    }
}
