//! How soon an expert is used again, beside what chance would do.
//!
//! Two distances are told. The **gap** is counted in tokens, within a layer. The **reuse distance** is
//! the number of distinct other experts, of all layers, that were used since the last use: a cache that
//! forgets the least recently used hits exactly where it is less than its slots.
//!
//! Popular experts come again soon without any memory in the routing. So gaps are also counted for the
//! same tokens in shuffled order, and overlaps compared with those of two tokens drawn by lot.

use engine::cache::{Trace, TracedRequest};

/// Powers of two that gaps and distances are sorted by.
const CLASSES: usize = 32;

/// How soon experts are used again.
#[derive(Clone, Debug, PartialEq)]
pub struct Locality {
    /// Experts of a token in a layer.
    pub top_k: usize,
    /// Share of uses whose expert was used by one of the last 1, 2, 4, 8, .. tokens.
    pub within: Vec<f64>,
    /// The same for the same tokens in shuffled order.
    pub within_shuffled: Vec<f64>,
    /// Number of uses by reuse distance: class `c` has distances from `2^(c-1)` to below `2^c`, class 0
    /// has distance 0.
    pub distances: Vec<u64>,
    /// Uses of experts that were not used before.
    pub first_uses: u64,
    /// Of each layer how much of a token's experts the token before used, and how much two tokens drawn
    /// by lot share; `None` without two tokens in a row.
    pub overlaps: Vec<Option<Overlap>>,
}

/// What two tokens have in common in a layer, as a share of a token's experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// A token and the one before it.
    pub consecutive: f64,
    /// Two tokens drawn by lot.
    pub by_lot: f64,
}

impl Locality {
    /// Measures a trace. Prompts read in one pass count as time that goes by, not as tokens.
    pub fn measure(trace: &Trace) -> Self {
        let top_k = top_k(trace);
        let mut layers: Vec<Vec<Step<'_>>> = vec![Vec::new(); trace.experts.len()];
        for request in &trace.requests {
            let uses: u64 = request.experts.iter().map(|&(_, uses)| u64::from(uses)).sum();
            let rows = uses / top_k.max(1) as u64;
            layers[request.layer].push(Step { request, rows });
        }
        let mut shuffled = layers.clone();
        shuffled.iter_mut().for_each(|steps| shuffle(steps));
        let (distances, first_uses) = reuse_distances(trace);
        let counts = trace.experts.iter().copied();
        let overlaps = layers.iter().zip(counts);
        Self {
            top_k,
            within: within(&layers, &trace.experts),
            within_shuffled: within(&shuffled, &trace.experts),
            distances,
            first_uses,
            overlaps: overlaps.map(|(steps, count)| overlap(steps, count, top_k)).collect(),
        }
    }
}

/// Experts of a token: what the uses of all requests are multiples of. 0 for an empty trace.
pub fn top_k(trace: &Trace) -> usize {
    let sums = trace.requests.iter().map(|request| {
        let uses = request.experts.iter().map(|&(_, uses)| u64::from(uses));
        uses.sum::<u64>()
    });
    sums.fold(0, greatest_divisor) as usize
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

/// A request of a layer, and for how many tokens it is.
#[derive(Clone, Copy)]
struct Step<'a> {
    request: &'a TracedRequest,
    rows: u64,
}

