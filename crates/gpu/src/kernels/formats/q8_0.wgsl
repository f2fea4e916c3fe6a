// Q8_0: 32 signed bytes with a half-precision scale; scales lie apart from the codes.

const PLACES = vec4<f32>(1.0);
const BIASED: bool = false;

// Codes, and the word with the scale.
fn read_half(base: Base, index: u32, part: u32) -> Stored {
    var stored: Stored;
    stored[0] = quads[base.codes / 4u + 2u * index + part];
    stored[1].x = words[base.scales + index / 2u];
    return stored;
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    let codes = stored[0];
    let q = array<vec4<f32>, 4>(
        vec4<f32>(unpack4xI8(codes.x)), vec4<f32>(unpack4xI8(codes.y)),
        vec4<f32>(unpack4xI8(codes.z)), vec4<f32>(unpack4xI8(codes.w)),
    );
    return Half(q, unpack2x16float(stored[1].x >> (16u * (index % 2u))).x, 0.0);
}
