// MXFP4: 32 floats of four bits (E2M1) with a power of two; the exponents lie apart, a byte each. The low
// nibbles are the first sixteen values.

const PLACES = vec4<f32>(1.0);

fn values(codes: u32) -> vec4<f32> {
    let code = unpack4xU8(codes);
    let size = code & vec4<u32>(7u);
    // From 1 on the bits are those of a float: exponent from 1, one bit of mantissa. Below: 0 and 0.5.
    let normal = bitcast<vec4<f32>>((size << vec4<u32>(22u)) + vec4<u32>(126u << 23u));
    let small = 0.5 * vec4<f32>(size);
    let value = select(normal, small, size < vec4<u32>(2u));
    return select(value, -value, code >= vec4<u32>(8u));
}

fn unit_of(base: Base, row: u32, unit: u32) -> Unit {
    let index = row * params.units + unit;
    let exponent = (words[base.scales + index / 4u] >> (8u * (index % 4u))) & 255u;
    let w = quads[base.codes / 4u + index];
    let low = w & vec4<u32>(0x0f0f0f0fu);
    let high = (w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    var out: Unit;
    // The smallest power is not a normal number: half of the next.
    out.scale = vec2<f32>(select(bitcast<f32>(exponent << 23u), bitcast<f32>(0x00400000u), exponent == 0u));
    out.bias = vec2<f32>(0.0);
    out.q = array<vec4<f32>, 8>(
        values(low.x), values(low.y), values(low.z), values(low.w),
        values(high.x), values(high.y), values(high.z), values(high.w),
    );
    return out;
}

const BIASED: bool = false;

fn half_of(base: Base, row: u32, unit: u32, part: u32) -> Half {
    let index = row * params.units + unit;
    let exponent = (words[base.scales + index / 4u] >> (8u * (index % 4u))) & 255u;
    let w = (quads[base.codes / 4u + index] >> vec4<u32>(4u * part)) & vec4<u32>(0x0f0f0f0fu);
    let scale = select(bitcast<f32>(exponent << 23u), bitcast<f32>(0x00400000u), exponent == 0u);
    return Half(array<vec4<f32>, 4>(values(w.x), values(w.y), values(w.z), values(w.w)), scale, 0.0);
}
