//! The results for people: plain text on a terminal, Markdown in a file.

use engine::{Inventory, Phase, format_bytes};
use serde_json::Value;

use crate::bench::machine::{self, Machine};
use crate::bench::results::{BudgetResult, Cell, Results, Spread};
use crate::bench::settings::Settings;
use crate::timing;

/// A table: its title, the names of its columns, and its rows.
struct Table {
    title: &'static str,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// What a report tells besides the measurements.
pub struct Head<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// When the measurements began.
    pub date: &'a str,
    /// The model, in a few words.
    pub model: String,
}

/// The model in a few words.
pub fn model_facts(settings: &Settings, inventory: &Inventory) -> String {
    let config = inventory.checkpoint.config();
    format!(
        "{}: {}, {} layers, {} experts a layer and {} a token, one of {}; trunk {}, experts {}",
        settings.model,
        config.family.name(),
        config.mixers.len(),
        config.moe.n_experts,
        config.moe.top_k,
        format_bytes(inventory.largest_expert_bytes()),
        format_bytes(inventory.trunk_bytes()),
        format_bytes(inventory.expert_bytes()),
    )
}

/// Everything as plain text.
pub fn text(head: &Head<'_>, settings: &Settings, results: &Results) -> String {
    let mut text = format!("{}\n{} on {}\n", head.model, results.device, head.machine.name());
    for table in tables(results) {
        text += &format!("\n{}\n", table.title);
        let all = [&table.columns].into_iter().chain(&table.rows);
        let width = |column: usize| all.clone().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..table.columns.len()).filter_map(width).collect();
        for row in all.clone() {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // The first column names the row.
                line += &match index {
                    0 => format!("  {cell:<width$}"),
                    _ => format!("  {cell:>width$}"),
                };
            }
            text += &format!("{}\n", line.trim_end());
        }
    }
    for note in notes(settings, results) {
        text += &format!("\n* {note}");
    }
    text + "\n"
}

/// The measurements as Markdown.
pub fn markdown(head: &Head<'_>, settings: &Settings, results: &Results) -> String {
    let Head { machine, date, model } = head;
    let mut text = format!(
        "# Benchmark of {}\n\n{model}\n\n{} on {}, {date} UTC, flash-moe {}.\n",
        settings.model,
        results.device,
        machine.name(),
        machine::version(),
    );
    for table in tables(results) {
        text += &format!("\n## {}\n\n| {} |\n|", table.title, table.columns.join(" | "));
        text += "---|";
        text += &"---:|".repeat(table.columns.len() - 1);
        text.push('\n');
        for row in &table.rows {
            text += &format!("| {} |\n", row.join(" | "));
        }
    }
    text.push('\n');
    for note in notes(settings, results) {
        text += &format!("* {note}\n");
    }
    text
}

/// A report that can be judged without anything else: the measurements, the machine, the command, and
/// every single value.
pub fn report(head: &Head<'_>, settings: &Settings, results: &Results, all: &Value) -> String {
    let mut text = markdown(head, settings, results);
    text += "\n## Machine and program\n\n| | |\n|---|---|\n";
    for (name, value) in head.machine.facts() {
        text += &format!("| {name} | {value} |\n");
    }
    text += &format!("| program | flash-moe {} |\n", machine::version());
    text += &format!("| date | {} UTC |\n", head.date);
    text += &format!("\n```sh\n{}\n```\n", machine::command_line());
    text += "\nThe method is described in [PROTOCOL.md](../PROTOCOL.md).\n";
    let json = serde_json::to_string(all).unwrap_or_default();
    text += "\n<details><summary>every value, as JSON</summary>\n\n```json\n";
    text += &format!("{json}\n```\n\n</details>\n");
    text
}

fn tables(results: &Results) -> Vec<Table> {
    let tables = [decode_table, tier_table, prompt_table, phase_table, speed_table];
    tables.map(|table| table(results)).into_iter().filter(|table| !table.rows.is_empty()).collect()
}

