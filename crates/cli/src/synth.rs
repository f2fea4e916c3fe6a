//! `flash-moe synth`: writes a synthetic checkpoint.

use std::process::ExitCode;
use std::time::Instant;

use checkpoint::BlockType;
use checkpoint::synth::{self, FileKind, Preset, SynthOptions};
use engine::format_bytes;
use serde_json::json;

use crate::args::{FormatArg, PresetArg, QuantArg, SynthArgs};
use crate::output::{self, Progress};

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
