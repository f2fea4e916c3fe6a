//! The plots of the page about uses and caches: which numbers go where.

use routing::{DEFAULT_POLICY, POLICIES, Uses, by_popularity, coverage, experts_for};

use crate::routing::chart::{Axis, Chart, Line, Place, Stroke, heat_map, histograms, lines};
use crate::routing::findings::percent;
use crate::routing::{Report, sizes};
use crate::svg::{number, ticks};

/// Columns of the heat map, at most.
const MOST_CELLS: usize = 64;

/// Layers by popularity of their experts, each cell some experts.
pub fn uses(report: &Report) -> String {
    let mut shades = Vec::new();
    let mut places = Vec::new();
    for layer in report.layers() {
        let counts = &report.analysis.uses.layers[layer];
        let sorted = by_popularity(counts.iter().copied());
        let total = sorted.iter().sum::<u64>().max(1) as f64;
        let n_cells = sorted.len().min(MOST_CELLS);
        let cells = (0..n_cells).map(|cell| {
            let part = cell * sorted.len() / n_cells..(cell + 1) * sorted.len() / n_cells;
            let even = part.len() as f64 / sorted.len() as f64;
            let share = sorted[part].iter().sum::<u64>() as f64 / total;
            // 1/8 of an even share is white, 8 times an even share is full.
            ((share / even).max(1e-9).log2() / 6.0 + 0.5).clamp(0.02, 1.0)
        });
        shades.push(cells.collect());
        let curve = coverage(counts.iter().copied());
        let share_of = |part: usize| curve.get((sorted.len() / part).max(1) - 1).copied();
        places.push(Place {
            x: layer as f64,
            name: layer.to_string(),
            values: vec![
                format!("{:.0} of {}", Uses::effective_experts(counts), sorted.len()),
                percent(share_of(10).unwrap_or(0.0)),
                percent(sorted.first().map_or(0.0, |&most| most as f64 / total)),
                sorted.iter().filter(|&&count| count == 0).count().to_string(),
            ],
        });
    }
    let chart = Chart {
        title: "Uses of each layer's experts, hottest first".to_owned(),
        description: "A row for each layer, its experts from the most used to the least used; the \
                      fuller the colour, the more they are used"
            .to_owned(),
        x: Axis::shares("experts of the layer, from the most used on"),
        y: Axis { label: String::new(), ticks: Vec::new(), is_logarithmic: false },
        columns: [
            "layer",
            "used as if alike",
            "hottest tenth covers",
            "hottest expert has",
            "never used",
        ]
        .map(str::to_owned)
        .to_vec(),
        places,
    };
    heat_map(&chart, &shades)
}

/// The histogram of one layer at a time.
pub fn histogram(report: &Report) -> String {
    let n_experts = report.experts_of_layer();
    let even = 1.0 / n_experts.max(1) as f64;
    let mut most = 0.0_f64;
    let layers: Vec<(String, Vec<f64>)> = report
        .layers()
        .map(|layer| {
            let sorted = by_popularity(report.analysis.uses.layers[layer].iter().copied());
            let total = sorted.iter().sum::<u64>().max(1) as f64;
            let heights: Vec<f64> =
                sorted.iter().map(|&count| count as f64 / total / even).collect();
            most = heights.iter().copied().fold(most, f64::max);
            let first = heights.first().copied().unwrap_or(0.0);
            (
                format!("layer {layer}: the hottest expert has {first:.1} times an even share"),
                heights,
            )
        })
        .collect();
    let chart = Chart {
        title: "One layer's experts in order of use".to_owned(),
        description: "A bar for each expert of a layer, from the most used to the least".to_owned(),
        x: Axis::even("rank of the expert", &ticks_to(n_experts as f64)),
        y: Axis::even("uses, as a multiple of an even share", &ticks(most)),
        columns: Vec::new(),
        places: Vec::new(),
    };
    histograms(&chart, &layers)
}

