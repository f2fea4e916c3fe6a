//! Budgets to look at: from the least that a model runs in to one that holds all its experts.

use engine::{EngineOptions, Error, Inventory, plan_memory};

/// Budgets that are planned.
const N_SIZES: i32 = 9;

/// Budgets in bytes with the experts that have room in each, growing.
pub fn planned(
    inventory: &Inventory,
    options: &EngineOptions,
) -> anyhow::Result<Vec<(u64, usize)>> {
    let plan = |memory: u64| {
        plan_memory(inventory, &EngineOptions { memory: Some(memory), ..options.clone() })
    };
    // What the first plan leaves resident, such as the allocator's, counts for those that follow.
    drop(plan(1));
    let least = match plan(1) {
        Err(Error::Budget { needed, .. }) => needed,
        Err(error) => return Err(error.into()),
        Ok(plan) => plan.total,
    };
    let n_experts: usize = inventory.experts.iter().map(|table| table.len()).sum();
    let all = plan(u64::MAX / 4)?;
    let slot_bytes = (all.all_experts / n_experts.max(1) as u64).max(1);
    let most = (least + all.all_experts) as f64 * 1.01;
    let ratio = most / least as f64;
    let mut sizes: Vec<(u64, usize)> = Vec::new();
    for index in 0..N_SIZES {
        let wanted = least as f64 * 1.03 * ratio.powf(f64::from(index) / f64::from(N_SIZES - 1));
        let memory = round_up(wanted);
        // What is left for experts also depends on the context and buffers that a budget allows.
        let slots = match plan(memory) {
            Ok(plan) => (plan.experts / slot_bytes) as usize,
            Err(Error::Budget { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        if sizes.last().is_none_or(|&(_, last)| slots > last) {
            sizes.push((memory, slots.min(n_experts)));
        }
    }
    Ok(sizes)
}

/// The next size that is nice to type: two digits of MiB or GiB.
fn round_up(bytes: f64) -> u64 {
    let mib = f64::from(1 << 20);
    let unit = if bytes >= 1024.0 * mib { 1024.0 * mib } else { mib };
    let value = bytes / unit;
    let step = 10_f64.powf(value.log10().floor() - 1.0).max(if unit > mib { 0.1 } else { 1.0 });
    // A hair less than a step above is not a step above.
    (((value / step - 1e-9).ceil() * step) * unit).ceil() as u64
}

/// A size as it is typed: `0.4M`, `96M`, `1.5G`.
pub fn typed(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    let (value, unit) = if mib >= 1024.0 { (mib / 1024.0, "G") } else { (mib, "M") };
    let text = match unit {
        "M" if value >= 10.0 => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    };
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_nice_to_type_and_never_less() {
        let mib = |value: f64| value * f64::from(1 << 20);
        for (bytes, text) in [
            (mib(53.2), "54M"),
            (mib(2.0), "2M"),
            (mib(131.0), "140M"),
            (mib(1100.0), "1.1G"),
            (mib(20_000.0), "20G"),
        ] {
            let rounded = round_up(bytes);
            assert_eq!(typed(rounded), text);
            assert!(rounded as f64 >= bytes);
        }
    }
}
