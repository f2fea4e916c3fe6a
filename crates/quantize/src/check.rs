//! What is refused before anything begins.

use engine::Inventory;

use crate::error::Error;
use crate::expert::Method;
use crate::options::Options;
use crate::plan::Placement;
use crate::recipe::Width;

/// Checks that the source can be quantised so.
pub(crate) fn check_recipe(inventory: &Inventory, options: &Options) -> Result<(), Error> {
    let config = inventory.checkpoint.config();
    let recipe = &options.recipe;
    let wrong = |field: &str, found: String, expected: &str| {
        Err(Error::Recipe { field: field.to_owned(), found, expected: expected.to_owned() })
    };
    let widths = [config.hidden_size, config.moe.intermediate];
    let group = usize::from(recipe.group);
    if recipe.experts != Width::Keep && widths.iter().any(|width| !width.is_multiple_of(group)) {
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
    if needs_inputs && options.calibration.is_empty() && recipe.experts != Width::Keep {
        let found = "without calibration".to_owned();
        return wrong("the method", found, "round or search, or with text to calibrate by");
    }
    if !options.calibration.is_empty() && options.calibration_tokens == 0 {
        return wrong("calibration tokens", "0".to_owned(), "more than that");
    }
    Ok(())
}
