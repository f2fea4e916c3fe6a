//! `flash-moe inspect`: what a checkpoint holds and needs.

use std::process::ExitCode;

use anyhow::Context;
use engine::{Device, Error, Inventory, MemoryPlan, format_bytes};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::{demo, output};

/// Names of unneeded tensors that are shown; the JSON has all.
const SHOWN_NAMES: usize = 8;

/// Runs the command; fails when the checkpoint cannot run.
pub fn inspect(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let directory = demo::resolve(&args.model)?;
    let mut inventory =
        Inventory::read(&directory).with_context(|| format!("inspecting {}", args.model))?;
    let mut options = args.engine.options();
    let mut device_reason = None;
    let plan = if inventory.problems.is_empty() {
        inventory.add_twin(&options)?;
        device_reason = engine::settle_device(&inventory, &mut options);
        Some(engine::plan_memory(&inventory, &options))
    } else {
        None
    };
    if args.json {
        let mut object = to_json(&args.model, &inventory, &plan);
        object["device_reason"] = device_reason.into();
        output::json(&object)?;
    } else {
        let mut text = to_text(&args.model, &inventory, &plan);
        if let Some(reason) = device_reason {
            let device = if options.device == Device::Cpu { "the CPU" } else { "the GPU" };
            text += &format!("\ndevice: {device}, because {reason}\n");
        }
        output::stream(&text)?;
    }
    let sound = inventory.problems.is_empty() && inventory.leftover.unknown.is_empty();
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_text(model: &str, inventory: &Inventory, plan: &Option<Result<MemoryPlan, Error>>) -> String {
    let config = inventory.checkpoint.config();
    let attention = config.attention_layers();
    let mut text = format!("{model}: {}\n", config.family.name());
    let mut line = |name: &str, value: String| text += &format!("  {name:<22}{value}\n");
    line(
        "layers",
        format!(
            "{}: {attention} attention, {} gated delta net",
            config.mixers.len(),
            config.mixers.len() - attention
        ),
    );
    line("hidden size", config.hidden_size.to_string());
    line("vocabulary", config.vocab_size.to_string());
    line("context", format!("{} tokens", config.max_context));
    let moe = &config.moe;
    let shared = if moe.shared_intermediate.is_some() { ", and a shared one" } else { "" };
    line("experts", format!("{} a layer, {} a token{shared}", moe.n_experts, moe.top_k));
    let files = inventory.checkpoint.files();
    let bytes = files.iter().map(|file| file.len).sum::<u64>();
    line("files", format!("{}, {}", files.len(), format_bytes(bytes)));
    line("trunk", format_bytes(inventory.trunk_bytes()));
    line("routed experts", format_bytes(inventory.expert_bytes()));
    line("one expert", format_bytes(inventory.largest_expert_bytes()));
    line("experts of a token", format_bytes(inventory.expert_bytes_per_token()));
    text += "\ntensors\n";
    for (class, tensors) in inventory.classes() {
        let formats = tensors.formats.iter().map(|(format, n)| format!("{format} x {n}"));
        let formats = formats.collect::<Vec<_>>().join(", ");
        text += &format!("  {class:<22}{:>10}  {formats}\n", format_bytes(tensors.bytes));
    }
    text += "\nmemory\n";
    text += &match plan {
        Some(Ok(plan)) => format!("  {:>10}  budget\n{plan}\n", format_bytes(plan.total)),
        Some(Err(error)) => format!("  {}\n", error.to_string().replace('\n', "\n  ")),
        None => "  not known: the checkpoint is incomplete\n".to_owned(),
    };
    let leftover = &inventory.leftover;
    for (what, names) in [
        ("not used: vision tensors", &leftover.vision),
        ("not used yet: multi-token-prediction tensors", &leftover.mtp),
        ("UNKNOWN tensors", &leftover.unknown),
        ("PROBLEMS", &inventory.problems),
    ] {
        if !names.is_empty() {
            text += &format!("\n{what}: {}\n", names.len());
            for name in names.iter().take(SHOWN_NAMES) {
                text += &format!("  {}\n", name.replace('\n', "\n  "));
            }
            if names.len() > SHOWN_NAMES {
                text += &format!("  and {} more\n", names.len() - SHOWN_NAMES);
            }
        }
    }
    text
}

fn to_json(model: &str, inventory: &Inventory, plan: &Option<Result<MemoryPlan, Error>>) -> Value {
    let config = inventory.checkpoint.config();
    let classes = inventory.classes().into_iter().map(|(class, tensors)| {
        (class.to_owned(), json!({ "bytes": tensors.bytes, "formats": tensors.formats }))
    });
    let memory = match plan {
        Some(Ok(plan)) => json!({
            "budget_bytes": plan.total,
            "process_bytes": plan.process,
            "reserve_bytes": plan.reserve,
            "trunk_bytes": plan.trunk,
            "state_bytes": plan.states,
            "workspace_bytes": plan.workspace,
            "sampling_bytes": plan.sampling,
            "expert_slot_bytes": plan.experts,
            "all_expert_bytes": plan.all_experts,
            "context": plan.context,
            "prompt_chunk": plan.chunk,
            "device": plan.device.map(|device| json!({
                "budget_bytes": device.total,
                "trunk_bytes": device.trunk,
                "state_bytes": device.states,
                "workspace_bytes": device.workspace,
                "expert_bytes": device.experts,
                "shares_host_memory": device.is_shared,
                "reads_host_slots": device.reads_slots,
            })),
        }),
        Some(Err(Error::Budget { needed, .. })) => json!({ "needed_bytes": needed }),
        Some(Err(error)) => json!({ "error": error.to_string() }),
        None => Value::Null,
    };
    json!({
        "model": model,
        "family": config.family.name(),
        "layers": config.mixers.len(),
        "attention_layers": config.attention_layers(),
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_context": config.max_context,
        "experts": config.moe.n_experts,
        "top_k": config.moe.top_k,
        "files": inventory.checkpoint.files().len(),
        "trunk_bytes": inventory.trunk_bytes(),
        "expert_bytes": inventory.expert_bytes(),
        "largest_expert_bytes": inventory.largest_expert_bytes(),
        "expert_bytes_per_token": inventory.expert_bytes_per_token(),
        "classes": Value::Object(classes.collect()),
        "memory": memory,
        "vision_tensors": inventory.leftover.vision,
        "mtp_tensors": inventory.leftover.mtp,
        "unknown_tensors": inventory.leftover.unknown,
        "problems": inventory.problems,
    })
}
