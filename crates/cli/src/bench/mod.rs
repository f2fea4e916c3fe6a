//! `flash-moe bench`: how fast a model decodes and reads prompts, under several memory budgets, beside
//! what the machine's memory and drive allow.

mod checklist;
mod machine;
mod measure;
mod plots;
mod results;
mod settings;
mod tables;

pub use machine::{utc_now, version};
pub use settings::Budget;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use engine::Inventory;
use engine::measure::MemoryLimits;
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::bench::machine::Machine;
use crate::bench::measure::Bench;
use crate::bench::plots::Titles;
use crate::bench::settings::Settings;
use crate::bench::tables::Head;
use crate::run::lossy_json;
use crate::trace::Trace;
use crate::{demo, output};

/// Least and most bytes by which the speed of memory is measured.
const MEMORY_BYTES: (u64, u64) = (512 << 20, 1 << 30);

/// Runs the command.
pub fn bench(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if let (None, Some(path)) = (&args.model, &args.report) {
        return checklist::checklist(&args, path);
    }
    let mut settings = Settings::new(&args)?;
    let directory = demo::resolve(&settings.model)?;
    let mut inventory =
        Inventory::read(&directory).with_context(|| format!("opening {}", settings.model))?;
    if let [first, rest @ ..] = &inventory.problems[..] {
        let more =
            if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
        bail!("{} cannot run: {first}{more}", settings.model);
    }
    inventory.add_twin(&settings.engine)?;
    // Outputs are opened before the minutes of work, so that a mistyped path does not cost them.
    let outputs = [args.markdown.as_deref(), args.report.as_deref()];
    outputs.into_iter().flatten().try_for_each(check_writable)?;
    if let Some(plots) = &args.plot {
        fs::create_dir_all(plots).with_context(|| format!("creating {}", plots.display()))?;
    }
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    settings.engine.recorder = trace.as_ref().map(|trace| trace.recorder().clone());

    // Every budget is measured on the same device.
    engine::settle_device(&inventory, &mut settings.engine);
    let date = utc_now();
    let files = inventory.checkpoint.files();
    let machine = Machine::detect(files.first().map(|file| file.path.as_path()));
    let bench = Bench::new(&settings, &directory, &inventory, memory_bytes(&machine))?;
    let results = bench.run(trace.as_ref())?;

    let head =
        Head { machine: &machine, date: &date, model: tables::model_facts(&settings, &inventory) };
    let all = results.to_json(&settings, facts(&machine, &date, &settings, &inventory));
    if args.json {
        output::json(&all)?;
    } else {
        output::stream(&tables::text(&head, &settings, &results))?;
    }
    if let Some(path) = &args.markdown {
        write(path, &tables::markdown(&head, &settings, &results))?;
    }
    if let Some(path) = &args.report {
        write(path, &tables::report(&head, &settings, &results, &all))?;
    }
    if let Some(directory) = &args.plot {
        let titles = Titles {
            model: short_name(&settings.model),
            machine: format!("{}, {} UTC, flash-moe {}", machine.name(), date, version()),
        };
        write(&directory.join("retention.svg"), &plots::retention(&results, &titles))?;
        write(&directory.join("phases.svg"), &plots::phases(&results, &titles))?;
    }
    if let Some(trace) = trace {
        trace.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Facts that the measurements do not tell.
fn facts(machine: &Machine, date: &str, settings: &Settings, inventory: &Inventory) -> Value {
    let config = inventory.checkpoint.config();
    json!({
        "schema": Value::Null,
        "date": date,
        "program": {
            "version": version(),
            "command": machine::command_line(),
        },
        "lossy": lossy_json(&settings.engine.lossy.for_model(config.moe.top_k)),
        "machine": machine.to_json(),
        "model": {
            "name": settings.model,
            "family": config.family.name(),
            "layers": config.mixers.len(),
            "experts": config.moe.n_experts,
            "top_k": config.moe.top_k,
            "trunk_bytes": inventory.trunk_bytes(),
            "expert_bytes": inventory.expert_bytes(),
            "expert_bytes_per_token": inventory.expert_bytes_per_token(),
        },
    })
}

/// Sixteen times what the caches hold, so that little of it can be there from the pass before; within
/// bounds and a quarter of what is free.
fn memory_bytes(machine: &Machine) -> usize {
    let (least, most) = MEMORY_BYTES;
    let wanted = machine.cache.map_or(least, |cache| cache.saturating_mul(16)).clamp(least, most);
    let free = MemoryLimits::detect().map_or(u64::MAX, |limits| limits.available_bytes());
    wanted.min(free / 4) as usize
}

/// A model's name for titles: the last part of its path.
fn short_name(model: &str) -> String {
    let name = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| model.to_owned())
}

/// Fails if a file cannot be written; what is there stays until there is something in its place.
fn check_writable(path: &Path) -> anyhow::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    options.open(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