/// How many of the hottest experts cover how much.
pub fn coverage_curves(report: &Report) -> String {
    let mut all_lines: Vec<Line> = Vec::new();
    let points = |curve: &[f64]| {
        let n = curve.len();
        let every = (n / 256).max(1);
        let kept = (0..n).filter(|index| index % every == 0 || index + 1 == n);
        let points = kept.map(|index| ((index + 1) as f64 / n as f64, curve[index]));
        std::iter::once((0.0, 0.0)).chain(points).collect::<Vec<_>>()
    };
    for layer in report.layers() {
        let curve = coverage(report.analysis.uses.layers[layer].iter().copied());
        let name = String::new();
        all_lines.push(Line { name, colour: 6, stroke: Stroke::Faint, points: points(&curve) });
    }
    let all = coverage(report.analysis.uses.layers.iter().flatten().copied());
    let at = |share: f64| {
        let n = ((share * all.len() as f64).round() as usize).min(all.len());
        if n == 0 { 0.0 } else { all[n - 1] }
    };
    let named = [0.01, 0.02].into_iter().chain((1..=20).map(|step| f64::from(step) / 20.0));
    let shares: Vec<f64> = named.collect();
    // The line is finer than the places that tell their numbers.
    let mut whole = points(&all);
    whole.extend(shares.iter().map(|&share| (share, at(share))));
    whole.sort_by(|a, b| a.0.total_cmp(&b.0));
    let even =
        std::iter::once(0.0).chain(shares.iter().copied()).map(|share| (share, share)).collect();
    all_lines.push(Line {
        name: "if all were used alike".to_owned(),
        colour: 6,
        stroke: Stroke::Dashed,
        points: even,
    });
    all_lines.push(Line {
        name: "all layers together".to_owned(),
        colour: 1,
        stroke: Stroke::Bold,
        points: whole,
    });
    let n = report.n_experts() as f64;
    let places = shares.iter().map(|&share| Place {
        x: share,
        name: percent(share),
        values: vec![
            format!("{:.0}", share * n),
            sizes::typed((share * n) as u64 * report.trace.slot_bytes),
            percent(at(share)),
        ],
    });
    let chart = Chart {
        title: "Share of uses that the hottest experts cover".to_owned(),
        description:
            "Share of all uses against the share of the hottest experts, a thin line for each \
                      layer and a bold one for all"
                .to_owned(),
        x: Axis::shares("hottest experts"),
        y: Axis::shares("share of uses"),
        columns: ["hottest", "experts", "their size", "cover"].map(str::to_owned).to_vec(),
        places: places.collect(),
    };
    lines(&chart, &all_lines)
}

/// How soon experts come again, beside the same tokens shuffled.
pub fn gaps(report: &Report) -> String {
    let locality = &report.analysis.locality;
    let n = locality.within.len().max(locality.within_shuffled.len());
    let gap = |class: usize| (1_u64 << class) as f64;
    let points = |shares: &[f64]| {
        let all = shares.iter().enumerate();
        all.map(|(class, &share)| (gap(class), share)).collect::<Vec<_>>()
    };
    let at = |shares: &[f64], class: usize| {
        percent(shares.get(class).or(shares.last()).copied().unwrap_or(0.0))
    };
    let x = Axis {
        label: "tokens since the expert's last use".to_owned(),
        ticks: (0..n)
            .map(|class| {
                (
                    gap(class),
                    if n < 9 || class % 2 == 0 { number(gap(class)) } else { String::new() },
                )
            })
            .collect(),
        is_logarithmic: true,
    };
    let places = (0..n).map(|class| Place {
        x: gap(class),
        name: number(gap(class)),
        values: vec![at(&locality.within, class), at(&locality.within_shuffled, class)],
    });
    let chart = Chart {
        title: "Uses whose expert was used by one of the last tokens".to_owned(),
        description: "Share of uses against the tokens since the last use of the same expert"
            .to_owned(),
        x,
        y: Axis::shares("share of uses"),
        columns: ["within tokens", "as they came", "shuffled"].map(str::to_owned).to_vec(),
        places: places.collect(),
    };
    let as_they_came = Line {
        name: "tokens as they came".to_owned(),
        colour: 1,
        stroke: Stroke::Bold,
        points: points(&locality.within),
    };
    let shuffled = Line {
        name: "same tokens, shuffled".to_owned(),
        colour: 6,
        stroke: Stroke::Dashed,
        points: points(&locality.within_shuffled),
    };
    lines(&chart, &[shuffled, as_they_came])
}

