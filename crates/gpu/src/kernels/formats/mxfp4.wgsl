// MXFP4: 32 floats of four bits (E2M1) with a power of two; the exponents lie apart, a byte each. The low
// nibbles are the first sixteen values.

const PLACES = vec4<f32>(1.0);
const BIASED: bool = false;

fn values(codes: u32) -> vec4<f32> {
    let code = unpack4xU8(codes);
    let size = code & vec4<u32>(7u);
    // From 1 on the bits are those of a float: exponent from 1, one bit of mantissa. Below: 0 and 0.5.
    let normal = bitcast<vec4<f32>>((size << vec4<u32>(22u)) + vec4<u32>(126u << 23u));
    let small = 0.5 * vec4<f32>(size);
    let value = select(normal, small, size < vec4<u32>(2u));
    return select(value, -value, code >= vec4<u32>(8u));
}

// Codes of both halves, and the word with the exponent.
fn read_half(base: Base, index: u32, part: u32) -> Stored {
    var stored: Stored;
    stored[0] = quads[base.codes / 4u + index];
    stored[1].x = words[base.scales + index / 4u];
    return stored;
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    let exponent = (stored[1].x >> (8u * (index % 4u))) & 255u;
    let w = (stored[0] >> vec4<u32>(4u * part)) & vec4<u32>(0x0f0f0f0fu);
    // The smallest power is not a normal number: half of the next.
    let scale = select(bitcast<f32>(exponent << 23u), bitcast<f32>(0x00400000u), exponent == 0u);
    return Half(array<vec4<f32>, 4>(values(w.x), values(w.y), values(w.z), values(w.w)), scale, 0.0);
}
