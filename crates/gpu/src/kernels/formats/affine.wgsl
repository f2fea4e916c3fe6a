// MLX affine codes of BITS bits, one scale and bias for each GROUP columns, `w = scale * q + bias`; scales
// and biases are bf16, f16 or f32 (SCALES = 0, 1, 2).

const BIASED: bool = true;
const HALVES_DIFFER: bool = false;
// The quad with scale and bias.
const LAST: u32 = 2u;

// The word with the scale or bias of a group, and what it says.
fn parameter_word(base: u32, group: u32) -> u32 {
    return words[base + group / select(2u, 1u, SCALES == 2u)];
}

fn parameter(word: u32, group: u32) -> f32 {
    if (SCALES == 2u) {
        return bitcast<f32>(word);
    }
    let half = (word >> (16u * (group % 2u))) & 0xffffu;
    if (SCALES == 1u) {
        return unpack2x16float(half).x;
    }
    return bitcast<f32>(half << 16u);
}

// The words of the codes; those with the scale and the bias.
fn read_unit(base: Base, index: u32) -> Stored {
    var stored: Stored;
    if (BITS == 2u) {
        stored[0] = quads[base.codes / 4u + index / 2u];
    } else if (BITS == 4u) {
        stored[0] = quads[base.codes / 4u + index];
    } else if (BITS == 8u) {
        stored[0] = quads[base.codes / 4u + 2u * index];
        stored[1] = quads[base.codes / 4u + 2u * index + 1u];
    } else {
        let at = base.codes + index * BITS;
        stored[0].x = words[at];
        stored[0].y = words[at + 1u];
        stored[0].z = words[at + 2u];
        if (BITS > 4u) {
            stored[0].w = words[at + 3u];
            stored[1].x = words[at + 4u];
        }
        if (BITS > 5u) {
            stored[1].y = words[at + 5u];
        }
    }
    let group = index / (GROUP / 32u);
    stored[LAST].x = parameter_word(base.scales, group);
    stored[LAST].y = parameter_word(base.biases, group);
    return stored;
}

// Codes of 3, 5 or 6 bits are moved to bytes by fours; they are in one word or across two.
fn spread(low: vec4<u32>, high: vec4<u32>, quad: u32) -> u32 {
    const MASK: u32 = (1u << BITS) - 1u;
    let bit = 4u * BITS * quad;
    let word = bit / 32u;
    let shift = bit % 32u;
    var window = select(low[word % 4u], high[word % 4u], word >= 4u) >> shift;
    if (shift + 4u * BITS > 32u) {
        let next = word + 1u;
        window |= select(low[next % 4u], high[next % 4u], next >= 4u) << (32u - shift);
    }
    return (window & MASK) | ((window << (8u - BITS)) & (MASK << 8u))
        | ((window << (2u * (8u - BITS))) & (MASK << 16u)) | ((window << (3u * (8u - BITS))) & (MASK << 24u));
}

fn bytes_of(stored: Stored, index: u32, part: u32) -> Bytes {
    let group = index / (GROUP / 32u);
    let scale = parameter(stored[LAST].x, group);
    var bias = parameter(stored[LAST].y, group);
    var bytes: vec4<u32>;
    if (BITS == 2u) {
        let both = select(stored[0].xy, stored[0].zw, index % 2u == 1u);
        bytes = (vec4<u32>(select(both.x, both.y, part == 1u)) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(0x03030303u);
    } else if (BITS == 4u) {
        let pair = select(stored[0].xy, stored[0].zw, part == 1u);
        bytes = (pair.xxyy >> vec4<u32>(0u, 4u, 0u, 4u)) & vec4<u32>(0x0f0f0f0fu);
    } else if (BITS == 8u) {
        // 128 less: bytes are signed.
        bytes = select(stored[0], stored[1], part == 1u) ^ vec4<u32>(0x80808080u);
        bias = fma(128.0, scale, bias);
    } else {
        let low = stored[0];
        let high = stored[1];
        let quad = 4u * part;
        bytes = vec4<u32>(
            spread(low, high, quad), spread(low, high, quad + 1u), spread(low, high, quad + 2u), spread(low, high, quad + 3u),
        );
    }
    return Bytes(bytes, scale, bias);
}
