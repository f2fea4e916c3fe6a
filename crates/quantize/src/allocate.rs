//! Which expert gets how many bits: the widths under a budget that lose least.
//!
//! What an expert loses at a width is measured: it is quantised by a quick method, and the squared error of
//! its outputs on the recorded inputs of its own is summed, each as a share of the output's square and as much as the
//! router's weight makes it count: else a few tokens with large outputs decide alone.
//! A sum, not a mean, so an expert that is used often counts often. Every layer is given the same part of the
//! budget, because errors of different layers cannot be compared: weighed by the squares of each layer's outputs,
//! they moved bits to layers that do not need them. In a layer the expert that gains most for a byte is given more
//! bits, as long as its part lasts.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use checkpoint::Affine;
use serde_json::json;

use crate::error::{Error, io_at};
use crate::layout::Stored;
use crate::loader::Loader;
use crate::options::Options;
use crate::output::write_whole;
use crate::plan::scales_of;

/// Bytes that routed experts may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// All of them together.
    Size(u64),
    /// Those that a token uses, by how often experts are used.
    BytesPerToken(u64),
}

/// Widths that an expert may be given.
const CANDIDATES: [u8; 6] = [2, 3, 4, 5, 6, 8];
/// Inputs by which a width is judged.
const JUDGED_ROWS: usize = 192;

/// What is known of an expert.
#[derive(Clone, Debug)]
struct Choice {
    /// What a byte of it counts in the budget.
    cost: f64,
    /// Bytes at each width.
    bytes: [u64; CANDIDATES.len()],
    /// Loss at each width.
    loss: [f64; CANDIDATES.len()],
    chosen: usize,
}

/// The width of every expert of every layer. Kept in `path`, because it is part of the layout of the result.
pub(crate) fn choose_widths(
    loader: &Loader<'_>,
    options: &Options,
    budget: Budget,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Vec<u8>>, Error> {
    let tables = &loader.inventory.experts;
    if path.exists() {
        let text = fs::read_to_string(path).map_err(io_at(path))?;
        let bad = |error: serde_json::Error| Error::Source {
            path: path.to_owned(),
            what: error.to_string(),
        };
        let widths: Vec<Vec<u8>> = serde_json::from_str(&text).map_err(bad)?;
        let are_all = widths.len() == tables.len()
            && widths.iter().zip(tables).all(|(widths, table)| widths.len() == table.len())
            && widths.iter().flatten().all(|width| CANDIDATES.contains(width));
        return are_all.then_some(widths).ok_or_else(|| Error::Source {
            path: path.to_owned(),
            what: "it has no width for each expert".to_owned(),
        });
    }
    let mut layers = Vec::new();
    let total: usize = tables.iter().map(checkpoint::ExpertTable::len).sum();
    let mut done = 0;
    for layer in 0..tables.len() {
        let choices = judge_layer(loader, options, budget, layer, &mut |n| {
            progress((done + n) as u64, total as u64);
        })?;
        done += choices.len();
        layers.push(choices);
    }
    spend(&mut layers, budget)?;
    let widths: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| layer.iter().map(|choice| CANDIDATES[choice.chosen]).collect())
        .collect();
    write_whole(path, json!(widths).to_string().as_bytes())?;
    Ok(widths)
}

