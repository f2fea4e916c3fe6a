//! What is refused before anything begins.

use engine::{Inventory, format_bytes};

use crate::error::Error;
use crate::expert::Method;
use crate::options::Options;
use crate::plan::Placement;
use crate::recipe::Width;

/// Of more tokens a layer's rows would be tens of gigabytes, in memory.
const MAX_CALIBRATION_TOKENS: usize = 1 << 24;

/// Systems let a process open a few hundred files.
const MAX_SHARDS: u64 = 500;

/// Checks that the source can be quantised so.
pub(crate) fn check_recipe(inventory: &Inventory, options: &Options) -> Result<(), Error> {
    check_shards(inventory, options.shard_bytes)?;
    let config = inventory.checkpoint.config();
    let recipe = &options.recipe;
    let wrong = |field: &str, found: String, expected: &str| {
        Err(Error::Recipe { field: field.to_owned(), found, expected: expected.to_owned() })
    };
    let widths = [config.hidden_size, config.moe.intermediate];
    let group = usize::from(recipe.group);
    let keeps_experts = recipe.experts == Width::Keep && options.budget.is_none();
    if !keeps_experts && widths.iter().any(|width| !width.is_multiple_of(group)) {
        let expected =
            format!("a divisor of {} and of {}, as wide as experts are", widths[0], widths[1]);
        return wrong("group", recipe.group.to_string(), &expected);
    }
    if options.budget.is_some() && options.calibration.is_empty() {
        return wrong(
            "a budget",
            "without calibration".to_owned(),
            "with it: widths hang on inputs",
        );
    }
    if options.budget.is_some() && options.placement == Placement::Stacked {
        let expected = "for experts that lie apart: a stack has one width";
        return wrong("a budget", "for stacks".to_owned(), expected);
    }
    let needs_inputs = !matches!(options.method, Method::Round | Method::Search);
    if needs_inputs && options.calibration.is_empty() && !keeps_experts {
        let found = "without calibration".to_owned();
        return wrong("the method", found, "round or search, or with text to calibrate by");
    }
    if keeps_experts && !options.calibration.is_empty() {
        let expected = "left out: it is for codes of routed experts, and those are kept";
        return wrong("calibration", "given".to_owned(), expected);
    }
    if !options.calibration.is_empty()
        && !(1..=MAX_CALIBRATION_TOKENS).contains(&options.calibration_tokens)
    {
        let expected = format!("from 1 to {MAX_CALIBRATION_TOKENS}");
        return wrong("calibration tokens", options.calibration_tokens.to_string(), &expected);
    }
    Ok(())
}

/// Checks that files of about so many bytes can all be open at a time.
pub(crate) fn check_shards(inventory: &Inventory, shard_bytes: u64) -> Result<(), Error> {
    let bytes: u64 = inventory.checkpoint.files().iter().map(|file| file.len).sum();
    if bytes / shard_bytes.max(1) > MAX_SHARDS {
        return Err(Error::Recipe {
            field: "the size of shards".to_owned(),
            found: format_bytes(shard_bytes),
            expected: format!(
                "larger: {} would be more than {MAX_SHARDS} files",
                format_bytes(bytes)
            ),
        });
    }
    Ok(())
}
