//! The numbers, for programs.

use routing::{
    Accuracy, CacheSize, Count, LookAhead, Method, POLICIES, Uses, coverage, experts_for,
};
use serde_json::{Map, Value, json};

use crate::routing::Report;
use crate::routing::findings::findings;

/// Everything but the trace itself.
pub fn json(report: &Report) -> Value {
    let analysis = &report.analysis;
    let locality = &analysis.locality;
    let layers = report.layers().map(|layer| {
        let counts = &analysis.uses.layers[layer];
        let curve = coverage(counts.iter().copied());
        let overlap = locality.overlaps[layer];
        json!({
            "layer": layer,
            "uses": counts,
            "effective_experts": Uses::effective_experts(counts),
            "experts_for": {
                "half": experts_for(&curve, 0.5),
                "80_percent": experts_for(&curve, 0.8),
                "90_percent": experts_for(&curve, 0.9),
            },
            "overlap": overlap.map(|o| json!({ "consecutive": o.consecutive, "by_lot": o.by_lot })),
        })
    });
    json!({
        "schema": "flash-moe-routing/1",
        "name": report.name,
        "source": report.source,
        "tokens": report.tokens.map(|(tokens, _)| tokens),
        "passes": analysis.n_passes,
        "passes_that_warm_caches": analysis.n_warming,
        "experts": report.trace.experts,
        "experts_per_token": locality.top_k,
        "slot_bytes": report.trace.slot_bytes,
        "findings": findings(report).iter().map(|f| format!("{} {}", f.figure, f.text))
            .collect::<Vec<_>>(),
        "coverage": coverage(analysis.uses.layers.iter().flatten().copied()),
        "layers": layers.collect::<Vec<_>>(),
        "used_within_tokens": {
            "tokens": (0..locality.within.len()).map(|class| 1_u64 << class).collect::<Vec<_>>(),
            "share": locality.within,
            "share_shuffled": locality.within_shuffled,
        },
        "reuse_distance": {
            "below": (0..locality.distances.len()).map(|class| 1_u64 << class).collect::<Vec<_>>(),
            "uses": locality.distances,
            "first_uses": locality.first_uses,
        },
        "caches": analysis.caches.iter().map(|cache| size(report, None, cache)).collect::<Vec<_>>(),
        "memory": report.memory.iter().map(|m| size(report, m.memory, &m.cache)).collect::<Vec<_>>(),
        "look_ahead": report.look_ahead.as_ref().map(|ahead| look_ahead(report, ahead)),
    })
}

fn size(report: &Report, memory: Option<u64>, cache: &CacheSize) -> Value {
    let policies = POLICIES.iter().zip(&cache.hits).map(|(name, hits)| {
        let value = json!({
            "hits": hits.hits,
            "misses": hits.misses,
            "hit_rate": hits.hit_rate(),
            "bytes_per_pass": report.bytes_per_pass(hits.misses),
        });
        ((*name).to_owned(), value)
    });
    json!({
        "memory": memory,
        "slots": cache.slots,
        "expert_bytes": cache.slots as u64 * report.trace.slot_bytes,
        "policies": Value::Object(policies.collect()),
    })
}

fn look_ahead(report: &Report, ahead: &LookAhead) -> Value {
    let strides = ahead.strides.iter().enumerate().map(|(index, stride)| {
        let mut value = accuracy(report, stride);
        value["layers_ahead"] = (index + 1).into();
        value
    });
    let read_ahead = ahead.read_ahead.iter().flat_map(|(slots, by_stride)| {
        by_stride.iter().map(move |read| {
            json!({
                "slots": slots,
                "layers_ahead": read.stride,
                "misses": read.misses,
                "useful": read.useful,
                "in_vain": read.wasted,
            })
        })
    });
    let comparison = ahead.comparison.as_ref().map(|comparison| {
        let methods = Method::ALL.iter().zip(&comparison.methods);
        let methods: Map<String, Value> = methods
            .map(|(method, of_method)| (method.name().to_owned(), accuracy(report, of_method)))
            .collect();
        json!({
            "tokens_learned_from": comparison.tokens.0,
            "tokens_guessed_at": comparison.tokens.1,
            "rank": comparison.rank,
            "methods": methods,
        })
    });
    json!({
        "strides": strides.collect::<Vec<_>>(),
        "read_ahead": read_ahead.collect::<Vec<_>>(),
        "comparison": comparison,
    })
}

fn accuracy(report: &Report, accuracy: &Accuracy) -> Value {
    let n_experts = report.experts_of_layer();
    json!({
        "right": accuracy.total().share(),
        "by_layer": report.layers().map(|layer| accuracy.layers[layer].share()).collect::<Vec<_>>(),
        "by_margin": accuracy.classes.iter().enumerate().map(|(class, count): (usize, &Count)| json!({
            "weight_ratio_from": 2_f64.powf(class as f64 / 2.0),
            "guesses": count.all,
            "right": count.share(),
        })).collect::<Vec<_>>(),
        "found_among_best": (1..=n_experts).map(|n| accuracy.found_among(n)).collect::<Vec<_>>(),
    })
}
