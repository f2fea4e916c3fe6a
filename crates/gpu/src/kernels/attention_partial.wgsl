// Results of attention over some positions, and how those of later positions are taken in. All kernels of
// attention merge by this text, in order of positions: the same bits come out wherever it is done.

// Less than every score.
const NOTHING: f32 = -1e30;

struct Partial {
    // The largest score.
    largest: f32,
    // The sum of e^(score - largest).
    total: f32,
    // Four dimensions of the values weighted by the same.
    sums: vec4<f32>,
}

fn shrink(largest: f32, new_largest: f32) -> f32 {
    // Exactly one where nothing changes, however exp rounds.
    return select(exp(largest - new_largest), 1.0, largest == new_largest);
}

// `zero` is zero, which a compiler does not know: without it, it may choose which of two products is rounded.
fn merged(earlier: Partial, later: Partial, zero: f32) -> Partial {
    let largest = max(earlier.largest, later.largest);
    let keep = shrink(earlier.largest, largest);
    let take = shrink(later.largest, largest);
    return Partial(
        largest,
        fma(later.total, take, fma(earlier.total, keep, zero)),
        fma(later.sums, vec4<f32>(take), fma(earlier.sums, vec4<f32>(keep), vec4<f32>(zero))),
    );
}
