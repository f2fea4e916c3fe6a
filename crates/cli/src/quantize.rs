//! `flash-moe quantize` and `flash-moe pack`: a checkpoint made smaller, or laid out for streaming.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use ::quantize::{
    Budget, CalibrationText, Changes, Method, Options, Placement, Progress, Recipe, Report, Stage,
    Width,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use engine::{EngineOptions, format_bytes};
use serde_json::json;

use crate::args::{positive, size};
use crate::{demo, output};

#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// The checkpoint's directory, or `demo` for the built-in model.
    pub model: String,
    /// A new directory for the result.
    pub out: PathBuf,
    /// Widths by name: 2bit, 3bit, 4bit, 5bit, 6bit, 8bit (everything; routers 8 bit, trunk at least 4), the same with experts- before it
    /// (routed experts alone), or a .toml file with experts, trunk, shared, router, head, group.
    #[arg(long, value_name = "NAME|FILE", default_value = "4bit")]
    pub recipe: String,
    /// Bits of routed experts: 2, 3, 4, 5, 6, 8 or keep.
    #[arg(long, value_name = "BITS")]
    pub experts: Option<Width>,
    /// Bits of embedding, attention, delta nets and dense blocks; of shared experts and head too where those
    /// are not given.
    #[arg(long, value_name = "BITS")]
    pub trunk: Option<Width>,
    /// Bits of shared experts.
    #[arg(long, value_name = "BITS")]
    pub shared: Option<Width>,
    /// Bits of routers: 8 or keep.
    #[arg(long, value_name = "BITS")]
    pub router: Option<Width>,
    /// Bits of the head.
    #[arg(long, value_name = "BITS")]
    pub head: Option<Width>,
    /// Columns that share a scale and a bias: 32, 64 or 128; default: 64.
    #[arg(long, value_name = "N")]
    pub group: Option<u16>,
    /// Text that the model reads so that errors are kept where its experts do not look: a text file, a .jsonl
    /// file with a `text` a line, or `self` for text that the model writes itself; can be repeated.
    #[arg(long, value_name = "FILE|self")]
    pub calibrate: Vec<String>,
    /// How many tokens of that.
    #[arg(long, value_name = "N", default_value = "32768", value_parser = positive, requires = "calibrate")]
    pub calibration_tokens: usize,
    /// Keep what was recorded of that in this directory, for other runs with the same text.
    #[arg(long, value_name = "DIR", requires = "calibrate")]
    pub calibration_dir: Option<PathBuf>,
    /// How the codes of routed experts are found; default: refine with calibration, search without.
    #[arg(long, value_enum)]
    pub method: Option<MethodArg>,
    /// Give each expert its own width, so that all experts together take so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["bytes_per_token", "experts"])]
    pub size: Option<u64>,
    /// Give each expert its own width, so that the experts of a token take so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "experts")]
    pub bytes_per_token: Option<u64>,
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Threads that compute; default: all cores.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// Bound of the memory of the model that is run for calibration, such as 8G; default: nine tenths of what is free.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct PackArgs {
    /// The checkpoint's directory, or `demo` for the built-in model.
    pub model: String,
    /// A new directory for the result.
    pub out: PathBuf,
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How the result lies in files.
#[derive(Args, Debug)]
pub struct LayoutArgs {
    /// How routed experts lie: apart, so that one is one read, or stacked, as mlx-lm writes them.
    #[arg(long, value_enum, default_value_t = PlacementArg::Apart)]
    pub layout: PlacementArg,
    /// About the largest size of a file.
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size)]
    pub shard_size: u64,
}

/// Names of methods.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MethodArg {
    /// Round to nearest, bit by bit as mlx-lm does.
    Round,
    /// Search scale and bias of every group.
    Search,
    /// And round with error feedback, column by column.
    Gptq,
    /// And move scales, biases and codes while that lowers the error.
    Refine,
    /// And layer after layer, each by what the quantised layers before it give it.
    Sequential,
}

/// Names of layouts.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum PlacementArg {
    /// Each expert in one range.
    Apart,
    /// Nine stacks a layer.
    Stacked,
}

impl From<PlacementArg> for Placement {
    fn from(placement: PlacementArg) -> Self {
        match placement {
            PlacementArg::Apart => Self::Apart,
            PlacementArg::Stacked => Self::Stacked,
        }
    }
}

