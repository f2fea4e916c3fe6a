//! The configuration file: defaults of `flash-moe chat`, in TOML.
//!
//! A key that is not known is an error that names it, so that a misspelt one is not taken for a default.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A longer file than anybody writes.
const MAX_BYTES: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not sound.
    #[error("the configuration {} is not sound: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

/// Everything that can be configured; what is absent is left to the command line and the model.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The model to talk with.
    pub model: Option<String>,
    /// A server to talk with instead of loading a model.
    pub url: Option<String>,
    /// The environment variable that holds the server's key; default: `FLASH_MOE_API_KEY`.
    pub api_key_variable: Option<String>,
    /// What the model is told to be.
    pub system: Option<String>,
    /// Whether the model thinks first.
    pub think: Option<bool>,
    /// Whether its thinking is shown.
    pub show_thinking: Option<bool>,
    /// Whether sessions and history are kept.
    pub save: Option<bool>,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// How the model is loaded.
    pub engine: EngineConfig,
    /// What the model may call.
    pub tools: ToolsConfig,
    /// Servers of the Model Context Protocol, by name.
    pub mcp: BTreeMap<String, McpConfig>,
}

/// How tokens are chosen.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Keep the best tokens.
    pub top_k: Option<usize>,
    /// Keep the smallest set of best tokens with this probability.
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the best token's probability.
    pub min_p: Option<f32>,
    /// Divide the logits of tokens in the context.
    pub repetition_penalty: Option<f32>,
    /// Subtract from the logits of tokens generated before.
    pub presence_penalty: Option<f32>,
    /// Subtract from logits as often as the token was generated before.
    pub frequency_penalty: Option<f32>,
    /// Seed of the random numbers.
    pub seed: Option<u64>,
    /// Most tokens of a reply.
    pub max_tokens: Option<usize>,
}

/// How the model is loaded.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Bound of all memory, such as `"8G"`.
    pub memory: Option<String>,
    /// Bound of the routed experts' memory.
    pub expert_cache: Option<String>,
    /// Longest sequence in tokens.
    pub context: Option<usize>,
    /// Most prompt tokens in one pass.
    pub prompt_chunk: Option<usize>,
    /// Threads that compute.
    pub threads: Option<usize>,
    /// Memory for the beginnings of talks, or `"off"`.
    pub prefix_cache: Option<String>,
    /// Where beginnings of talks are kept for later runs.
    pub cache_dir: Option<PathBuf>,
}

/// What the model may call.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ToolsConfig {
    /// Whether the shell is offered.
    pub shell: bool,
    /// Commands that run without being asked for; `*` stands for anything but what a shell obeys.
    pub yes: Vec<String>,
    /// Longest time of a command.
    pub timeout_seconds: u64,
    /// Most output of a command that the model is shown.
    pub output_bytes: usize,
    /// Where commands run; default: where the program was started.
    pub directory: Option<PathBuf>,
    /// Most times in a row that the model may call tools before it answers.
    pub rounds: usize,
}

impl Default for ToolsConfig {
    fn default() -> Self {
        Self {
            shell: false,
            yes: Vec::new(),
            timeout_seconds: 60,
            output_bytes: 16 << 10,
            directory: None,
            rounds: 16,
        }
    }
}

/// A server of the Model Context Protocol that is started and spoken to by pipes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct McpConfig {
    /// The program.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables for it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl SamplingConfig {
    /// The model's own sampling, changed by what was chosen.
    pub fn apply(&self, default: &engine::Sampling) -> engine::Sampling {
        engine::Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
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

impl Config {
    /// The configuration of the user: of `asked`, which must be there, else of the usual place, if it is there.
    pub fn load(asked: Option<&Path>) -> Result<Self, ConfigError> {
        let path = match asked {
            Some(path) => path.to_owned(),
            None => match crate::paths::config_file() {
                Some(path) => path,
                None => return Ok(Self::default()),
            },
        };
        let file = match File::open(&path) {
            Err(error) if asked.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            file => file,
        };
        let io = |source| ConfigError::Io { path: path.clone(), source };
        let mut text = String::new();
        file.map_err(io)?.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            let reason = format!("it is longer than {MAX_BYTES} bytes");
            return Err(ConfigError::Malformed { path, reason });
        }
        Self::parse(&path, &text)
    }

    /// The configuration that a text gives; `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let malformed = |reason: String| ConfigError::Malformed { path: path.to_owned(), reason };
        let config: Self = toml::from_str(text)
            .map_err(|error| malformed(error.to_string().trim_end().to_owned()))?;
        let positive = [
            ("tools.timeout_seconds", config.tools.timeout_seconds),
            ("tools.output_bytes", config.tools.output_bytes as u64),
            ("tools.rounds", config.tools.rounds as u64),
            ("engine.context", config.engine.context.unwrap_or(1) as u64),
            ("engine.prompt_chunk", config.engine.prompt_chunk.unwrap_or(1) as u64),
            ("engine.threads", config.engine.threads.unwrap_or(1) as u64),
            ("sampling.max_tokens", config.sampling.max_tokens.unwrap_or(1) as u64),
        ];
        if let Some((key, _)) = positive.into_iter().find(|&(_, value)| value == 0) {
            return Err(malformed(format!("{key} must be at least 1")));
        }
        for (key, size) in [
            ("engine.memory", &config.engine.memory),
            ("engine.expert_cache", &config.engine.expert_cache),
            ("engine.prefix_cache", &config.engine.prefix_cache),
        ] {
            let size =
                size.as_deref().filter(|&size| key != "engine.prefix_cache" || size != "off");
            if let Some(Err(reason)) = size.map(engine::parse_size) {
                return Err(malformed(format!("{key}: {reason}")));
            }
        }
        Ok(config)
    }
}
