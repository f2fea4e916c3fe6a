//! `flash-moe bench --report FILE` without a model: what this machine can do, line by line beside what is
//! expected of it. It is written for machines that the developers do not have; `docs/mac.md` is for those
//! who run it.
//!
//! The report holds facts of the hardware and numbers: no names of people, machines, files or models'
//! directories.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use engine::measure::{GpuProbe, probe_gpu};
use engine::{Device, DeviceInfo, Engine, EngineOptions, Inventory, Phase, format_bytes};
use eval::{Document, score_document};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::bench::machine::{Machine, utc_now, version};
use crate::bench::measure::Bench;
use crate::bench::results::Results;
use crate::bench::settings::{Budget, Settings};
use crate::output::{self, Progress};
use crate::{bench, demo};

/// Text on which devices are compared; the demo model has read its like.
const TEXT: &str = "Long ago, a honest sparrow named Ella lived near the harbor. She was a kind sparrow \
with a heart full of love and a heart full of kindness. She loved to help others and was always willing to \
lend a helping hand.\n\nOne day, a big ship sailed into the harbor and it was a beautiful ship with a \
beautiful captain. The captain was a very kind and very wise sparrow.\n\nElla smiled and went home.";
/// How long devices are measured.
const TIME: Duration = Duration::from_secs(1);
/// Most that perplexities may differ.
const MOST_DIFFERENCE: f64 = 0.001;
/// Share of positions at which another token may be the best.
const MOST_OTHERS: f64 = 0.02;
/// How much more both may differ when activations are rounded to eight bits, as is the default: in a text as short as
/// this one a few tokens decide. Of 821 tokens of tales the GPU's differ by 0.1 %, the CPU's by 0.3 %; of these by 0.7 and 0.2 %.
const EIGHT_BITS: f64 = 10.0;
/// Least share of what memory allows that decoding a model of some size should reach.
const LEAST_REACHED: f64 = 0.4;
/// The same for a kernel by itself.
const LEAST_KERNEL: f64 = 0.6;
/// Least share of the chip's own speed of memory that a device should read.
const LEAST_OF_CHIP: f64 = 0.6;
/// Longest meeting that is expected of a GPU, in seconds.
const LONGEST_MEETING: f64 = 300e-6;

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    /// There is nothing to hold it against yet.
    Look,
    /// It could not be measured here.
    Skipped,
}

impl Verdict {
    fn of(passes: bool) -> Self {
        if passes { Self::Pass } else { Self::Fail }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Look => "look",
            Self::Skipped => "skipped",
        })
    }
}

/// A line of the checklist.
#[derive(Clone, Debug)]
struct Check {
    what: String,
    found: String,
    expected: String,
    verdict: Verdict,
}

/// The lines so far.
#[derive(Debug, Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn add(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        verdict: Verdict,
    ) {
        let (what, found, expected) = (what.into(), found.into(), expected.into());
        self.0.push(Check { what, found, expected, verdict });
    }
}

