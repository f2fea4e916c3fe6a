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

fn merged(earlier: Partial, later: Partial) -> Partial {
    let largest = max(earlier.largest, later.largest);
    let keep = shrink(earlier.largest, largest);
    let take = shrink(later.largest, largest);
    return Partial(
        largest,
        fma(later.total, take, earlier.total * keep),
        fma(later.sums, vec4<f32>(take), earlier.sums * keep),
    );
}
