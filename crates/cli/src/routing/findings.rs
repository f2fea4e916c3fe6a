//! What the numbers say, in sentences.

use routing::{Accuracy, DEFAULT_POLICY, Method, ReadAhead, coverage, experts_for};

use crate::routing::{Report, sizes};

/// One thing that was found.
pub struct Finding {
    /// The number that matters, short.
    pub figure: String,
    /// What it says, in whole sentences.
    pub text: String,
}

/// What matters most, in order.
pub fn findings(report: &Report) -> Vec<Finding> {
    let mut findings = vec![evenness(report)];
    findings.extend(overlap(report));
    findings.extend(memory(report));
    findings.extend(guessing(report));
    findings.extend(reading_ahead(report));
    findings
}

/// A share for people.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if p > 0.0 && p < 9.95 => format!("{p:.1} %"),
        p if p > 99.0 && p < 99.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

fn evenness(report: &Report) -> Finding {
    let all = report.analysis.uses.layers.iter().flatten().copied();
    let curve = coverage(all);
    let tenth = (curve.len() / 10).max(1);
    let covered = curve.get(tenth - 1).copied().unwrap_or(0.0);
    let half = report.share(experts_for(&curve, 0.5));
    let is_even = covered < 0.2;
    let follows = if is_even {
        "The use is nearly even: which experts are popular tells a cache little."
    } else {
        "A small cache of the right experts goes a long way."
    };
    Finding {
        figure: percent(covered),
        text: format!(
            "of all uses fall on the hottest tenth of the experts, and {} of the experts carry half of \
             the uses. {follows}",
            percent(half)
        ),
    }
}

fn overlap(report: &Report) -> Option<Finding> {
    let overlaps = report.analysis.locality.overlaps.iter().flatten();
    let n = overlaps.clone().count();
    if n == 0 {
        return None;
    }
    let mean =
        |part: fn(&routing::Overlap) -> f64| overlaps.clone().map(part).sum::<f64>() / n as f64;
    let (next, lot) = (mean(|o| o.consecutive), mean(|o| o.by_lot));
    let follows = if next > 1.25 * lot {
        "Neighbours are more alike than chance makes them: recency is worth something."
    } else {
        "That is little more than chance: popularity explains nearly all of it, and recency adds little."
    };
    Some(Finding {
        figure: percent(next),
        text: format!(
            "of a token's experts were used by the token before; two tokens drawn by lot share {}. \
             {follows}",
            percent(lot)
        ),
    })
}

/// The least memory with many hits.
fn memory(report: &Report) -> Option<Finding> {
    let rate = |memory: &&super::MemorySize| memory.cache.hits[DEFAULT_POLICY].hit_rate();
    let rate = |memory: &&super::MemorySize| rate(memory).unwrap_or(0.0);
    let enough = report.memory.iter().find(|memory| rate(memory) >= 0.9);
    let (memory, is_enough) = match enough {
        Some(memory) => (memory, true),
        None => (report.memory.last()?, false),
    };
    let hits = memory.cache.hits[DEFAULT_POLICY];
    let read = report.bytes_per_pass(hits.misses) / 1e6;
    let bytes = memory.cache.slots as u64 * report.trace.slot_bytes;
    let (figure, what) = match memory.memory {
        Some(memory) => (format!("{} of memory", sizes::typed(memory)), "--memory"),
        None => (format!("{} of slots", sizes::typed(bytes)), "--expert-cache"),
    };
    let hit = percent(rate(&memory));
    let first = if is_enough {
        format!("({what}) is the least of the sizes below that hits nine of ten: {hit}")
    } else {
        format!("({what}), the most of the sizes below, hits {hit}")
    };
    let pass = report.pass();
    Some(Finding {
        figure,
        text: format!(
            "{first}, with {} of the experts in memory and {read:.1} MB read for a {pass}.",
            percent(report.share(memory.cache.slots)),
        ),
    })
}

fn guessing(report: &Report) -> Option<Finding> {
    let look_ahead = report.look_ahead.as_ref()?;
    let share = |accuracy: &Accuracy| accuracy.total().share();
    let shares: Vec<f64> = look_ahead.strides.iter().filter_map(share).collect();
    let (first, rest) = shares.split_first()?;
    let rest: Vec<String> = rest.iter().map(|&share| percent(share)).collect();
    let mut text = "of a layer's experts are guessed by its own router one mixer early".to_owned();
    if !rest.is_empty() {
        text += &format!("; two and three layers ahead {}", rest.join(" and "));
    }
    text += ".";
    if let Some(comparison) = &look_ahead.comparison {
        let of = |method: Method| {
            let index = Method::ALL.iter().position(|&other| other == method).unwrap_or(0);
            comparison.methods.get(index).and_then(share).unwrap_or(0.0)
        };
        let (plain, trained, corrected) =
            (of(Method::LookAhead), of(Method::Trained), of(Method::Corrected));
        text += &format!(
            " On the last part of the text a map of rank {} trained on the rest guesses {}, and one that \
             only corrects the router {}, where the router alone guesses {}: training {}.",
            comparison.rank,
            percent(trained),
            percent(corrected),
            percent(plain),
            if corrected > plain + 0.05 { "is worth a closer look" } else { "gains little" },
        );
    }
    Some(Finding { figure: percent(*first), text })
}

fn reading_ahead(report: &Report) -> Option<Finding> {
    let look_ahead = report.look_ahead.as_ref()?;
    let (slots, by_stride) = look_ahead.read_ahead.get(1).or(look_ahead.read_ahead.first())?;
    let &ReadAhead { misses, useful, wasted, .. } = by_stride.first()?;
    let covered = useful as f64 / misses.max(1) as f64;
    let verdict = match (covered, useful > 2 * wasted) {
        (covered, _) if covered < 0.1 => {
            "It can hide little: leave --look-ahead at auto, which stops trying."
        }
        (_, true) => "It pays wherever the drive has idle time.",
        (_, false) => "It pays only where the drive idles for long: many of its reads are in vain.",
    };
    Some(Finding {
        figure: percent(covered),
        text: format!(
            "of the misses can be read one layer ahead with {} of the experts in memory, at {:.2} reads in \
             vain for a useful one. {verdict}",
            percent(report.share(*slots)),
            wasted as f64 / useful.max(1) as f64,
        ),
    })
}
