//! What a run can be told, and what it tells.

use std::path::PathBuf;

use engine::EngineOptions;

use crate::allocate::Budget;
use crate::expert::Method;
use crate::plan::Placement;
use crate::recipe::Recipe;
use crate::text::{CalibrationText, Text, fingerprint};

/// Choices of [`quantize`](crate::quantize).
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Widths.
    pub recipe: Recipe,
    /// How the codes of routed experts are found.
    pub method: Method,
    /// How experts lie in the result.
    pub placement: Placement,
    /// What the model reads so that its experts' inputs are known; empty if they are not to be.
    pub calibration: Vec<CalibrationText>,
    /// How many tokens of that, as many of each text.
    pub calibration_tokens: usize,
    /// Where what was recorded is kept for other runs; `None` if it is not to be.
    pub calibration_directory: Option<PathBuf>,
    /// Bytes that experts may take, instead of one width for all.
    pub budget: Option<Budget>,
    /// About the largest size of a file.
    pub shard_bytes: u64,
    /// Threads that compute.
    pub threads: usize,
    /// How the model is run for calibration.
    pub engine: EngineOptions,
}

impl Options {
    /// Plain rounding by a recipe.
    pub fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            method: Method::Round,
            placement: Placement::Apart,
            calibration: Vec::new(),
            calibration_tokens: 32_768,
            calibration_directory: None,
            budget: None,
            shard_bytes: 4 << 30,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            engine: EngineOptions::default(),
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Text is sampled and read; counted in tokens.
    Calibrate,
    /// Widths of experts are tried; counted in experts.
    Allocate,
    /// Weights are quantised and written; counted in bytes of the result.
    Write,
    /// The result is read back; counted in bytes.
    Verify,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// How much of it is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Of those, bytes of routed experts.
    pub expert_bytes: u64,
    /// Bytes of the experts that a token uses, by how often experts are used where that is known.
    pub expert_bytes_per_token: u64,
    /// Files with tensors.
    pub files: usize,
    /// How many experts have which width, narrowest first; kept ones have none.
    pub widths: Vec<(u8, usize)>,
    /// Bytes that an earlier, killed run had already written.
    pub resumed_bytes: u64,
    /// Tokens that the model has read for calibration.
    pub calibration_tokens: usize,
    /// Tensors of the source that have no place in the result: those of vision and multi-token-prediction.
    pub left_out: usize,
}

/// All choices that the bytes of the result hang on.
pub(crate) fn describe(options: &Options, texts: &[Text]) -> String {
    let Options { recipe, method, placement, calibration_tokens, budget, shard_bytes, .. } =
        options;
    let texts = fingerprint(texts);
    format!(
        "{recipe:?} {method:?} {placement:?} {texts} {calibration_tokens} {budget:?} {shard_bytes}"
    )
}
