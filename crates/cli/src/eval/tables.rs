//! The numbers as text.

use engine::format_bytes;
use eval::{Calls, Cost, Estimate, Results, SourceSummary, Summary, Way};

/// One run.
pub fn one(results: &Results, summary: &Summary) -> String {
    let facts = &results.facts;
    let mut text = format!("{}\n{}, flash-moe {}\n", name(results), facts.device, facts.program);
    if let Some(reference) = &facts.reference {
        let top = facts.reference_top.unwrap_or(0);
        text +=
            &format!("reference: {reference}, precise, the {top} best tokens of each prediction\n");
    }
    if !summary.texts.is_empty() {
        text += "\nTexts, with 95 % intervals\n";
        let mut rows = vec![text_head(summary)];
        rows.extend(summary.texts.iter().map(text_row));
        text += &table(&rows);
    }
    if !summary.calls.is_empty() {
        text += "\nRequests, with 95 % intervals\n";
        let mut rows =
            vec![strings(&["group", "replies", "", "n", "well-formed", "valid", "exact"])];
        for calls in &summary.calls {
            let valid = match calls.unchecked {
                0 => percent(&calls.valid),
                n => format!("{} ({n} unchecked)", percent(&calls.valid)),
            };
            rows.push(vec![
                calls.group.clone(),
                way(calls.way).to_owned(),
                kind(calls).to_owned(),
                calls.n.to_string(),
                percent(&calls.well_formed),
                valid,
                calls.exact.as_ref().map_or_else(|| "-".to_owned(), percent),
            ]);
        }
        text += &table(&rows);
    }
    text += "\nCost\n";
    let mut rows = vec![strings(&["", "experts used / token", "read / token", "tokens/s"])];
    for (name, cost) in [("texts", &summary.text_cost), ("decoding", &summary.decode_cost)] {
        if cost.tokens > 0 {
            rows.push(cost_row(name, cost));
        }
    }
    text += &table(&rows);
    for (name, cost) in [("texts", &summary.text_cost), ("decoding", &summary.decode_cost)] {
        if cost.twin_uses > 0 {
            text += &format!(
                "  {name}: {:.1} twins used / token, with {} less than their experts\n",
                cost.twin_uses as f64 / cost.tokens.max(1) as f64,
                format_bytes(cost.twin_saved_bytes / cost.tokens.max(1)),
            );
        }
    }
    text += &format!(
        "  besides {} of the trunk a token; {} of {} of experts can be in memory\n",
        format_bytes(facts.trunk_bytes_per_token),
        format_bytes(facts.expert_slot_bytes.min(facts.expert_bytes)),
        format_bytes(facts.expert_bytes),
    );
    text
}

/// Several runs side by side.
pub fn several(all: &[Results], summaries: &[Summary]) -> String {
    let mut rows = vec![strings(&[
        "",
        "used / token",
        "read / token",
        "perplexity",
        "by the first's",
        "KL",
        "same best",
        "free exact",
        "held valid",
        "held exact",
    ])];
    for (results, summary) in all.iter().zip(summaries) {
        let paired = eval::compare(&all[0], results);
        let cost =
            if summary.text_cost.tokens > 0 { summary.text_cost } else { summary.decode_cost };
        let texts = summary.all_texts();
        let compared = texts.and_then(|texts| texts.compared.as_ref());
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            name(results),
            format_bytes(cost.used_bytes_per_token() as u64),
            format_bytes(cost.read_bytes_per_token() as u64),
            or_dash(texts.map(|texts| range(&texts.perplexity, 3))),
            or_dash(paired.perplexity_ratio.map(|ratio| change(&ratio))),
            or_dash(compared.map(|it| range(&it.divergence, 4))),
            or_dash(compared.map(|it| percent(&it.same_best))),
            or_dash(pooled(results, Way::Free, |unit| unit.exact)),
            or_dash(pooled(results, Way::Constrained, |unit| unit.valid)),
            or_dash(pooled(results, Way::Constrained, |unit| unit.exact)),
        ]);
    }
    table(&rows)
}

/// A run's name: the model, and what is lossy about it.
pub fn name(results: &Results) -> String {
    match &results.facts.lossy {
        Some(lossy) => {
            let twin = results.facts.twin.as_ref().map(|twin| format!(" of {twin}"));
            format!("{} ({lossy}{})", results.facts.model, twin.unwrap_or_default())
        }
        None => results.facts.model.clone(),
    }
}

fn pooled(
    results: &Results,
    way: Way,
    outcome: impl Fn(&eval::CaseUnit) -> Option<bool>,
) -> Option<String> {
    let units = results.cases.iter().filter(|unit| unit.way == way);
    let outcomes: Vec<bool> = units.filter_map(outcome).collect();
    let good = outcomes.iter().filter(|&&good| good).count();
    let share = 100.0 * good as f64 / outcomes.len().max(1) as f64;
    (!outcomes.is_empty()).then(|| format!("{share:.1}%"))
}

fn text_head(summary: &Summary) -> Vec<String> {
    let mut head = strings(&["source", "documents", "tokens", "perplexity"]);
    if summary.all_texts().is_some_and(|texts| texts.compared.is_some()) {
        head.extend(strings(&["reference's", "change", "KL, nats", "same best token"]));
    }
    head
}

fn text_row(texts: &SourceSummary) -> Vec<String> {
    let mut row = vec![
        texts.source.clone(),
        texts.documents.to_string(),
        texts.tokens.to_string(),
        range(&texts.perplexity, 3),
    ];
    if let Some(compared) = &texts.compared {
        row.extend([
            format!("{:.3}", compared.reference_perplexity),
            change(&compared.perplexity_ratio),
            range(&compared.divergence, 4),
            percent(&compared.same_best),
        ]);
    }
    row
}

fn cost_row(name: &str, cost: &Cost) -> Vec<String> {
    vec![
        name.to_owned(),
        format_bytes(cost.used_bytes_per_token() as u64),
        format_bytes(cost.read_bytes_per_token() as u64),
        format!("{:.1}", cost.tokens_per_second()),
    ]
}

fn kind(calls: &Calls) -> &'static str {
    match calls {
        Calls { json: true, .. } => "JSON",
        Calls { number: true, .. } => "number",
        _ => "calls",
    }
}

fn way(way: Way) -> &'static str {
    match way {
        Way::Free => "free",
        Way::Auto => "held from the mark on",
        Way::Constrained => "constrained",
    }
}

fn range(estimate: &Estimate, digits: usize) -> String {
    let Estimate { value, interval } = estimate;
    format!("{value:.digits$} [{:.digits$}, {:.digits$}]", interval.low, interval.high)
}

fn percent(estimate: &Estimate) -> String {
    let Estimate { value, interval } = estimate;
    let [value, low, high] = [*value, interval.low, interval.high].map(|share| 100.0 * share);
    format!("{value:.1}% [{low:.1}, {high:.1}]")
}

fn change(ratio: &Estimate) -> String {
    let Estimate { value, interval } = ratio;
    let [value, low, high] = [*value, interval.low, interval.high].map(|x| 100.0 * (x - 1.0));
    format!("{value:+.2}% [{low:+.2}, {high:+.2}]")
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// Rows of equally many cells, the first column to the left.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match index {
                0 => format!("  {cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}
