// Plain values: bf16, f16 or f32 (SCALES = 0, 1, 2). Rows are filled up to whole units with zeros.

const PLACES = vec4<f32>(1.0);
const BIASED: bool = false;

fn pair(word: u32) -> vec2<f32> {
    if (SCALES == 1u) {
        return unpack2x16float(word);
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

fn read_half(base: Base, index: u32, part: u32) -> Stored {
    let half = 2u * index + part;
    var stored: Stored;
    if (SCALES == 2u) {
        let at = base.codes / 4u + 4u * half;
        stored[0] = quads[at];
        stored[1] = quads[at + 1u];
        stored[2] = quads[at + 2u];
        stored[3] = quads[at + 3u];
    } else {
        let at = base.codes / 4u + 2u * half;
        stored[0] = quads[at];
        stored[1] = quads[at + 1u];
    }
    return stored;
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    let a = stored[0];
    let b = stored[1];
    if (SCALES == 2u) {
        let q = array<vec4<f32>, 4>(
            bitcast<vec4<f32>>(a), bitcast<vec4<f32>>(b),
            bitcast<vec4<f32>>(stored[2]), bitcast<vec4<f32>>(stored[3]),
        );
        return Half(q, 1.0, 0.0);
    }
    let q = array<vec4<f32>, 4>(
        vec4<f32>(pair(a.x), pair(a.y)), vec4<f32>(pair(a.z), pair(a.w)),
        vec4<f32>(pair(b.x), pair(b.y)), vec4<f32>(pair(b.z), pair(b.w)),
    );
    return Half(q, 1.0, 0.0);
}
