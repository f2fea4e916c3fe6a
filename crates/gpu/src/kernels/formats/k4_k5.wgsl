// Q4_K (BITS = 4) and Q5_K (BITS = 5) as they lie in a GGUF file: blocks of 256 values, whose eight units
// have six-bit scales and minima; `w = d * scale * q - dmin * min`.

const BIASED: bool = true;
const HALVES_DIFFER: bool = false;

// The scale and the bias of a unit, of the first quad of its block.
fn parameters_of(head: vec4<u32>, unit: u32) -> vec2<f32> {
    let d = unpack2x16float(head.x);
    // Six-bit pairs: the first four units have theirs in bytes, the others the low four bits there and
    // the high two in the spare bits of the first.
    let shift = 8u * (unit % 4u);
    let first = head.y >> shift;
    let second = head.z >> shift;
    let third = head.w >> shift;
    var scale = first & 63u;
    var low = second & 63u;
    if (unit >= 4u) {
        scale = (third & 15u) | ((first >> 2u) & 48u);
        low = ((third >> 4u) & 15u) | ((second >> 2u) & 48u);
    }
    return vec2<f32>(d.x * f32(scale), -d.y * f32(low));
}

// The first quad of the block; codes, with those of the unit that has the other nibbles; fifth bits.
fn read_unit(base: Base, index: u32) -> Stored {
    let at = base.codes / 4u + index / 8u * BLOCK_QUADS;
    let codes = at + BLOCK_QUADS - 8u + index % 8u / 2u * 2u;
    var stored: Stored;
    stored[0] = quads[at];
    stored[1] = quads[codes];
    stored[2] = quads[codes + 1u];
    if (BITS == 5u) {
        stored[3] = quads[at + 1u];
        stored[4] = quads[at + 2u];
    }
    return stored;
}

fn bytes_of(stored: Stored, index: u32, part: u32) -> Bytes {
    let unit = index % 8u;
    let parameters = parameters_of(stored[0], unit);
    let codes = select(stored[1], stored[2], part == 1u);
    var bytes = (codes >> vec4<u32>(4u * (unit % 2u))) & vec4<u32>(0x0f0f0f0fu);
    if (BITS == 5u) {
        let high = select(stored[3], stored[4], part == 1u);
        bytes |= ((high >> vec4<u32>(unit)) & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
    }
    return Bytes(bytes, parameters.x, parameters.y);
}
