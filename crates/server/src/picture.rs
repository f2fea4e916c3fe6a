//! How the engine looks at one moment: what `/engine/events` sends.

use engine::{Engine, Phase, Usage};
use serde_json::{Map, Value, json};

use crate::facts::Facts;

/// The sums so far, and which experts are in memory: a text of hexadecimal digits a layer, four experts a
/// digit, the first expert in the highest bit.
pub(crate) fn draw(facts: &Facts, engine: &Engine) -> String {
    let resident: Vec<Value> = engine.resident_experts().map(|layer| hex(layer).into()).collect();
    let mut picture = sums(facts);
    picture["resident"] = Value::Array(resident);
    picture.to_string()
}

/// The sums alone.
pub(crate) fn sums(facts: &Facts) -> Value {
    let Facts { waiting, capacity, scheduler, usage } = facts;
    json!({
        "running": scheduler.running,
        "waiting": waiting,
        "capacity": capacity,
        "tokens_generated": scheduler.generated_tokens,
        "tokens_cached": scheduler.cached_tokens,
        "tokens_computed": usage.tokens,
        "expert_hits": usage.hits,
        "expert_misses": usage.misses,
        "bytes_read": usage.bytes_read,
        "seconds": usage.wall.as_secs_f64(),
        "phase_seconds": phases(usage),
    })
}

/// Seconds by phase.
pub(crate) fn phases(usage: &Usage) -> Map<String, Value> {
    let named = Phase::ALL.map(|phase| (phase.name(), usage.phase(phase)));
    let all = named.into_iter().chain([("other", usage.other())]);
    all.map(|(name, time)| (name.to_owned(), time.as_secs_f64().into())).collect()
}

fn hex(flags: impl Iterator<Item = bool>) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = Vec::new();
    for (index, flag) in flags.enumerate() {
        if index % 4 == 0 {
            digits.push(0);
        }
        if let Some(digit) = digits.last_mut() {
            *digit |= usize::from(flag) << (3 - index % 4);
        }
    }
    digits.into_iter().map(|digit| char::from(DIGITS[digit])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_digits_from_the_highest_bit() {
        assert_eq!(hex([true, false, false, false, true, true].into_iter()), "8c");
        assert_eq!(hex([false; 8].into_iter()), "00");
        assert_eq!(hex([].into_iter()), "");
    }
}
