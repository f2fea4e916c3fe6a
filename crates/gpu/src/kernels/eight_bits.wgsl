// A unit of activations in eight bits, by a team of lanes.

// A unit of smaller values is zero: the inverse of its scale would not be finite.
const SMALLEST: f32 = 1e-36;

struct EightBits {
    // Four bytes, of -127 to 127, in the order of the weights' (HELD_ORDER, see `weights.wgsl`).
    word: u32,
    // Of the unit.
    scale: f32,
    // Times the sum of the unit's bytes.
    sum: f32,
}

// The word of this lane in the order of the weights' bytes (see `weights.wgsl`), where each of the team's lanes has one.
fn in_order(entry: Entry, lane: u32, word: u32) -> u32 {
    if (HELD_ORDER == 2u) {
        let other = team_exchange_word(entry, word, 1u);
        let is_odd = lane % 2u == 1u;
        let shift = 8u * (lane % 2u);
        let first = (select(word, other, is_odd) >> shift) & 0x00ff00ffu;
        let second = (select(other, word, is_odd) >> shift) & 0x00ff00ffu;
        return ((first | (first >> 8u)) & 0xffffu) | ((second | (second >> 8u)) << 16u);
    }
    if (HELD_ORDER == 4u) {
        let own = lane % 4u;
        var out = ((word >> (8u * own)) & 255u) << (8u * own);
        for (var step = 1u; step < 4u; step++) {
            let other = team_exchange_word(entry, word, step);
            out |= ((other >> (8u * own)) & 255u) << (8u * (own ^ step));
        }
        return out;
    }
    return word;
}

// The largest value of a unit becomes 127 or -127. One with a value that is not finite gets a scale that is no number, so
// that it shows in every product. All lanes of the workgroup must call it.
fn in_eight_bits(entry: Entry, lane: u32, value: vec4<f32>) -> EightBits {
    let sizes = bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu);
    var bits = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    bits = max(bits, team_exchange_word(entry, bits, 1u));
    bits = max(bits, team_exchange_word(entry, bits, 2u));
    bits = max(bits, team_exchange_word(entry, bits, 4u));
    let largest = bitcast<f32>(bits);
    let is_finite = bits < 0x7f800000u;
    let is_large = is_finite && largest >= SMALLEST;
    let inverse = select(0.0, 127.0 / largest, is_large);
    var scale = select(0.0, largest / 127.0, is_large);
    if (!is_finite) {
        scale = bitcast<f32>(bits | 0x7fc00000u);
    }
    let word = pack4xI8(vec4<i32>(round(select(vec4<f32>(0.0), value * inverse, is_large))));
    // Small whole numbers: exact in any order.
    let sum = team_sum(entry, f32(dot4I8Packed(word, 0x01010101u)));
    return EightBits(in_order(entry, lane, word), scale, scale * sum);
}