/// Runs `quantize`.
pub fn quantize(args: QuantizeArgs) -> anyhow::Result<ExitCode> {
    let QuantizeArgs { experts, trunk, shared, router, head, group, .. } = args;
    let changes = Changes { experts, trunk, shared, router, head, group };
    let recipe = Recipe::named(&args.recipe)?.changed(&changes)?;
    let calibration = args.calibrate.iter().map(|text| match text.as_str() {
        "self" => CalibrationText::Sampled,
        path => CalibrationText::File(PathBuf::from(path)),
    });
    let calibration: Vec<CalibrationText> = calibration.collect();
    let method = match (args.method, calibration.is_empty()) {
        (Some(MethodArg::Round), _) => Method::Round,
        (Some(MethodArg::Search), _) | (None, true) => Method::Search,
        (Some(MethodArg::Gptq), _) => Method::Feedback,
        (Some(MethodArg::Refine), _) | (None, false) => Method::Refine,
        (Some(MethodArg::Sequential), _) => Method::Sequential,
    };
    let defaults = Options::new(recipe);
    let threads = args.threads.unwrap_or(defaults.threads);
    let budget = args.size.map(Budget::Size).or(args.bytes_per_token.map(Budget::BytesPerToken));
    let options = Options {
        method,
        placement: args.layout.layout.into(),
        calibration,
        calibration_tokens: args.calibration_tokens,
        calibration_directory: args.calibration_dir,
        budget,
        shard_bytes: args.layout.shard_size,
        threads,
        engine: EngineOptions {
            memory: args.memory,
            threads: Some(threads),
            ..EngineOptions::default()
        },
        ..defaults
    };
    let model = demo::resolve(&args.model)?;
    let begin = Instant::now();
    let mut line = output::Progress::new();
    let report = ::quantize::quantize(&model, &args.out, &options, &mut |progress| {
        show(&mut line, progress)
    })
    .with_context(|| format!("quantising {}", args.model))?;
    line.clear();
    tell(&args.out, &report, begin, args.json)
}

/// Runs `pack`.
pub fn pack(args: PackArgs) -> anyhow::Result<ExitCode> {
    let model = demo::resolve(&args.model)?;
    let begin = Instant::now();
    let mut line = output::Progress::new();
    let LayoutArgs { layout, shard_size } = args.layout;
    let report = ::quantize::pack(&model, &args.out, layout.into(), shard_size, &mut |progress| {
        show(&mut line, progress);
    })
    .with_context(|| format!("packing {}", args.model))?;
    line.clear();
    tell(&args.out, &report, begin, args.json)
}

fn show(line: &mut output::Progress, Progress { stage, done, total }: Progress) {
    let text = match stage {
        Stage::Calibrate => format!("calibrating: {}%", 100 * done / total.max(1)),
        Stage::Allocate => format!("trying widths: {done} of {total} experts"),
        Stage::Write => format!("writing: {} of {}", format_bytes(done), format_bytes(total)),
        Stage::Verify => format!("reading back: {} of {}", format_bytes(done), format_bytes(total)),
    };
    line.show(&text);
}

fn tell(
    out: &std::path::Path,
    report: &Report,
    begin: Instant,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let seconds = begin.elapsed().as_secs_f64();
    if as_json {
        let widths = report.widths.iter().map(|(bits, n)| (bits.to_string(), json!(n)));
        output::json(&json!({
            "out": out,
            "bytes": report.bytes,
            "expert_bytes": report.expert_bytes,
            "expert_bytes_per_token": report.expert_bytes_per_token,
            "files": report.files,
            "calibration_tokens": report.calibration_tokens,
            "expert_widths": widths.collect::<serde_json::Map<_, _>>(),
            "resumed_bytes": report.resumed_bytes,
            "left_out_tensors": report.left_out,
            "seconds": seconds,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "{}: {} in {} files, {seconds:.1} s\n  routed experts {}, for a token {}\n",
        out.display(),
        format_bytes(report.bytes),
        report.files,
        format_bytes(report.expert_bytes),
        format_bytes(report.expert_bytes_per_token),
    );
    if report.widths.len() > 1 {
        let widths = report.widths.iter().map(|(bits, n)| format!("{n} at {bits} bits"));
        text += &format!("  experts: {}\n", widths.collect::<Vec<_>>().join(", "));
    }
    if report.calibration_tokens > 0 {
        text += &format!("  calibrated by {} tokens\n", report.calibration_tokens);
    }
    if report.resumed_bytes > 0 {
        text += &format!("  {} were there from a run before\n", format_bytes(report.resumed_bytes));
    }
    if report.left_out > 0 {
        text += &format!(
            "  left out: {} tensors of vision and multi-token prediction\n",
            report.left_out
        );
    }
    output::stream(&text)?;
    Ok(ExitCode::SUCCESS)
}
