//! `flash-moe cache-sim`: what eviction policies would have hit on recorded routing.

use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use engine::cache::{self, Frecency, PolicyKind, SimulatedHits, Trace};
use engine::format_bytes;
use serde_json::{Value, json};

use crate::args::{positive, size};
use crate::output;

/// Shares of all experts that are simulated when nothing is asked for.
const SHARES: [f64; 7] = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8];

#[derive(Args, Debug)]
pub struct CacheSimArgs {
    /// The recorded routing.
    pub trace: PathBuf,
    /// Numbers of slots to simulate; default: some shares of all experts.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = positive)]
    pub slots: Vec<usize>,
    /// Sizes of the memory for routed experts to simulate, such as 4G,8G.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = size)]
    pub sizes: Vec<u64>,
    /// Do not count the first N passes, such as the prompt's.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// Also try the default policy with other half-lives, in uses of an average expert.
    #[arg(long, value_name = "USES", value_delimiter = ',', value_parser = positive_real)]
    pub half_life: Vec<f64>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn cache_sim(args: CacheSimArgs) -> anyhow::Result<ExitCode> {
    let open =
        || -> anyhow::Result<Trace> { Ok(Trace::read(BufReader::new(File::open(&args.trace)?))?) };
    let trace = open().with_context(|| format!("reading {}", args.trace.display()))?;
    let n_experts: usize = trace.experts.iter().map(|&count| count as usize).sum();
    let slots_of = |bytes: u64| (bytes / trace.slot_bytes) as usize;
    let mut sizes: Vec<usize> = args.slots.clone();
    sizes.extend(args.sizes.iter().map(|&bytes| slots_of(bytes)));
    if sizes.is_empty() {
        sizes.extend(SHARES.map(|share| (share * n_experts as f64) as usize));
    }
    if let Some(size) = sizes.iter().find(|&&slots| slots == 0) {
        bail!("{size} slots hold no expert");
    }
    // Passes begin where the layer does not rise.
    let begins = trace.requests.windows(2).enumerate();
    let begins = begins.filter(|(_, pair)| pair[1].layer <= pair[0].layer);
    let mut begins = std::iter::once(0).chain(begins.map(|(index, _)| index + 1));
    let Some(skip) = begins.nth(args.skip) else {
        bail!("the trace has no more than {} passes", args.skip);
    };

    let mut names: Vec<String> = PolicyKind::ALL.map(|kind| kind.name().to_owned()).to_vec();
    names.extend(args.half_life.iter().map(|uses| format!("frecency {uses}")));
    names.push("belady".to_owned());
    let rows: Vec<Vec<SimulatedHits>> = sizes
        .iter()
        .map(|&slots| {
            let run = |mut policy: Box<dyn cache::Policy>| {
                cache::simulate(&trace, policy.as_mut(), slots, skip)
            };
            let mut row = PolicyKind::ALL.map(|kind| run(kind.build(n_experts))).to_vec();
            let half_lives = args.half_life.iter();
            row.extend(half_lives.map(|&uses| run(Box::new(Frecency::new(n_experts, uses)))));
            row.push(cache::simulate_belady(&trace, slots, skip));
            row
        })
        .collect();

    if args.json {
        let sizes = sizes.iter().zip(&rows).map(|(&slots, row)| {
            let policies = names.iter().zip(row).map(|(name, counts)| {
                let value = json!({
                    "hits": counts.hits,
                    "misses": counts.misses,
                    "hit_rate": counts.hit_rate(),
                });
                (name.clone(), value)
            });
            json!({
                "slots": slots,
                "bytes": slots as u64 * trace.slot_bytes,
                "policies": Value::Object(policies.collect()),
            })
        });
        output::json(&json!({
            "trace": args.trace,
            "requests": trace.requests.len(),
            "experts": n_experts,
            "slot_bytes": trace.slot_bytes,
            "sizes": sizes.collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{:>8}{:>12}{:>8}", "slots", "memory", "of all");
    for name in &names {
        write!(text, "{name:>13}").expect("a String takes all");
    }
    text.push('\n');
    for (&slots, row) in sizes.iter().zip(&rows) {
        let memory = format_bytes((slots as u64).saturating_mul(trace.slot_bytes));
        let share = 100.0 * slots as f64 / n_experts.max(1) as f64;
        write!(text, "{slots:>8}{memory:>12}{share:>6.0} %").expect("a String takes all");
        for counts in row {
            let rate = counts.hit_rate().map_or("-".to_owned(), |r| format!("{:.1} %", 100.0 * r));
            write!(text, "{rate:>13}").expect("a String takes all");
        }
        text.push('\n');
    }
    output::stream(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn positive_real(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("must be a number above 0".to_owned()),
    }
}