/// The share of the uses by single tokens whose expert was used not more than 1, 2, 4, .. tokens before.
fn within(layers: &[Vec<Step<'_>>], experts: &[u32]) -> Vec<f64> {
    let mut counts = [0_u64; CLASSES];
    let mut total = 0;
    for (steps, &count) in layers.iter().zip(experts) {
        let mut last_use = vec![None; count as usize];
        let mut now = 0;
        for &Step { request, rows } in steps {
            now += rows;
            for &(expert, _) in &request.experts {
                let last = last_use[expert as usize].replace(now);
                if rows != 1 {
                    continue;
                }
                total += 1;
                if let Some(last) = last {
                    counts[class_of_gap(now - last)] += 1;
                }
            }
        }
    }
    let n_classes = counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
    let mut sum = 0;
    let shares = counts[..n_classes].iter().map(|count| {
        sum += count;
        sum as f64 / total as f64
    });
    shares.collect()
}

/// The class of gaps of at most `2^class` tokens.
fn class_of_gap(gap: u64) -> usize {
    (gap.next_power_of_two().trailing_zeros() as usize).min(CLASSES - 1)
}

fn overlap(steps: &[Step<'_>], n_experts: u32, top_k: usize) -> Option<Overlap> {
    let mut counts = vec![0_u64; n_experts as usize];
    let mut used_at = vec![usize::MAX; n_experts as usize];
    let (mut n_pairs, mut n_shared, mut n_tokens) = (0_u64, 0_u64, 0_u64);
    for (index, step) in steps.iter().enumerate() {
        if step.rows != 1 {
            continue;
        }
        n_tokens += 1;
        n_pairs += u64::from(index > 0 && steps[index - 1].rows == 1);
        for &(expert, _) in &step.request.experts {
            let last = std::mem::replace(&mut used_at[expert as usize], index);
            n_shared += u64::from(index > 0 && last == index - 1);
            counts[expert as usize] += 1;
        }
    }
    if n_pairs == 0 {
        return None;
    }
    let shared_by_lot: f64 = counts.iter().map(|&c| c as f64 * (c as f64 - 1.0)).sum();
    let pairs_by_lot = n_tokens as f64 * (n_tokens as f64 - 1.0);
    Some(Overlap {
        consecutive: n_shared as f64 / (n_pairs * top_k as u64) as f64,
        by_lot: shared_by_lot / (pairs_by_lot * top_k as f64),
    })
}

/// Number of uses by class of reuse distance, and of first uses.
fn reuse_distances(trace: &Trace) -> (Vec<u64>, u64) {
    let n_uses: usize = trace.requests.iter().map(|request| request.experts.len()).sum();
    // A mark at each expert's last use: what lies behind an expert's own mark was used since.
    let mut marks = Marks::new(n_uses);
    let mut last_use: Vec<Vec<Option<usize>>> =
        trace.experts.iter().map(|&count| vec![None; count as usize]).collect();
    let (mut classes, mut first_uses) = (vec![0; CLASSES], 0);
    let uses = trace.requests.iter().flat_map(|request| {
        request.experts.iter().map(move |&(expert, _)| (request.layer, expert))
    });
    let mut n_marks = 0;
    for (now, (layer, expert)) in uses.enumerate() {
        match last_use[layer][expert as usize].replace(now) {
            Some(last) => {
                let distance = n_marks - marks.up_to(last);
                classes[class_of_distance(distance)] += 1;
                marks.add(last, -1);
            }
            None => {
                first_uses += 1;
                n_marks += 1;
            }
        }
        marks.add(now, 1);
    }
    let n_classes = classes.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
    classes.truncate(n_classes);
    (classes, first_uses)
}

fn class_of_distance(distance: i64) -> usize {
    ((64 - distance.leading_zeros()) as usize).min(CLASSES - 1)
}

/// Numbers in a row whose sums up to a place are quick to have: a Fenwick tree.
struct Marks(Vec<i64>);

impl Marks {
    fn new(len: usize) -> Self {
        Self(vec![0; len + 1])
    }

    fn add(&mut self, index: usize, change: i64) {
        let mut node = index + 1;
        while node < self.0.len() {
            self.0[node] += change;
            node += node & node.wrapping_neg();
        }
    }

    /// The sum of all up to `index`, itself included.
    fn up_to(&self, index: usize) -> i64 {
        let (mut node, mut sum) = (index + 1, 0);
        while node > 0 {
            sum += self.0[node];
            node &= node - 1;
        }
        sum
    }
}

/// Shuffles by random numbers that are the same every time.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for index in (1..items.len()).rev() {
        let random = linear::next_random(&mut state);
        items.swap(index, (random % (index as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of one layer of four experts, two a token.
    fn trace(tokens: &[[u32; 2]]) -> Trace {
        let request = |experts: &[u32; 2]| TracedRequest {
            layer: 0,
            experts: experts.map(|expert| (expert, 1)).to_vec(),
        };
        let requests = tokens.iter().map(request).collect();
        Trace { slot_bytes: 1, experts: vec![4], requests }
    }

    #[test]
    fn a_small_trace_by_hand() {
        // Gaps: token 2 has 1 after 1; token 3 has 0 after 2 and 3 after none; token 4 has 2 after 2 and
        // 3 after 1.
        let trace = trace(&[[0, 1], [1, 2], [0, 3], [2, 3]]);
        let locality = Locality::measure(&trace);
        assert_eq!(locality.top_k, 2);
        assert_eq!(locality.within, [2.0 / 8.0, 4.0 / 8.0]);
        assert_eq!(locality.first_uses, 4);
        // Uses: 0 1 1 2 0 3 2 3. Distances: the second 1 has 0, the second 0 has 2 (1, 2), the second 2
        // has 2 (0, 3), the second 3 has 1 (2).
        assert_eq!(locality.distances, [1, 1, 2]);
        let overlap = locality.overlaps[0].expect("there are pairs");
        assert_eq!(overlap.consecutive, 2.0 / 6.0);
        // Each expert is used by two of four tokens: 4 * (2 * 1) / (4 * 3) / 2.
        assert!((overlap.by_lot - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_reuse_distance_below_the_slots_is_a_hit_of_lru() {
        let mut state = 3;
        let requests = (0..3000).map(|_| {
            let random = linear::next_random(&mut state);
            // Low numbers are drawn more often.
            let expert = (random % 40).min((random >> 32) % 40) as u32;
            TracedRequest { layer: 0, experts: vec![(expert, 1)] }
        });
        let trace = Trace { slot_bytes: 1, experts: vec![40], requests: requests.collect() };
        let locality = Locality::measure(&trace);
        for class in 0..5 {
            let near: u64 = locality.distances[..=class].iter().sum();
            let mut lru = engine::cache::PolicyKind::Lru.build(40);
            let hits = engine::cache::simulate(&trace, lru.as_mut(), 1 << class, 0);
            assert_eq!(near, hits.hits, "{} slots", 1 << class);
        }
    }

    #[test]
    fn prompts_pass_time_and_are_no_tokens() {
        let mut trace = trace(&[[0, 1], [0, 1]]);
        let prompt = TracedRequest { layer: 0, experts: vec![(0, 3), (1, 2), (2, 1)] };
        trace.requests.insert(1, prompt);
        let locality = Locality::measure(&trace);
        assert_eq!((locality.top_k, locality.overlaps[0]), (2, None));
        assert_eq!(locality.within, [0.5], "the last token is one after the prompt");
    }

    #[test]
    fn without_requests_there_is_nothing() {
        let locality = Locality::measure(&trace(&[]));
        assert_eq!((locality.top_k, locality.within.len()), (0, 0));
    }
}
