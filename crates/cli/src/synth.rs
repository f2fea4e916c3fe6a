//! `flash-moe synth`: writes a synthetic checkpoint.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use checkpoint::BlockType;
use checkpoint::synth::{self, FileKind, Preset, SynthOptions};
use clap::{Args, ValueEnum};
use engine::format_bytes;
use serde_json::json;

use crate::args::positive;
use crate::output::{self, Progress};

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

/// Runs the command.
pub fn synth(args: SynthArgs) -> anyhow::Result<ExitCode> {
    let preset = match args.preset {
        PresetArg::A3b => Preset::Qwen35A3b,
        PresetArg::A10b => Preset::Qwen122bA10b,
        PresetArg::A17b => Preset::Qwen397bA17b,
        PresetArg::Tiny => Preset::Tiny,
    };
    let file = match (args.format, args.quant) {
        (FormatArg::Mlx, _) => FileKind::Mlx,
        (FormatArg::Gguf, QuantArg::Q4K) => FileKind::Gguf(BlockType::Q4K),
        (FormatArg::Gguf, QuantArg::Q4_0) => FileKind::Gguf(BlockType::Q4_0),
        (FormatArg::Gguf, QuantArg::Q8_0) => FileKind::Gguf(BlockType::Q8_0),
    };
    let options = SynthOptions {
        preset,
        file,
        layers: args.layers,
        experts: args.experts,
        bits: args.bits,
        vocab: args.vocab,
        seed: args.seed,
    };
    let begin = Instant::now();
    let mut progress = Progress::new();
    let report = synth::write(&options, &args.out, &mut |written, total| {
        progress.show(&format!("{} of {}", format_bytes(written), format_bytes(total)));
    })?;
    progress.clear();
    let seconds = begin.elapsed().as_secs_f64();
    if args.json {
        return output::json(&json!({
            "out": args.out,
            "bytes": report.bytes,
            "files": report.files,
            "seconds": seconds,
        }))
        .map(|()| ExitCode::SUCCESS);
    }
    output::stream(&format!(
        "{}: {} in {} files, {seconds:.1} s\n",
        args.out.display(),
        format_bytes(report.bytes),
        report.files,
    ))?;
    Ok(ExitCode::SUCCESS)
}
