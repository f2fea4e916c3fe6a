// Q4_K (BITS = 4) and Q5_K (BITS = 5) as they lie in a GGUF file: blocks of 256 values, whose eight units
// have six-bit scales and minima; `w = d * scale * q - dmin * min`.

const PLACES = PLACES_OF_BYTES;

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

fn unit_of(base: Base, row: u32, unit_in_row: u32) -> Unit {
    let index = row * params.units + unit_in_row;
    let unit = index % 8u;
    let at = base.codes / 4u + index / 8u * BLOCK_QUADS;
    let parameters = parameters_of(quads[at], unit);
    var high_a = vec4<u32>(0u);
    var high_b = vec4<u32>(0u);
    var codes = at + 1u + 2u * (unit / 2u);
    if (BITS == 5u) {
        high_a = quads[at + 1u];
        high_b = quads[at + 2u];
        codes += 2u;
    }
    let a = quads[codes];
    let b = quads[codes + 1u];
    var out: Unit;
    out.scale = vec2<f32>(parameters.x);
    out.bias = vec2<f32>(parameters.y);
    out.q = array<vec4<f32>, 8>(
        bytes_of(a.x, high_a.x, unit), bytes_of(a.y, high_a.y, unit),
        bytes_of(a.z, high_a.z, unit), bytes_of(a.w, high_a.w, unit),
        bytes_of(b.x, high_b.x, unit), bytes_of(b.y, high_b.y, unit),
        bytes_of(b.z, high_b.z, unit), bytes_of(b.w, high_b.w, unit),
    );
    return out;
}

const BIASED: bool = true;

fn half_of(base: Base, row: u32, unit_in_row: u32, part: u32) -> Half {
    let index = row * params.units + unit_in_row;
    let unit = index % 8u;
    let at = base.codes / 4u + index / 8u * BLOCK_QUADS;
    let parameters = parameters_of(quads[at], unit);
    var high = vec4<u32>();
    var codes = at + 1u + 2u * (unit / 2u) + part;
    if (BITS == 5u) {
        high = quads[at + 1u + part];
        codes += 2u;
    }
    let w = quads[codes];
    let q = array<vec4<f32>, 4>(
        bytes_of(w.x, high.x, unit), bytes_of(w.y, high.y, unit),
        bytes_of(w.z, high.z, unit), bytes_of(w.w, high.w, unit),
    );
    return Half(q, parameters.x, parameters.y);
}
