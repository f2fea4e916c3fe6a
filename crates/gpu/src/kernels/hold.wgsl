// Holds a quad of x, the one of this lane in its team's unit. All lanes of the workgroup must call it.
fn hold(entry: Entry, lane: u32, unit: u32, value: vec4<f32>) {
    let at = unit * UNIT_QUADS;
    if (HOLDS_BYTES == 1u) {
        let bytes = in_eight_bits(entry, lane, value);
        held[at + lane / 4u][lane % 4u] = bytes.word;
        if (lane == 0u) {
            held[at + 2u] = bitcast<vec4<u32>>(vec4<f32>(bytes.scale, bytes.sum, 0.0, 0.0));
        }
        return;
    }
    held[at + lane] = bitcast<vec4<u32>>(value);
    if (ARE_SUMMED) {
        var sum = total(value);
        sum += team_exchange(entry, sum, 1u);
        sum += team_exchange(entry, sum, 2u);
        let upper = team_exchange(entry, sum, 4u);
        if (lane == 0u) {
            held[at + 8u] = bitcast<vec4<u32>>(vec4<f32>(sum, upper, 0.0, 0.0));
        }
    }
}
