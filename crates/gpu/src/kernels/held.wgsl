// Rows of x in memory of the workgroup, as the products need them: HOLDS_NUMBERS as floats, HOLDS_BYTES in eight bits.

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

// Bytes lie as those of the weights do, in HELD_ORDER.
//
// A unit is eight quads of floats, with a ninth for the sums of both halves (ARE_SUMMED), or two of bytes, with a third for their
// scale and their sum times that. An odd number keeps the lanes' reads out of each other's way.
const BYTES_AT: u32 = select(0u, 8u, HOLDS_NUMBERS);
const UNIT_QUADS: u32 = select(9u, BYTES_AT + 3u, HOLDS_BYTES);

// A block of smaller values is zero: the inverse of its scale would not be finite.
const SMALLEST: f32 = 1e-36;

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

// Eight bits of each value of a unit, so that the largest is 127; a unit with a value that is not finite gets a scale that is no number, so that
// it shows in every product.
fn hold_bytes(entry: Entry, lane: u32, unit: u32, value: vec4<f32>) {
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
    var sum = bitcast<u32>(dot4I8Packed(word, 0x01010101u));
    sum += team_exchange_word(entry, sum, 1u);
    sum += team_exchange_word(entry, sum, 2u);
    sum += team_exchange_word(entry, sum, 4u);
    let at = unit * UNIT_QUADS + BYTES_AT;
    held[at + lane / 4u][lane % 4u] = in_order(entry, lane, word);
    if (lane == 0u) {
        held[at + 2u] = bitcast<vec4<u32>>(vec4<f32>(scale, scale * f32(bitcast<i32>(sum)), 0.0, 0.0));
    }
}

// Holds a quad of x, the one of this lane in its team's unit. All lanes of the workgroup must call it.
fn hold(entry: Entry, lane: u32, unit: u32, value: vec4<f32>) {
    if (HOLDS_BYTES) {
        hold_bytes(entry, lane, unit, value);
    }
    if (HOLDS_NUMBERS) {
        held[unit * UNIT_QUADS + lane] = bitcast<vec4<u32>>(value);
    }
    // Beside bytes, numbers are for floats, which have no biases.
    if (HOLDS_NUMBERS && ARE_SUMMED && !HOLDS_BYTES) {
        var sum = total(value);
        sum += team_exchange(entry, sum, 1u);
        sum += team_exchange(entry, sum, 2u);
        let upper = team_exchange(entry, sum, 4u);
        if (lane == 0u) {
            held[unit * UNIT_QUADS + 8u] = bitcast<vec4<u32>>(vec4<f32>(sum, upper, 0.0, 0.0));
        }
    }
}
