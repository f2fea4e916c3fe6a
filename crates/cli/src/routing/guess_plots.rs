//! The plots about guesses: how often they come true, and what they are worth.

use routing::{Accuracy, LookAhead, Method};

use crate::routing::Report;
use crate::routing::chart::{Axis, Chart, Line, Place, Segment, Stroke, bars, lines};
use crate::routing::findings::percent;
use crate::routing::plots::layer_axis;
use crate::svg::ticks;

/// How often the router guesses right, by layer and stride.
pub fn strides(report: &Report, ahead: &LookAhead) -> String {
    let colours = [1, 2, 4];
    let all_lines: Vec<Line> = ahead
        .strides
        .iter()
        .enumerate()
        .map(|(index, accuracy)| Line {
            name: layers_ahead(index + 1),
            colour: colours[index % 3],
            stroke: if index == 0 { Stroke::Bold } else { Stroke::Plain },
            points: report
                .layers()
                .filter_map(|layer| Some((layer as f64, accuracy.layers[layer].share()?)))
                .collect(),
        })
        .collect();
    let places = report.layers().map(|layer| Place {
        x: layer as f64,
        name: layer.to_string(),
        values: ahead
            .strides
            .iter()
            .map(|accuracy| accuracy.layers[layer].share().map_or("-".to_owned(), percent))
            .collect(),
    });
    let columns = (1..=ahead.strides.len()).map(layers_ahead);
    let chart = Chart {
        title: "Guesses by the layer's own router that come true".to_owned(),
        description: "Share of right guesses by layer, one, two and three layers ahead".to_owned(),
        x: layer_axis(report),
        y: Axis::shares("right guesses"),
        columns: std::iter::once("layer".to_owned()).chain(columns).collect(),
        places: places.collect(),
    };
    lines(&chart, &all_lines)
}

/// How often guesses of each margin are right.
pub fn margins(ahead: &LookAhead) -> String {
    let names = ["1", "1.4", "2", "2.8", "4", "5.7", "8", "11"];
    let colours = [1, 2, 4];
    let groups = (0..names.len()).map(|class| {
        let of_stride = |(index, accuracy): (usize, &Accuracy)| {
            let height = accuracy.classes[class].share().unwrap_or(0.0);
            vec![Segment { colour: colours[index % 3], height }]
        };
        ahead.strides.iter().enumerate().map(of_stride).collect()
    });
    let places = names.iter().enumerate().map(|(class, name)| {
        let mut values: Vec<String> = ahead
            .strides
            .iter()
            .map(|accuracy| accuracy.classes[class].share().map_or("-".to_owned(), percent))
            .collect();
        let first = ahead.strides.first().map_or(0.0, |accuracy| {
            accuracy.classes[class].all as f64 / accuracy.total().all.max(1) as f64
        });
        values.push(percent(first));
        Place { x: class as f64, name: (*name).to_owned(), values }
    });
    let columns = std::iter::once("weight ratio from".to_owned());
    let columns = columns.chain((1..=ahead.strides.len()).map(layers_ahead));
    let chart = Chart {
        title: "Right guesses by margin".to_owned(),
        description:
            "Share of right guesses by how far the expert is ahead of the last guessed one"
                .to_owned(),
        x: Axis {
            label: "weight of the guessed expert over that of the last one, from".to_owned(),
            ticks: Vec::new(),
            is_logarithmic: false,
        },
        y: Axis::shares("right guesses"),
        columns: columns.chain(["share of guesses, one ahead".to_owned()]).collect(),
        places: places.collect(),
    };
    let legend: Vec<_> =
        (1..=ahead.strides.len()).map(|n| (layers_ahead(n), colours[(n - 1) % 3])).collect();
    bars(&chart, &groups.collect::<Vec<_>>(), &legend)
}

