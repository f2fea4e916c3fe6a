// Plain values: bf16, f16 or f32 (SCALES = 0, 1, 2). Rows are filled up to whole units with zeros.

const BIASED: bool = false;

fn pair(word: u32) -> vec2<f32> {
    if (SCALES == 1u) {
        return unpack2x16float(word);
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

fn read_unit(base: Base, index: u32) -> Stored {
    var stored: Stored;
    let at = base.codes / 4u + select(4u, 8u, SCALES == 2u) * index;
    stored[0] = quads[at];
    stored[1] = quads[at + 1u];
    stored[2] = quads[at + 2u];
    stored[3] = quads[at + 3u];
    if (SCALES == 2u) {
        stored[4] = quads[at + 4u];
        stored[5] = quads[at + 5u];
        stored[6] = quads[at + 6u];
        stored[7] = quads[at + 7u];
    }
    return stored;
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    let is_upper = part == 1u;
    if (SCALES == 2u) {
        let q = array<vec4<f32>, 4>(
            bitcast<vec4<f32>>(select(stored[0], stored[4], is_upper)), bitcast<vec4<f32>>(select(stored[1], stored[5], is_upper)),
            bitcast<vec4<f32>>(select(stored[2], stored[6], is_upper)), bitcast<vec4<f32>>(select(stored[3], stored[7], is_upper)),
        );
        return Half(q, 1.0, 0.0);
    }
    let a = select(stored[0], stored[2], is_upper);
    let b = select(stored[1], stored[3], is_upper);
    let q = array<vec4<f32>, 4>(
        vec4<f32>(pair(a.x), pair(a.y)), vec4<f32>(pair(a.z), pair(a.w)),
        vec4<f32>(pair(b.x), pair(b.y)), vec4<f32>(pair(b.z), pair(b.w)),
    );
    return Half(q, 1.0, 0.0);
}
