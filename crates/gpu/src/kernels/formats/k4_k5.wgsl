// Q4_K (BITS = 4) and Q5_K (BITS = 5) as they lie in a GGUF file: blocks of 256 values, whose eight units
// have six-bit scales and minima; `w = d * scale * q - dmin * min`.

const PLACES = PLACES_OF_BYTES;
const BIASED: bool = true;

fn bytes_of(codes: u32, high: u32, unit: u32) -> vec4<f32> {
    var q = (codes >> (4u * (unit % 2u))) & 0x0f0f0f0fu;
    if (BITS == 5u) {
        q |= ((high >> unit) & 0x01010101u) << 4u;
    }
    return bytes_as_floats(q);
}

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
fn read_half(base: Base, index: u32, part: u32) -> Stored {
    let at = base.codes / 4u + index / 8u * BLOCK_QUADS;
    var codes = at + 1u + index % 8u / 2u * 2u + part;
    var stored: Stored;
    stored[0] = quads[at];
    if (BITS == 5u) {
        codes += 2u;
        stored[2] = quads[at + 1u + part];
    }
    stored[1] = quads[codes];
    return stored;
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    let unit = index % 8u;
    let parameters = parameters_of(stored[0], unit);
    let codes = stored[1];
    let high = stored[2];
    let q = array<vec4<f32>, 4>(
        bytes_of(codes.x, high.x, unit), bytes_of(codes.y, high.y, unit),
        bytes_of(codes.z, high.z, unit), bytes_of(codes.w, high.w, unit),
    );
    return Half(q, parameters.x, parameters.y);
}
