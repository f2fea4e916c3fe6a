//! `flash-moe devices`: what could compute, and how fast it reads its memory.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use engine::{DeviceInfo, format_bytes, measure};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::output;

/// How long each device is measured.
const TIME: Duration = Duration::from_secs(1);
/// Bytes that the CPU reads: more than its caches hold.
const HOST_BYTES: usize = 512 << 20;

/// Runs the command.
pub fn devices(args: DevicesArgs) -> anyhow::Result<ExitCode> {
    if args.tune {
        return tune();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = measure::memory_bandwidth(threads, HOST_BYTES, TIME);
    let cpu = Cpu { threads, read_bandwidth: cpu.map_err(|error| error.to_string()) };
    let gpus = engine::gpus(TIME);
    if args.json {
        output::json(&to_json(&cpu, &gpus))?;
    } else {
        output::stream(&to_text(&cpu, &gpus))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tune() -> anyhow::Result<ExitCode> {
    let directory = crate::cache::directory()
        .context("there is no directory to keep what is found in: set FLASH_MOE_CACHE to one")?;
    let mut printed = Ok(());
    engine::tune_gpus(&directory, &mut |line| {
        if printed.is_ok() {
            printed = output::stream(&format!("{line}\n"));
        }
    })?;
    printed?;
    Ok(ExitCode::SUCCESS)
}

/// The CPU.
struct Cpu {
    threads: usize,
    read_bandwidth: Result<f64, String>,
}

fn to_text(cpu: &Cpu, gpus: &[DeviceInfo]) -> String {
    let instructions = engine::Isa::available().first().map_or("", |isa| isa.name());
    let mut text = format!("cpu    {instructions}, {} threads\n", cpu.threads);
    text += &format!("       {}\n", reads(&cpu.read_bandwidth));
    for (index, gpu) in gpus.iter().enumerate() {
        let DeviceInfo { name, kind, api, driver, .. } = gpu;
        text += &format!("gpu:{index:<3}{name}\n       {kind}, {api}, {driver}\n");
        if gpu.is_software {
            text += "       this is the CPU, through a driver in software: slow, and of use for tests only\n";
        }
        let memory = gpu.memory_bytes.map_or("unknown".to_owned(), format_bytes);
        let [binding, buffer] = [gpu.max_binding_bytes, gpu.max_buffer_bytes].map(format_bytes);
        text += &format!("       memory {memory}; largest binding {binding}, buffer {buffer}\n");
        text += &match &gpu.imports {
            _ if !gpu.shares_memory => String::new(),
            Ok(()) => "       shares the host's memory: experts are read there without a copy\n"
                .to_owned(),
            Err(why) => {
                format!("       shares the host's memory, but experts are copied in it: {why}\n")
            }
        };
        text += &match gpu.subgroup_lanes {
            Some([least, most]) if least == most => format!("       subgroups of {least} lanes\n"),
            Some([least, most]) => format!("       subgroups of {least} to {most} lanes\n"),
            None => "       no subgroups\n".to_owned(),
        };
        text += &format!("       {}\n", reads(&gpu.read_bandwidth));
    }
    if !engine::HAS_GPUS {
        text += "this program was built without its GPU backend\n";
    } else if gpus.is_empty() {
        text += "no GPU was found: there is no driver for Vulkan, Metal or DX12\n";
    }
    text
}

fn reads(bandwidth: &Result<f64, String>) -> String {
    match bandwidth {
        Ok(speed) => format!("reads {:.1} GB/s of its memory", speed / 1e9),
        Err(reason) => format!("cannot be measured: {reason}"),
    }
}

fn to_json(cpu: &Cpu, gpus: &[DeviceInfo]) -> Value {
    let gpus = gpus.iter().enumerate().map(|(index, gpu)| {
        json!({
            "device": format!("gpu:{index}"),
            "name": gpu.name,
            "kind": gpu.kind,
            "api": gpu.api,
            "driver": gpu.driver,
            "software": gpu.is_software,
            "memory_bytes": gpu.memory_bytes,
            "shares_memory": gpu.shares_memory,
            "imports_host_memory": gpu.imports.is_ok(),
            "import_problem": gpu.imports.as_ref().err(),
            "max_binding_bytes": gpu.max_binding_bytes,
            "max_buffer_bytes": gpu.max_buffer_bytes,
            "subgroup_lanes": gpu.subgroup_lanes,
            "read_bytes_per_second": gpu.read_bandwidth.as_ref().ok(),
            "problem": gpu.read_bandwidth.as_ref().err(),
        })
    });
    let instructions: Vec<&str> = engine::Isa::available().iter().map(|isa| isa.name()).collect();
    json!({
        "cpu": {
            "threads": cpu.threads,
            "instructions": instructions,
            "read_bytes_per_second": cpu.read_bandwidth.as_ref().ok(),
        },
        "has_gpu_backend": engine::HAS_GPUS,
        "gpus": gpus.collect::<Vec<_>>(),
    })
}