/// Where the experts of a decoded token were, if a device had a part in it.
fn tier_table(results: &Results) -> Table {
    let row = |(budget, cell): (&BudgetResult, &Cell)| {
        let usage = cell.usage();
        let n_tokens = usage.tokens.max(1) as f64;
        let n_uses = (usage.held_uses + usage.hits + usage.misses).max(1) as f64;
        let share = |n: u64| percent(Some(n as f64 / n_uses));
        let mut row = place(budget, cell);
        row.remove(1);
        row.extend([usage.held_uses, usage.hits, usage.misses].map(share));
        row.push(format!("{:.1}", cell.read_per_token() / 1e6));
        row.push(percent(Some(usage.drive_busy.as_secs_f64() / usage.wall.as_secs_f64())));
        let handoffs = usage.handoffs;
        row.push(format!("{:.1}", handoffs.waits as f64 / n_tokens));
        row.push(format!("{:.1}", handoffs.submissions as f64 / n_tokens));
        row.push(format!("{:.1}", handoffs.host_uses as f64 / n_tokens));
        row.push(format!("{:.1}", handoffs.expert_bytes as f64 / n_tokens / 1e6));
        row.push(format!("{:.1}", handoffs.in_place_bytes as f64 / n_tokens / 1e6));
        let seconds = handoffs.expert_time.as_secs_f64();
        row.push(match seconds > 0.0 {
            true => format!("{:.1}", handoffs.expert_bytes as f64 / seconds / 1e9),
            false => "-".to_owned(),
        });
        row
    };
    let cells = results.cells(true).into_iter();
    let columns = [
        "budget",
        "context",
        "state",
        "found on the device",
        "in memory",
        "on the drive",
        "MB read/token",
        "drive busy",
        "waits/token",
        "submissions",
        "computed by the CPU",
        "MB moved/token",
        "MB read in place",
        "taken at GB/s",
    ];
    Table {
        title: "Where a decoded token's experts were",
        columns: columns.map(str::to_owned).to_vec(),
        rows: cells.filter(|(_, cell)| cell.usage().handoffs.waits > 0).map(row).collect(),
    }
}

