//! The numbers that a person reads, from units.

use serde::Serialize;

use crate::cases::{CaseUnit, Way};
use crate::cost::Cost;
use crate::results::Results;
use crate::score::{Compared, TextUnit};
use crate::stats::{Interval, paired_difference, proportion, ratio};

/// A number and its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Where the true one lies with 95 % of confidence.
    pub interval: Interval,
}

/// How texts of a source were predicted, or all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceSummary {
    /// The source.
    pub source: String,
    /// Documents.
    pub documents: usize,
    /// Counted tokens.
    pub tokens: u64,
    /// The exponential of the mean loss of a counted token.
    pub perplexity: Estimate,
    /// Beside a reference.
    pub compared: Option<ComparedSummary>,
}

/// How predictions differ from a reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedSummary {
    /// The reference's perplexity.
    pub reference_perplexity: f64,
    /// The perplexity by the reference's, on the same tokens.
    pub perplexity_ratio: Estimate,
    /// The mean divergence from the reference, in nats a token.
    pub divergence: Estimate,
    /// How often the most probable token is the same.
    pub same_best: Estimate,
}

/// What became of the requests of a group in one way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calls {
    /// The group.
    pub group: String,
    /// How replies were held.
    pub way: Way,
    /// Whether JSON was wanted, not calls.
    pub json: bool,
    /// Whether a number was wanted, not calls.
    pub number: bool,
    /// Requests.
    pub n: u64,
    /// Whole calls, JSON or a number.
    pub well_formed: Estimate,
    /// That match their schemas, of those whose schemas could be checked.
    pub valid: Estimate,
    /// Requests whose schemas have keywords that are not checked.
    pub unchecked: u64,
    /// The calls or the JSON that should come, where the file says which.
    pub exact: Option<Estimate>,
}

/// All numbers of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// In the order of the texts; with more than one, the last is all of them.
    pub texts: Vec<SourceSummary>,
    /// In the order of the requests.
    pub calls: Vec<Calls>,
    /// Of the texts' passes.
    pub text_cost: Cost,
    /// Of decoding the replies, without their prompts.
    pub decode_cost: Cost,
}

impl Summary {
    /// Of a run.
    pub fn of(results: &Results) -> Self {
        let mut sources: Vec<(&str, Vec<&TextUnit>)> = Vec::new();
        for unit in &results.documents {
            match sources.iter_mut().find(|(source, _)| *source == unit.source) {
                Some((_, units)) => units.push(unit),
                None => sources.push((&unit.source, vec![unit])),
            }
        }
        let strata: Vec<Vec<&TextUnit>> = sources.iter().map(|(_, units)| units.clone()).collect();
        let mut texts: Vec<SourceSummary> = sources
            .iter()
            .map(|(source, units)| source_summary(source, std::slice::from_ref(units)))
            .collect();
        if texts.len() > 1 {
            texts.push(source_summary("mean", &strata));
        }
        let (mut text_cost, mut decode_cost) = (Cost::default(), Cost::default());
        results.documents.iter().for_each(|unit| text_cost += &unit.cost);
        results.cases.iter().for_each(|unit| decode_cost += &unit.cost);
        Self { texts, calls: calls(&results.cases), text_cost, decode_cost }
    }

    /// Over all texts, if there are some.
    pub fn all_texts(&self) -> Option<&SourceSummary> {
        self.texts.last()
    }
}

fn source_summary(source: &str, strata: &[Vec<&TextUnit>]) -> SourceSummary {
    let units = || strata.iter().flatten();
    let tokens: u64 = units().map(|unit| unit.counted).sum();
    let mean = |part: &dyn Fn(&TextUnit) -> f64| {
        let value = units().map(|unit| part(unit)).sum::<f64>() / tokens.max(1) as f64;
        let strata: Vec<Vec<(f64, f64)>> = strata
            .iter()
            .map(|units| units.iter().map(|unit| (part(unit), unit.counted as f64)).collect())
            .collect();
        Estimate { value, interval: ratio(&strata) }
    };
    let compared = units().all(|unit| unit.compared.is_some()).then(|| {
        let of = |unit: &TextUnit| unit.compared.unwrap_or_default();
        let mean = |part: &dyn Fn(&TextUnit, Compared) -> f64| mean(&|unit| part(unit, of(unit)));
        ComparedSummary {
            reference_perplexity: mean(&|_, compared| compared.loss).value.exp(),
            perplexity_ratio: exponential(mean(&|unit, compared| unit.loss - compared.loss)),
            divergence: mean(&|_, compared| compared.divergence),
            same_best: mean(&|_, compared| compared.same_best as f64),
        }
    });
    SourceSummary {
        source: source.to_owned(),
        documents: units().count(),
        tokens,
        perplexity: exponential(mean(&|unit| unit.loss)),
        compared,
    }
}