/// What reading ahead adds to a cache: of all asked for, what is a hit, read ahead, missed, and in vain.
pub fn read_ahead(report: &Report, ahead: &LookAhead) -> String {
    let counted = (report.analysis.n_passes - report.analysis.n_warming).max(1) as f64;
    let mut most = 0.0_f64;
    let mut groups = Vec::new();
    let mut places = Vec::new();
    for (slots, by_stride) in &ahead.read_ahead {
        let mut group = Vec::new();
        let mut values = Vec::new();
        for read in by_stride {
            let per_token = |n: u64| n as f64 / counted;
            let [useful, left, wasted] =
                [read.useful, read.misses - read.useful, read.wasted].map(per_token);
            most = most.max(useful + left + wasted);
            group.push(vec![
                Segment { colour: 3, height: useful },
                Segment { colour: 6, height: left },
                Segment { colour: 5, height: wasted },
            ]);
            values.push(format!("{useful:.2} of use, {left:.2} still missed, {wasted:.2} in vain"));
        }
        groups.push(group);
        places.push(Place { x: 0.0, name: percent(report.share(*slots)), values });
    }
    let chart = Chart {
        title: "Reads of a token, with reading 1, 2 and 3 layers ahead (bars from left to right)"
            .to_owned(),
        description: "Stacked bars of useful, missed and vain reads by size of the cache"
            .to_owned(),
        x: Axis { label: "experts in memory".to_owned(), ticks: Vec::new(), is_logarithmic: false },
        y: Axis::even("experts read for a token", &ticks(most)),
        columns: std::iter::once("in memory".to_owned())
            .chain((1..=ahead.strides.len()).map(layers_ahead))
            .collect(),
        places,
    };
    let legend =
        [("read ahead, of use", 3), ("missed, read when asked for", 6), ("read ahead in vain", 5)];
    bars(&chart, &groups, &legend.map(|(name, colour)| (name.to_owned(), colour)))
}

/// Ways to guess: what they find among how many guesses.
pub fn methods(report: &Report, ahead: &LookAhead) -> Option<String> {
    let comparison = ahead.comparison.as_ref()?;
    let top_k = report.analysis.locality.top_k.max(1);
    let n_experts = report.experts_of_layer();
    let multiples =
        [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0].map(|m| (m * top_k as f64).round() as usize);
    let mut counts: Vec<usize> =
        multiples.into_iter().filter(|&n| (1..=n_experts).contains(&n)).collect();
    counts.dedup();
    let colours = [6, 2, 1, 4, 3];
    let all_lines: Vec<Line> = Method::ALL
        .iter()
        .zip(&comparison.methods)
        .enumerate()
        .map(|(index, (method, accuracy))| Line {
            name: method.name().to_owned(),
            colour: colours[index],
            stroke: match method {
                Method::LookAhead => Stroke::Bold,
                Method::Popular => Stroke::Dashed,
                _ => Stroke::Plain,
            },
            points: counts.iter().map(|&n| (n as f64, accuracy.found_among(n))).collect(),
        })
        .collect();
    let places = counts.iter().map(|&n| Place {
        x: n as f64,
        name: n.to_string(),
        values: comparison.methods.iter().map(|a| percent(a.found_among(n))).collect(),
    });
    let columns = std::iter::once("experts guessed".to_owned());
    let chart = Chart {
        title: "Used experts that are among the guessed ones, one layer ahead".to_owned(),
        description:
            "Share of a token's experts that each way of guessing finds, by number of guesses"
                .to_owned(),
        x: Axis {
            label: format!("experts guessed (a token uses {top_k})"),
            ticks: counts.iter().map(|&n| (n as f64, n.to_string())).collect(),
            is_logarithmic: true,
        },
        y: Axis::shares("share of used experts found"),
        columns: columns.chain(Method::ALL.map(|method| method.name().to_owned())).collect(),
        places: places.collect(),
    };
    Some(lines(&chart, &all_lines))
}

fn layers_ahead(n: usize) -> String {
    if n == 1 { "1 layer ahead".to_owned() } else { format!("{n} layers ahead") }
}
