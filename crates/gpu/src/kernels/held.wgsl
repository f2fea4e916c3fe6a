// Rows of x in memory of the workgroup.

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

// Quads of a unit of x, scaled by the places of codes: a ninth holds the unscaled sums of both halves, and keeps the
// lanes' reads out of each other's way.
const UNIT_QUADS: u32 = 9u;

// Holds a quad of x, the one of this lane in its team's unit. All lanes of the workgroup must call it.
fn hold(entry: Entry, lane: u32, unit: u32, value: vec4<f32>) {
    held[unit * UNIT_QUADS + lane] = value * HELD_PLACES;
    if (ARE_SUMMED) {
        var sum = total(value);
        sum += team_exchange(entry, sum, 1u);
        sum += team_exchange(entry, sum, 2u);
        let upper = team_exchange(entry, sum, 4u);
        if (lane == 0u) {
            held[unit * UNIT_QUADS + 8u] = vec4<f32>(sum, upper, 0.0, 0.0);
        }
    }
}
