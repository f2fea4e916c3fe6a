// Holds a quad of x, the one of this lane in its team's unit. All lanes of the workgroup must call it.
fn hold(entry: Entry, lane: u32, unit: u32, value: vec4<f32>) {
    let at = unit * UNIT_QUADS;
    if (HOLDS_BYTES == 1u) {
        let bytes = in_eight_bits(entry, lane, value);
        // A lane stores for four: one that stores a part of a vector may touch the others.
        let second = team_exchange_word(entry, bytes.word, 1u);
        let third = team_exchange_word(entry, bytes.word, 2u);
        let fourth = team_exchange_word(entry, bytes.word, 3u);
        if (lane % 4u == 0u) {
            held[at + lane / 4u] = vec4<u32>(bytes.word, second, third, fourth);
        }
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
