// Bytes as numbers, in the order of the weights: for what is precise, and for embeddings.

const ARE_FLOATS: bool = false;

fn dealt(unit: u32, quad: u32) -> u32 {
    return quad;
}

// Four signed bytes: 128 more, as the mantissa of 2^23 + bits.
fn numbers_of(bytes: u32) -> vec4<f32> {
    let b = bytes ^ 0x80808080u;
    let bits = vec4<u32>(b, b >> 8u, b >> 16u, b >> 24u) & vec4<u32>(255u);
    return bitcast<vec4<f32>>(bits | vec4<u32>(0x4b000000u)) - vec4<f32>(8388736.0);
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    let w = bytes_of(stored, index, part);
    let a = numbers_of(w.bytes.x);
    let b = numbers_of(w.bytes.y);
    let c = numbers_of(w.bytes.z);
    let d = numbers_of(w.bytes.w);
    var q = array<vec4<f32>, 4>(a, b, c, d);
    if (ORDER == 2u) {
        q = array<vec4<f32>, 4>(
            vec4<f32>(a.x, b.x, a.y, b.y), vec4<f32>(a.z, b.z, a.w, b.w),
            vec4<f32>(c.x, d.x, c.y, d.y), vec4<f32>(c.z, d.z, c.w, d.w),
        );
    }
    if (ORDER == 4u) {
        q = array<vec4<f32>, 4>(
            vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y),
            vec4<f32>(a.z, b.z, c.z, d.z), vec4<f32>(a.w, b.w, c.w, d.w),
        );
    }
    return Half(q, w.scale, w.bias);
}
