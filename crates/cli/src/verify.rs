//! `flash-moe verify`: compares with golden outputs.

use std::process::ExitCode;

use anyhow::Context;
use engine::verify::Outcome;
use engine::{Engine, EngineOptions};
use serde_json::json;

use crate::args::VerifyArgs;
use crate::output;

/// Runs the command; fails when a comparison is beyond the tolerance.
pub fn verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let options = EngineOptions { precise: !args.fast, ..args.engine.options() };
    let mut engine = Engine::open(&args.model, &options)
        .with_context(|| format!("opening {}", args.model.display()))?;
    let golden = args.golden.unwrap_or_else(|| match args.model.is_file() {
        true => args.model.with_extension("golden.safetensors"),
        false => args.model.join("golden.safetensors"),
    });
    let report = engine::verify::verify(&mut engine, &golden)?;
    let tolerance = args.tolerance.unwrap_or_else(|| engine::verify::tolerance(&engine));
    let passes = report.passes(tolerance);
    if let Some(path) = &args.dump {
        report.dump(path)?;
    }
    if args.json {
        let checks = report.checks.iter().map(|check| {
            let passes = check.passes(tolerance);
            match check.outcome {
                Outcome::Error(error) => {
                    json!({ "name": check.name, "max_abs_error": error, "passes": passes })
                }
                Outcome::Agreement { equal, of } => {
                    json!({ "name": check.name, "equal": equal, "of": of, "passes": passes })
                }
            }
        });
        output::json(&json!({
            "model": args.model,
            "device": engine.device_name(),
            "tolerance": tolerance,
            "passes": passes,
            "worst_error": report.worst_error(),
            "checks": checks.collect::<Vec<_>>(),
        }))?;
    } else {
        let mut text = format!("{} on {}\n", args.model.display(), engine.device_name());
        for check in &report.checks {
            let result = match check.outcome {
                Outcome::Error(error) => format!("max abs error {error:.2e}"),
                Outcome::Agreement { equal, of } => format!("{equal} of {of} equal"),
            };
            let mark = if check.passes(tolerance) { "ok" } else { "FAILED" };
            text += &format!("  {:<32}{result:<28}{mark}\n", check.name);
        }
        if report.checks.is_empty() {
            text += "  nothing to compare: the golden file has none of the known sequences\n";
        }
        let verdict = if passes { "passed" } else { "FAILED" };
        text += &format!(
            "{verdict}, worst error {:.2e}, tolerance {:.0e}\n",
            report.worst_error(),
            tolerance
        );
        output::stream(&text)?;
    }
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