fn decode_table(results: &Results) -> Table {
    let row = |(budget, cell): (&BudgetResult, &Cell)| {
        let mut row = place(budget, cell);
        row.extend([spread(cell.speed(), 2), range(cell.speed(), 2)]);
        row.push(percent(cell.hit_rate()));
        row.push(format!("{:.1}", cell.read_per_token() / 1e6));
        row.push(format!("{:.1}", cell.touched.total() as f64 / 1e6));
        row.extend(match cell.roofline(&budget.speeds) {
            Some((limit, reached, by_memory)) => [
                format!("{limit:.1}"),
                if by_memory { "memory" } else { "drive" }.to_owned(),
                percent(Some(reached)),
            ],
            None => ["-", "-", "-"].map(str::to_owned),
        });
        row
    };
    Table {
        title: "Decoding",
        columns: [
            "budget",
            "experts in memory",
            "context",
            "state",
            "tokens/s",
            "min to max",
            "hits",
            "MB read/token",
            "MB touched/token",
            "limit, tokens/s",
            "set by",
            "reached",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: results.cells(true).into_iter().map(row).collect(),
    }
}

fn prompt_table(results: &Results) -> Table {
    let row = |(budget, cell): (&BudgetResult, &Cell)| {
        let mut row = place(budget, cell);
        row.extend([spread(cell.speed(), 2), range(cell.speed(), 2)]);
        row.push(percent(cell.hit_rate()));
        row.push(format!("{:.1}", cell.read_per_token() / 1e6));
        row.push(spread(cell.first_token(), 2));
        row
    };
    Table {
        title: "Prompts",
        columns: [
            "budget",
            "experts in memory",
            "tokens",
            "state",
            "tokens/s",
            "min to max",
            "hits",
            "MB read/token",
            "first token, s",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: results.cells(false).into_iter().map(row).collect(),
    }
}

fn phase_table(results: &Results) -> Table {
    let phases = || Phase::ALL.into_iter().map(Some).chain([None]);
    let row = |(budget, cell): (&BudgetResult, &Cell)| {
        let mut row = place(budget, cell);
        row.remove(1);
        row.extend(phases().map(|phase| format!("{:.2}", cell.phase_ms(phase))));
        row.push(format!("{:.2}", phases().map(|phase| cell.phase_ms(phase)).sum::<f64>()));
        row
    };
    let names = phases().map(|phase| phase.map_or("other", timing::label).to_owned());
    let columns = ["budget", "context", "state"].map(str::to_owned).into_iter();
    Table {
        title: "Milliseconds of a decoded token",
        columns: columns.chain(names).chain(["total".to_owned()]).collect(),
        rows: results.cells(true).into_iter().map(row).collect(),
    }
}

fn speed_table(results: &Results) -> Table {
    let (threads, bytes) = results.memory_reads;
    let memory = match results.is_device_memory {
        true => "memory of the device, read by it".to_owned(),
        false => format!("memory, {threads} threads reading {}", format_bytes(bytes as u64)),
    };
    let (read, threads) = results.drive_reads;
    let how = if results.direct { "direct" } else { "BUFFERED" };
    let drive =
        format!("drive, {how} random reads of {} by up to {threads} threads", format_bytes(read));
    let row = |name: String, speeds: Option<Spread>| {
        let unit = |value: f64| value / 1e9;
        let speeds =
            speeds.map(|s| Spread { median: unit(s.median), min: unit(s.min), max: unit(s.max) });
        vec![name, spread(speeds, 2), range(speeds, 2), results.speeds.len().to_string()]
    };
    Table {
        title: "Speeds of the machine, measured between the repeats",
        columns: ["what", "GB/s", "min to max", "measurements"].map(str::to_owned).to_vec(),
        rows: vec![row(memory, results.memory()), row(drive, results.drive())],
    }
}

/// What a reader must know to read the tables.
fn notes(settings: &Settings, results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    let Settings { tokens, warmup, repeats, seed, .. } = settings;
    let times = if *repeats == 1 { "once".to_owned() } else { format!("{repeats} times") };
    notes.push(format!(
        "Everything was measured {times}; speeds are medians, and a token's phases are those of the repeat of \
         middle speed. Decoding: {tokens} random tokens of seed \
         {seed}, one at a time with logits and without sampling; warm after {warmup} uncounted ones."
    ));
    notes.push(
        "Limit: the slower of reading the touched bytes from memory (a device's own, where it has one; what is \
         moved there is not counted) and the missing ones from the drive, at the speeds measured around the same \
         repeat."
            .to_owned(),
    );
    notes.push(match results.coldness() {
        (_, Some(reason)) => format!(
            "Cold: the engine was opened anew with empty slots. NOT VERIFIED that the page cache forgot \
             the model: {reason}."
        ),
        (share, None) => format!(
            "Cold: the engine was opened anew with empty slots, after the model's pages were dropped from \
             the page cache; at most {} of them were still there. Our own reads go past that cache anyway; \
             what the drive and a virtual machine's host keep is not known.",
            percent(Some(share.unwrap_or(0.0)))
        ),
    });
    let reached = |(budget, cell): (&BudgetResult, &Cell)| {
        cell.roofline(&budget.speeds).is_some_and(|(_, reached, _)| reached > 1.0)
    };
    if results.cells(true).into_iter().any(reached) {
        notes.push(
            "More than 100 % of a limit says that the machine was faster during that measurement than before \
             and after it: measure again when it is quiet."
                .to_owned(),
        );
    }
    if !results.direct {
        notes.push(
            "The file system refuses direct reads: the drive's speed is that of buffered reads, and may be \
             the page cache's."
                .to_owned(),
        );
    }
    for budget in &results.budgets {
        if let Some(peak) = budget.peak_resident {
            let over = if peak > budget.plan.total { ", MORE than the budget" } else { "" };
            notes.push(format!(
                "{}: at most {} resident, of a budget of {}{over}.",
                budget.budget,
                format_bytes(peak),
                format_bytes(budget.plan.total)
            ));
        }
    }
    if let Some(load) = Spread::of(results.loads.iter().copied()) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let busy =
            if load.max > 1.5 * cores { ": others were at work, so trust ratios only" } else { "" };
        notes.push(format!(
            "Load of the machine before the repeats: {:.1} to {:.1} on {cores} cores{busy}.",
            load.min, load.max
        ));
    }
    notes
}

/// The first columns of a row.
fn place(budget: &BudgetResult, cell: &Cell) -> Vec<String> {
    vec![
        budget.budget.to_string(),
        percent(Some(budget.experts_in_memory())),
        cell.length().to_string(),
        if cell.cold { "cold" } else { "warm" }.to_owned(),
    ]
}

fn spread(value: Option<Spread>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.digits$}", value.median))
}

fn range(value: Option<Spread>, digits: usize) -> String {
    value.map_or_else(
        || "-".to_owned(),
        |value| format!("{:.digits$} to {:.digits$}", value.min, value.max),
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}