fn exponential(estimate: Estimate) -> Estimate {
    let Estimate { value, interval: Interval { low, high } } = estimate;
    Estimate { value: value.exp(), interval: Interval { low: low.exp(), high: high.exp() } }
}

/// By group and way, and over all groups where there are several.
fn calls(units: &[CaseUnit]) -> Vec<Calls> {
    let key = |unit: &CaseUnit| (unit.way, unit.json, unit.number);
    let mut keys = Vec::new();
    for unit in units {
        let key = (unit.group.as_str(), key(unit));
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|&(_, (way, ..))| way as u8);
    let of = |&(group, kind): &(&str, (Way, bool, bool))| {
        let units: Vec<&CaseUnit> =
            units.iter().filter(|unit| unit.group == group && key(unit) == kind).collect();
        let (way, json, number) = kind;
        let share = |successes: usize, trials: usize| Estimate {
            value: successes as f64 / trials.max(1) as f64,
            interval: proportion(successes as u64, trials as u64),
        };
        let count = |holds: &dyn Fn(&CaseUnit) -> bool| units.iter().filter(|it| holds(it)).count();
        let checked = count(&|unit| unit.valid.is_some());
        let known = count(&|unit| unit.exact.is_some());
        Calls {
            group: group.to_owned(),
            way,
            json,
            number,
            n: units.len() as u64,
            well_formed: share(count(&|unit| unit.well_formed), units.len()),
            valid: share(count(&|unit| unit.valid == Some(true)), checked),
            unchecked: (units.len() - checked) as u64,
            exact: (known > 0).then(|| share(count(&|unit| unit.exact == Some(true)), known)),
        }
    };
    keys.iter().map(of).collect()
}

/// A run beside another over the same texts or requests, unit by unit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Paired {
    /// The second run's perplexity by the first's.
    pub perplexity_ratio: Option<Estimate>,
    /// By how much more often the second's replies are exact, in each way.
    pub exact: Vec<(Way, Estimate)>,
}

/// Compares two runs where they did the same.
pub fn compare(base: &Results, other: &Results) -> Paired {
    let mut paired = Paired::default();
    let same_texts = base.facts.text_fingerprint == other.facts.text_fingerprint;
    if same_texts && !base.documents.is_empty() && base.documents.len() == other.documents.len() {
        let mut strata: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
        for (a, b) in base.documents.iter().zip(&other.documents) {
            let pair = (b.loss - a.loss, a.counted as f64);
            match strata.iter_mut().find(|(source, _)| *source == a.source) {
                Some((_, pairs)) => pairs.push(pair),
                None => strata.push((&a.source, vec![pair])),
            }
        }
        let strata: Vec<_> = strata.into_iter().map(|(_, pairs)| pairs).collect();
        let (over, under) = strata
            .iter()
            .flatten()
            .fold((0.0, 0.0), |(over, under), pair| (over + pair.0, under + pair.1));
        let estimate = Estimate { value: over / under, interval: ratio(&strata) };
        paired.perplexity_ratio = Some(exponential(estimate));
    }
    if base.facts.request_fingerprint == other.facts.request_fingerprint {
        for way in [Way::Free, Way::Auto, Way::Constrained] {
            let exact = |results: &Results| -> Vec<f64> {
                let units = results.cases.iter().filter(|unit| unit.way == way);
                units
                    .filter_map(|unit| unit.exact)
                    .map(|exact| f64::from(u8::from(exact)))
                    .collect()
            };
            let (a, b) = (exact(base), exact(other));
            if !a.is_empty() && a.len() == b.len() {
                let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
                let (value, interval) = paired_difference(&differences);
                paired.exact.push((way, Estimate { value, interval }));
            }
        }
    }
    paired
}