/// What a token shares with the one before, by layer.
pub fn overlaps(report: &Report) -> Option<String> {
    let overlaps = &report.analysis.locality.overlaps;
    let layers: Vec<_> =
        report.layers().filter_map(|layer| overlaps[layer].map(|o| (layer, o))).collect();
    let most = layers.iter().map(|(_, o)| o.consecutive.max(o.by_lot)).fold(0.0, f64::max);
    if layers.is_empty() {
        return None;
    }
    let series = |part: fn(&routing::Overlap) -> f64| {
        layers.iter().map(|(layer, o)| (*layer as f64, part(o))).collect::<Vec<_>>()
    };
    let places = layers.iter().map(|(layer, o)| Place {
        x: *layer as f64,
        name: layer.to_string(),
        values: vec![percent(o.consecutive), percent(o.by_lot)],
    });
    let chart = Chart {
        title: "Experts that a token shares with the one before".to_owned(),
        description: "Shared experts of neighbouring tokens and of tokens drawn by lot, by layer"
            .to_owned(),
        x: layer_axis(report),
        y: share_axis("share of a token's experts", most),
        columns: ["layer", "token before", "by lot"].map(str::to_owned).to_vec(),
        places: places.collect(),
    };
    let lot = Line {
        name: "two tokens drawn by lot".to_owned(),
        colour: 6,
        stroke: Stroke::Dashed,
        points: series(|o| o.by_lot),
    };
    let next = Line {
        name: "a token and the one before".to_owned(),
        colour: 1,
        stroke: Stroke::Bold,
        points: series(|o| o.consecutive),
    };
    Some(lines(&chart, &[lot, next]))
}

/// Hit rate by size and policy.
pub fn caches(report: &Report) -> String {
    let colours = [2, 3, 4, 1, 6];
    let all_lines: Vec<Line> = POLICIES
        .iter()
        .enumerate()
        .map(|(index, name)| Line {
            name: policy_name(name),
            colour: colours[index],
            stroke: match index {
                DEFAULT_POLICY => Stroke::Bold,
                4 => Stroke::Dashed,
                _ => Stroke::Plain,
            },
            points: report
                .analysis
                .caches
                .iter()
                .map(|size| (report.share(size.slots), size.hits[index].hit_rate().unwrap_or(0.0)))
                .collect(),
        })
        .collect();
    let places = report.analysis.caches.iter().map(|size| {
        let mut values = vec![sizes::typed(size.slots as u64 * report.trace.slot_bytes)];
        values.extend(size.hits.iter().map(|h| h.hit_rate().map_or("-".to_owned(), percent)));
        Place { x: report.share(size.slots), name: percent(report.share(size.slots)), values }
    });
    let columns = ["in memory", "size"].into_iter().map(str::to_owned);
    let chart = Chart {
        title: "Experts found in memory, by size and policy".to_owned(),
        description: "Hit rate against the share of experts in memory, a line for each policy"
            .to_owned(),
        x: Axis::shares("experts in memory"),
        y: Axis::shares("hit rate"),
        columns: columns.chain(POLICIES.map(policy_name)).collect(),
        places: places.collect(),
    };
    lines(&chart, &all_lines)
}

fn policy_name(name: &str) -> String {
    match name {
        "frecency" => "frecency (ours)".to_owned(),
        "belady" => "knowing the future".to_owned(),
        "lru" | "lfu" => name.to_uppercase(),
        name => name.to_owned(),
    }
}

/// How many experts cover half and nine tenths, over all layers.
pub fn experts_for_shares(report: &Report) -> [usize; 2] {
    let all = coverage(report.analysis.uses.layers.iter().flatten().copied());
    [0.5, 0.9].map(|share| experts_for(&all, share))
}

/// An axis of all layers, from the first to the last.
pub fn layer_axis(report: &Report) -> Axis {
    let layers: Vec<usize> = report.layers().collect();
    let every = layers.len().div_ceil(10).max(1);
    let last = layers.len().saturating_sub(1);
    let ticks = layers.iter().enumerate().map(|(index, &layer)| {
        let is_named = index % every == 0 && index + every <= last || index == last || index == 0;
        (layer as f64, if is_named { layer.to_string() } else { String::new() })
    });
    Axis { label: "layer".to_owned(), ticks: ticks.collect(), is_logarithmic: false }
}

/// Shares up to a little above the largest.
fn share_axis(label: &str, most: f64) -> Axis {
    let ticks = ticks((100.0 * most).clamp(1.0, 100.0)).into_iter();
    let ticks = ticks.map(|tick| (tick / 100.0, format!("{} %", number(tick))));
    Axis { label: label.to_owned(), ticks: ticks.collect(), is_logarithmic: false }
}

/// Ticks that end where the values end.
fn ticks_to(most: f64) -> Vec<f64> {
    let mut inner: Vec<f64> = ticks(most);
    inner.retain(|&tick| tick < 0.9 * most);
    inner.push(most);
    inner
}
