// MXFP4: 32 floats of four bits (E2M1) with a power of two; the exponents lie apart, a byte each. The low
// nibbles are the first sixteen values.

const BIASED: bool = false;
const HALVES_DIFFER: bool = false;

// Twice the values of four codes, which are whole: 0, 1, 2, 3, 4, 6, 8, 12 and the same with a sign.
fn doubled(codes: vec4<u32>) -> vec4<u32> {
    const ONES = vec4<u32>(0x01010101u);
    const ALL = vec4<u32>(255u);
    let size = codes & vec4<u32>(0x07070707u);
    // From 4 on, 4 + 2 m with the mantissa m, and twice that from 6 on.
    let is_large = (size >> vec4<u32>(2u)) & ONES;
    let is_twice = is_large & (size >> vec4<u32>(1u));
    let large = is_large * 4u + (is_large & size) * 2u;
    let value = (size & ~(is_large * ALL)) | (large + (large & (is_twice * ALL)));
    // Of a zero there is no negative: a byte would overflow into the next.
    let some = (size | (size >> vec4<u32>(1u)) | (size >> vec4<u32>(2u))) & ONES;
    let is_negative = (codes >> vec4<u32>(3u)) & some;
    return (value ^ (is_negative * ALL)) + is_negative;
}

// Codes of both halves, and the word with the exponent.
fn read_unit(base: Base, index: u32) -> Stored {
    var stored: Stored;
    stored[0] = quads[base.codes / 4u + index];
    stored[1].x = words[base.scales + index / 4u];
    return stored;
}

fn bytes_of(stored: Stored, index: u32, part: u32) -> Bytes {
    let exponent = (stored[1].x >> (8u * (index % 4u))) & 255u;
    // The smallest power is not a normal number: half of the next.
    let scale = select(bitcast<f32>(exponent << 23u), bitcast<f32>(0x00400000u), exponent == 0u);
    return Bytes(doubled(stored[0] >> vec4<u32>(4u * part)), 0.5 * scale, 0.0);
}