/// Runs the command.
pub fn checklist(args: &BenchArgs, path: &Path) -> anyhow::Result<ExitCode> {
    // Opened before the minutes of work, so that a mistyped path does not cost them.
    bench::check_writable(path)?;
    let (date, machine) = (utc_now(), Machine::detect(None));
    let mut checks = Checks::default();
    let mut progress = Progress::new();
    progress.show("measuring devices ...");
    let gpus = engine::gpus(TIME);
    let gpu = gpus.first();
    devices(&mut checks, &machine, gpu);
    if let Some(gpu) = gpu {
        progress.show("measuring kernels ...");
        kernels(&mut checks, gpu, probe_gpu(0));
    }
    progress.show("comparing devices ...");
    let directory = demo::directory()?;
    agreement(&mut checks, &directory, gpu.is_some())?;
    progress.clear();
    let on_gpu = gpu.map(|gpu| (Device::Gpu(Some(0)), gpu.is_software));
    for device in [(Device::Cpu, false)].into_iter().chain(on_gpu) {
        for model in [Some(demo::NAME), args.with.as_deref()].into_iter().flatten() {
            speeds(&mut checks, args, model, device)?;
        }
    }
    let text = markdown(&checks, &machine, &date);
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    if args.json {
        output::json(&to_json(&checks, &machine, &date))?;
    } else {
        output::stream(&plain(&checks, path))?;
    }
    let failed = checks.0.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Devices, and how fast they read memory.
fn devices(checks: &mut Checks, machine: &Machine, gpu: Option<&DeviceInfo>) {
    let chip = machine.cpu.as_deref().and_then(chip_bandwidth);
    let of_chip = |speed: f64| match chip {
        Some(most) => (
            format!(
                "at least {:.0} GB/s of the chip's {:.0}",
                LEAST_OF_CHIP * most / 1e9,
                most / 1e9
            ),
            Verdict::of(speed >= LEAST_OF_CHIP * most),
        ),
        None => ("not known for this machine".to_owned(), Verdict::Look),
    };
    let bytes = bench::memory_bytes(machine);
    match engine::measure::memory_bandwidth(machine.cores, bytes, TIME) {
        Ok(speed) => {
            // One cluster of cores does not reach all of the memory's speed.
            let (expected, verdict) = match chip {
                Some(most) => {
                    let least = 0.3 * most;
                    let expected = format!("at least {:.0} GB/s", least / 1e9);
                    (expected, Verdict::of(speed >= least))
                }
                None => of_chip(speed),
            };
            checks.add("CPU reads memory", gigabytes(speed), expected, verdict);
        }
        Err(error) => {
            checks.add("CPU reads memory", error.to_string(), "a speed", Verdict::Fail);
        }
    }
    let Some(gpu) = gpu else {
        let reason = match engine::HAS_GPUS {
            true => "no driver for Metal, Vulkan or DX12",
            false => "this program was built without its GPU backend",
        };
        let verdict = if cfg!(target_os = "macos") { Verdict::Fail } else { Verdict::Skipped };
        checks.add("GPU", reason, "one, on a Mac", verdict);
        return;
    };
    let DeviceInfo { name, kind, api, is_software, .. } = gpu;
    let expected = if cfg!(target_os = "macos") { "Metal" } else { "Metal, Vulkan or DX12" };
    let verdict = Verdict::of(!cfg!(target_os = "macos") || (api == "Metal" && !is_software));
    checks.add("GPU", format!("{name}, {kind}, {api}"), expected, verdict);
    let memory = gpu.memory_bytes.map_or("not known".to_owned(), format_bytes);
    checks.add("memory of the GPU", memory, "two thirds of a Mac's memory or more", Verdict::Look);
    let shared = match (&gpu.imports, gpu.shares_memory) {
        (_, false) => "no".to_owned(),
        (Ok(()), true) => "yes, and reads experts there without a copy".to_owned(),
        (Err(why), true) => format!("yes, but experts are copied in it: {why}"),
    };
    let expected = "yes, without a copy, on a Mac with Apple silicon";
    let is_right = !cfg!(all(target_os = "macos", target_arch = "aarch64"))
        || (gpu.shares_memory && gpu.imports.is_ok());
    checks.add("memory is the host's", shared, expected, Verdict::of(is_right));
    let lanes = gpu.subgroup_lanes.map_or("none".to_owned(), |[least, most]| match least == most {
        true => format!("{least}"),
        false => format!("{least} to {most}"),
    });
    checks.add("lanes of a subgroup", lanes, "32 on a Mac", Verdict::Look);
    match &gpu.read_bandwidth {
        Ok(speed) => {
            let (expected, verdict) = match is_software {
                true => ("little: it is the CPU in disguise".to_owned(), Verdict::Look),
                false => of_chip(*speed),
            };
            checks.add("GPU reads its memory", gigabytes(*speed), expected, verdict);
        }
        Err(reason) => {
            checks.add("GPU reads its memory", reason.clone(), "a speed", Verdict::Fail);
        }
    }
}

/// Kernels by themselves, and what it costs to meet.
fn kernels(checks: &mut Checks, gpu: &DeviceInfo, probe: Result<GpuProbe, engine::Error>) {
    let probe = match probe {
        Ok(probe) => probe,
        Err(error) => {
            return checks.add("kernels", error.to_string(), "a speed", Verdict::Fail);
        }
    };
    let meeting = probe.meeting_seconds;
    let judge = |passes: bool| if gpu.is_software { Verdict::Look } else { Verdict::of(passes) };
    checks.add(
        "CPU and GPU meet once",
        format!("{:.0} us", 1e6 * meeting),
        format!("at most {:.0} us", 1e6 * LONGEST_MEETING),
        judge(meeting <= LONGEST_MEETING),
    );
    for kernel in &probe.kernels {
        let speed = kernel.bytes_per_second;
        let read = gpu.read_bandwidth.as_ref().copied().unwrap_or(0.0);
        let share = if read > 0.0 { speed / read } else { 0.0 };
        checks.add(
            format!("kernel: {}", kernel.name),
            format!("{}, {:.0} % of what it reads", gigabytes(speed), 100.0 * share),
            format!("at least {:.0} %", 100.0 * LEAST_KERNEL),
            judge(share >= LEAST_KERNEL),
        );
    }
}

/// Whether the GPU computes what the CPU computes.
fn agreement(checks: &mut Checks, directory: &Path, has_gpu: bool) -> anyhow::Result<()> {
    let score = |device, precise| -> anyhow::Result<(f64, Vec<u32>)> {
        let options = EngineOptions { device, precise, ..EngineOptions::default() };
        let mut engine = Engine::open(directory, &options)?;
        let tokens = engine.tokenizer()?.encode(TEXT)?;
        let mut counted = vec![true; tokens.len()];
        counted[0] = false;
        let document = Document { source: "tale".to_owned(), tokens, counted };
        let unit = score_document(&mut engine, &document, None)?;
        let mut best = Vec::new();
        let mut session = engine.session()?;
        let keep = |_, logits: &[f32]| best.push(engine::best(logits));
        engine.evaluate(&mut session, &document.tokens, |_| true, keep)?;
        Ok(((unit.loss / unit.counted as f64).exp(), best))
    };
    let (expected, best) = score(Device::Cpu, true).context("computing on the CPU")?;
    let mut compare = |what: &str, found: anyhow::Result<(f64, Vec<u32>)>, times: f64| {
        let (most, least_same) = (times * MOST_DIFFERENCE, 1.0 - times * MOST_OTHERS);
        let limit = format!("within {:.1} %", 100.0 * most);
        let (perplexity, ours) = match found {
            Ok(found) => found,
            Err(error) => return checks.add(what, output::error(&error), limit, Verdict::Fail),
        };
        let difference = perplexity / expected - 1.0;
        let same = ours.iter().zip(&best).filter(|(a, b)| a == b).count() as f64;
        let same = same / best.len().max(1) as f64;
        checks.add(
            format!("perplexity, {what}"),
            format!("{perplexity:.4}, {:+.3} %", 100.0 * difference),
            format!("{expected:.4}, {limit}"),
            Verdict::of(difference.abs() <= most),
        );
        checks.add(
            format!("same best token, {what}"),
            format!("{:.1} %", 100.0 * same),
            format!("at least {:.0} %", 100.0 * least_same),
            Verdict::of(same >= least_same),
        );
    };
    if has_gpu {
        let gpu = Device::Gpu(Some(0));
        compare("exact GPU beside exact CPU", score(gpu, true), 1.0);
        compare("GPU beside exact CPU", score(gpu, false), EIGHT_BITS);
    }
    compare("CPU beside exact CPU", score(Device::Cpu, false), EIGHT_BITS);
    Ok(())
}

/// Opening, prompts and decoding of a model on a device.
fn speeds(
    checks: &mut Checks,
    args: &BenchArgs,
    model: &str,
    (device, is_software): (Device, bool),
) -> anyhow::Result<()> {
    let place = if matches!(device, Device::Gpu(_)) { "GPU" } else { "CPU" };
    let (name, is_demo) = (bench::short_name(model), model == demo::NAME);
    let mut settings = Settings::new(args)?;
    model.clone_into(&mut settings.model);
    settings.engine.device = device;
    settings.budgets = vec![Budget::All];
    settings.contexts = vec![0];
    settings.prompts = vec![if args.quick { 64 } else { 512 }];
    settings.engine.context = Some(settings.prompts[0].max(settings.tokens + settings.warmup));
    let directory = demo::resolve(model)?;
    let begin = Instant::now();
    let run = || -> anyhow::Result<(Results, f64)> {
        let inventory = Inventory::read(&directory)?;
        let weights = (inventory.trunk_bytes() + inventory.expert_bytes()) as f64;
        let bytes = bench::memory_bytes(&Machine::detect(None));
        let results = Bench::new(&settings, &directory, &inventory, bytes)?.run(None)?;
        Ok((results, weights))
    };
    let (results, weights) = match run() {
        Ok(found) => found,
        Err(error) => {
            let what = format!("{name} on the {place}");
            // Another model may be too large for this device, which the reason tells.
            let verdict = if is_demo { Verdict::Fail } else { Verdict::Skipped };
            checks.add(what, output::error(&error), "it runs", verdict);
            return Ok(());
        }
    };
    for (budget, cell) in results.cells(false).into_iter().chain(results.cells(true)) {
        let Some(speed) = cell.speed() else { continue };
        let state = if cell.cold { "cold" } else { "warm" };
        if let Some(opening) = cell.samples.first().and_then(|sample| sample.opening.as_ref())
            && !cell.is_decode()
        {
            checks.add(
                format!("{name} opens on the {place}"),
                format!("{:.2} s for {}", opening.seconds, format_bytes(weights as u64)),
                "-",
                Verdict::Look,
            );
        }
        let what = match cell.is_decode() {
            true => format!("{name} decodes on the {place}, {state}"),
            false => format!("{name} reads a prompt of {} on the {place}, {state}", cell.length()),
        };
        let found = format!("{:.1} tokens/s", speed.median);
        let is_judged = cell.is_decode() && !cell.cold;
        let reached = cell.roofline(&budget.speeds).filter(|_| is_judged);
        // The demo model is so small that calls cost more than weights.
        let (expected, verdict) = match reached.filter(|_| !is_demo && !is_software) {
            Some((limit, reached, _)) => (
                format!(
                    "at least {:.1}: {:.0} % of what memory and drive of the CPU allow",
                    LEAST_REACHED * limit,
                    100.0 * LEAST_REACHED
                ),
                Verdict::of(reached >= LEAST_REACHED),
            ),
            None => ("-".to_owned(), Verdict::Look),
        };
        checks.add(what, found, expected, verdict);
        if is_judged && place == "GPU" {
            let usage = cell.usage();
            let waits = usage.handoffs.waits as f64 / usage.tokens.max(1) as f64;
            let all_held = usage.hits + usage.misses == 0;
            checks.add(
                format!("waits of the CPU for the GPU, {name}"),
                format!("{waits:.1} a token"),
                if all_held { "1" } else { "as many as layers or less" },
                if all_held { Verdict::of(waits <= 1.0) } else { Verdict::Look },
            );
            let phase =
                |phase| format!("{} {:.2} ms", Phase::name(phase), cell.phase_ms(Some(phase)));
            let phases: Vec<String> = Phase::ALL.into_iter().map(phase).collect();
            checks.add(format!("phases of a token, {name}"), phases.join(", "), "-", Verdict::Look);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    checks.add(
        format!("time for {name} on the {place}"),
        format!("{seconds:.0} s"),
        "-",
        Verdict::Look,
    );
    Ok(())
}

fn gigabytes(speed: f64) -> String {
    format!("{:.1} GB/s", speed / 1e9)
}

/// The speed of memory that Apple states for a chip, in bytes a second; of several versions the slowest.
fn chip_bandwidth(cpu: &str) -> Option<f64> {
    let chip = cpu.strip_prefix("Apple ")?;
    let gigabytes = match chip {
        "M1" => 68.0,
        "M2" | "M3" => 100.0,
        "M4" => 120.0,
        "M5" => 153.0,
        "M3 Pro" => 150.0,
        "M1 Pro" | "M2 Pro" => 200.0,
        "M4 Pro" => 273.0,
        "M3 Max" => 300.0,
        "M1 Max" | "M2 Max" => 400.0,
        "M4 Max" => 410.0,
        "M1 Ultra" | "M2 Ultra" => 800.0,
        "M3 Ultra" => 819.0,
        _ => return None,
    };
    Some(gigabytes * 1e9)
}

fn count(checks: &Checks, verdict: Verdict) -> usize {
    checks.0.iter().filter(|check| check.verdict == verdict).count()
}

fn tally(checks: &Checks) -> String {
    let all = [Verdict::Pass, Verdict::Fail, Verdict::Look, Verdict::Skipped];
    all.map(|verdict| format!("{} {verdict}", count(checks, verdict))).join(", ")
}

fn plain(checks: &Checks, path: &Path) -> String {
    let mut text = String::new();
    for Check { what, found, expected, verdict } in &checks.0 {
        text += &format!("{:8}{what}: {found}", verdict.to_string());
        text +=
            &if expected == "-" { "\n".to_owned() } else { format!(" (expected: {expected})\n") };
    }
    let path = path.display();
    text + &format!(
        "\n{}; the report is in {path}, docs/mac.md tells where to send it\n",
        tally(checks)
    )
}

fn markdown(checks: &Checks, machine: &Machine, date: &str) -> String {
    let mut text = format!(
        "# Flash-MoE on {}\n\nflash-moe {}, {date} UTC: {}.\n\n",
        machine.name(),
        version(),
        tally(checks)
    );
    text += "| check | found | expected | |\n|---|---|---|---|\n";
    for Check { what, found, expected, verdict } in &checks.0 {
        let cell = |text: &str| text.replace('|', "/").replace('\n', " ");
        text += &format!("| {} | {} | {} | {verdict} |\n", cell(what), cell(found), cell(expected));
    }
    text += "\n\"look\" is what nobody knows yet: such a line is why this report is asked for.\n";
    text += "\n| machine | |\n|---|---|\n";
    for (name, value) in machine.facts() {
        text += &format!("| {name} | {value} |\n");
    }
    let json = to_json(checks, machine, date).to_string();
    text + &format!(
        "\n<details><summary>the same as JSON</summary>\n\n```json\n{json}\n```\n\n</details>\n"
    )
}

fn to_json(checks: &Checks, machine: &Machine, date: &str) -> Value {
    let lines = checks.0.iter().map(|Check { what, found, expected, verdict }| {
        json!({
            "check": what,
            "found": found,
            "expected": (expected != "-").then_some(expected),
            "verdict": verdict.to_string().to_lowercase(),
        })
    });
    json!({
        "schema": "flash-moe-checklist/1",
        "date": date,
        "version": version(),
        "machine": machine.to_json(),
        "checks": lines.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_known_of_chips_by_their_names() {
        assert_eq!(chip_bandwidth("Apple M3 Max"), Some(300e9));
        assert_eq!(chip_bandwidth("Apple M1"), Some(68e9));
        assert_eq!(chip_bandwidth("Apple M99"), None);
        assert_eq!(chip_bandwidth("AMD EPYC"), None);
    }
}