/// Tries all widths of the experts of a layer.
fn judge_layer(
    loader: &Loader<'_>,
    options: &Options,
    budget: Budget,
    layer: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Choice>, Error> {
    let table = &loader.inventory.experts[layer];
    let n = table.len();
    if n == 0 {
        return Ok(Vec::new());
    }
    let calibration = loader.calibration.expect("a budget needs calibration");
    let rows = calibration.layer(layer)?;
    let uses = rows.uses(n);
    let per_token = loader.inventory.checkpoint.config().moe.top_k as f64
        / uses.iter().sum::<usize>().max(1) as f64;
    let judge = |expert: usize| -> Result<Choice, Error> {
        let weights = loader.expert(layer, expert)?;
        // The same for every width, and most of the work.
        let importance = weights.importance(&rows.inputs(expert, None));
        let mut own = rows.own_inputs(expert, JUDGED_ROWS, None);
        let location = table.get(expert);
        let scales = scales_of(location.gate.format);
        let mut choice = Choice {
            cost: match budget {
                Budget::Size(_) => 1.0,
                Budget::BytesPerToken(_) => uses[expert] as f64 * per_token,
            },
            bytes: [0; CANDIDATES.len()],
            loss: [0.0; CANDIDATES.len()],
            chosen: 0,
        };
        let outputs = weights.outputs(&own.x);
        own.count_relative(&outputs);
        for (index, &bits) in CANDIDATES.iter().enumerate() {
            let affine = Affine { bits, group: options.recipe.group, scales };
            let codes = weights.search(affine, &importance);
            choice.loss[index] = own.loss(&outputs, &weights.with_codes(&codes).outputs(&own.x));
            let bytes = location.matrices().map(|m| Stored::Affine(affine).bytes(m.rows, m.cols));
            choice.bytes[index] = bytes.iter().sum();
        }
        Ok(choice)
    };
    let next = AtomicUsize::new(0);
    let (sender, receiver) = channel();
    let mut judged: Vec<Option<Choice>> = vec![None; n];
    let mut result = Ok(());
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            let (sender, next, judge) = (sender.clone(), &next, &judge);
            scope.spawn(move || {
                loop {
                    let expert = next.fetch_add(1, Ordering::Relaxed);
                    if expert >= n || sender.send((expert, judge(expert))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (count, (expert, judged_now)) in receiver.into_iter().enumerate() {
            match judged_now {
                Ok(one) => judged[expert] = Some(one),
                Err(error) => result = Err(error),
            }
            progress(count + 1);
        }
    });
    result?;
    Ok(judged.into_iter().flatten().collect())
}

/// Gives bits where they gain most for their bytes, until the next step would not fit.
fn spend(layers: &mut [Vec<Choice>], budget: Budget) -> Result<(), Error> {
    let (asked, of) = match budget {
        Budget::Size(bytes) => (bytes, "of all experts"),
        Budget::BytesPerToken(bytes) => (bytes, "of experts for a token"),
    };
    let last = CANDIDATES.len() - 1;
    let at = |index: usize| -> f64 {
        layers.iter().flatten().map(|choice| choice.cost * choice.bytes[index] as f64).sum()
    };
    let (least, most) = (at(0), at(last));
    if (asked as f64) < least.floor() || asked as f64 > most.ceil() {
        return Err(Error::Budget {
            asked,
            of,
            least: least.ceil() as u64,
            least_bits: CANDIDATES[0],
            most: most as u64,
            most_bits: CANDIDATES[last],
        });
    }
    for layer in layers {
        // Bytes of the layer, as its part of all.
        let at = |index: usize| -> f64 {
            layer.iter().map(|choice| choice.cost * choice.bytes[index] as f64).sum()
        };
        let left = asked as f64 / most * at(last) - at(0);
        spend_in_layer(layer, left);
    }
    Ok(())
}

/// The same with what a layer has left beyond the least.
fn spend_in_layer(choices: &mut [Choice], mut left: f64) {
    loop {
        let mut best: Option<(f64, usize, usize, f64)> = None;
        for (index, choice) in choices.iter().enumerate() {
            let now = choice.chosen;
            for to in now + 1..CANDIDATES.len() {
                let cost = choice.cost * (choice.bytes[to] - choice.bytes[now]) as f64;
                let gain = choice.loss[now] - choice.loss[to];
                let rate = gain / cost.max(1e-9);
                if cost <= left && gain > 0.0 && best.is_none_or(|(other, ..)| rate > other) {
                    best = Some((rate, index, to, cost));
                }
            }
        }
        let Some((_, index, to, cost)) = best else { return };
        choices[index].chosen = to;
        left -= cost;
    }
}

#[cfg(test)]
mod tests;
