//! What can go wrong, with what a person needs to mend it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::budget::{DevicePlan, MemoryPlan, format_bytes};
use crate::constraint::ConstraintError;

/// Why the engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The checkpoint has no tokenizer that can be used.
    #[error("{0}")]
    NoTokenizer(String),
    /// Experts could not be set up.
    #[error(transparent)]
    Experts(#[from] experts::StoreError),
    /// A file of the checkpoint could not be read.
    #[error(transparent)]
    Io(#[from] experts::IoError),
    /// The CPU backend could not be set up.
    #[error(transparent)]
    Cpu(#[from] compute::CpuError),
    /// The GPU that is asked for cannot be used.
    #[error("{0}")]
    Gpu(String),
    /// The checkpoint lacks tensors or has wrong ones.
    #[error("{} cannot run: {}", .path.display(), .problems.join("\n  "))]
    Incomplete {
        /// The checkpoint.
        path: PathBuf,
        /// A line for each tensor.
        problems: Vec<String>,
    },
    /// A trunk tensor holds values that are not numbers.
    #[error(
        "tensor {tensor} holds values that are not finite\nhint: the file is damaged; fetch it again"
    )]
    NotFinite {
        /// Canonical name of the tensor.
        tensor: String,
    },
    /// The device cannot take a tensor: it has no kernel for its format, or too little memory.
    #[error("the device cannot take tensor {tensor}: {source}\nhint: use --device cpu")]
    DeviceRefuses {
        /// Canonical name of the tensor.
        tensor: String,
        /// What the device said.
        source: compute::DeviceError,
    },
    /// The memory of the device is smaller than what must be in it.
    #[error(
        "{} of the device's memory cannot hold this model's trunk and states: they need {}\n{plan}\n\
         hint: raise --vram where the device has more, lower --context, or use --device cpu",
        format_bytes(plan.total), format_bytes(plan.fixed())
    )]
    DeviceBudget {
        /// The sum that shows it.
        plan: DevicePlan,
    },
    /// The device does not tell how much memory it has.
    #[error("how much memory the device has cannot be found out\nhint: give a budget with --vram")]
    UnknownDeviceMemory,
    /// The device failed while the model was loaded.
    #[error("the device failed while the model was loaded: {0}\nhint: use --device cpu")]
    Device(compute::DeviceError),
    /// The budget is smaller than what must be in memory.
    #[error(
        "{} of memory cannot hold this model: it needs at least {}\n{plan}\n\
         hint: raise --memory, or lower --context",
        format_bytes(plan.total), format_bytes(*needed)
    )]
    Budget {
        /// The least that can run, in bytes.
        needed: u64,
        /// The sum that shows it.
        plan: Box<MemoryPlan>,
    },
    /// A prefix cache too small to be of any use.
    #[error(
        "a prefix cache of {} cannot hold the state of one sequence, which takes {} with a block of \
         keys and values\nhint: give it more memory, or none",
        format_bytes(*asked), format_bytes(*least)
    )]
    PrefixCacheTooSmall {
        /// Bytes asked for.
        asked: u64,
        /// The least that is of use.
        least: u64,
    },
    /// The prefix cache cannot be set up.
    #[error("the prefix cache cannot be kept in {}: {source}", .path.display())]
    PrefixCacheDirectory {
        /// Its directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Memory could not be reserved.
    #[error("{bytes} bytes of memory could not be reserved for {purpose}")]
    OutOfMemory {
        /// How much.
        bytes: u64,
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The machine's memory is unknown.
    #[error("how much memory is free cannot be found out: {0}\nhint: give a budget with --memory")]
    UnknownMemory(String),
    /// A context longer than the model allows.
    #[error("a context of {asked} tokens is longer than the {limit} that this model was made for")]
    ContextLimit {
        /// Tokens asked for.
        asked: usize,
        /// The model's limit.
        limit: usize,
    },
    /// A sequence that would outgrow its context.
    #[error(
        "the sequence would grow to {needed} tokens; its context holds {context}\n\
         hint: shorten the prompt, or give a larger --context"
    )]
    ContextFull {
        /// Tokens that the sequence would have.
        needed: usize,
        /// Tokens that it can have.
        context: usize,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A sampling parameter without meaning.
    #[error("{field} is {value}, but must be {expected}")]
    Sampling {
        /// Name of the parameter.
        field: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// A saving that cannot be had of this model.
    #[error("{0}\nhint: see --experts-per-token, --expert-drop, --cache-bias and --twin-share")]
    Lossy(String),
    /// A checkpoint whose experts cannot take the place of the model's.
    #[error(
        "{} cannot be the twin of this model: {reason}\n\
         hint: make one with flash-moe quantize from the same model",
        .path.display()
    )]
    Twin {
        /// The checkpoint.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A comparison that only a faithful run can pass.
    #[error(
        "golden outputs are of a faithful run, and this one is lossy: {0}\nhint: leave these options out"
    )]
    LossyVerify(model::Lossy),
    /// What may be said next cannot be found out.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// A forward pass failed; the session cannot go on, the engine can.
    #[error("the request failed after {position} tokens")]
    Forward {
        /// Tokens that the sequence had before.
        position: usize,
        /// Why.
        source: model::SourceError,
    },
    /// A pass of several requests failed, and this one with it.
    #[error(transparent)]
    Pass(Arc<Self>),
    /// The logits are not numbers.
    #[error(
        "the logits after {position} tokens are not finite\n\
         hint: a weight of the checkpoint is damaged, or its numbers overflow"
    )]
    LogitsNotFinite {
        /// Tokens of the sequence.
        position: usize,
    },
    /// A session whose forward pass failed before.
    #[error("this session failed before and cannot go on; start a new one")]
    SessionBroken,
    /// More sessions than memory was reserved for.
    #[error("all {limit} sessions are in use")]
    TooManySessions {
        /// Sessions that the engine was opened for.
        limit: usize,
    },
}
