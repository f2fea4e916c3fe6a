// Q8_0: 32 signed bytes with a half-precision scale; scales lie apart from the codes.

const PLACES = vec4<f32>(1.0);

fn unit_of(base: Base, row: u32, unit: u32) -> Unit {
    let index = row * params.units + unit;
    let scale = unpack2x16float(words[base.scales + index / 2u] >> (16u * (index % 2u))).x;
    let low = quads[base.codes / 4u + 2u * index];
    let high = quads[base.codes / 4u + 2u * index + 1u];
    var out: Unit;
    out.scale = vec2<f32>(scale);
    out.bias = vec2<f32>(0.0);
    out.q = array<vec4<f32>, 8>(
        vec4<f32>(unpack4xI8(low.x)), vec4<f32>(unpack4xI8(low.y)),
        vec4<f32>(unpack4xI8(low.z)), vec4<f32>(unpack4xI8(low.w)),
        vec4<f32>(unpack4xI8(high.x)), vec4<f32>(unpack4xI8(high.y)),
        vec4<f32>(unpack4xI8(high.z)), vec4<f32>(unpack4xI8(high.w)),
    );
    return out;
}

const BIASED: bool = false;

fn half_of(base: Base, row: u32, unit: u32, part: u32) -> Half {
    let index = row * params.units + unit;
    let scale = unpack2x16float(words[base.scales + index / 2u] >> (16u * (index % 2u))).x;
    let codes = quads[base.codes / 4u + 2u * index + part];
    let q = array<vec4<f32>, 4>(
        vec4<f32>(unpack4xI8(codes.x)), vec4<f32>(unpack4xI8(codes.y)),
        vec4<f32>(unpack4xI8(codes.z)), vec4<f32>(unpack4xI8(codes.w)),
    );
    return Half(q, scale, 0.0);
}
