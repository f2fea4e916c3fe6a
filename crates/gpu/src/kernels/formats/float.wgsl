// Plain values: bf16, f16 or f32 (SCALES = 0, 1, 2). Rows are filled up to whole units with zeros.

const PLACES = vec4<f32>(1.0);

fn pair(word: u32) -> vec2<f32> {
    if (SCALES == 1u) {
        return unpack2x16float(word);
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

fn unit_of(base: Base, row: u32, unit: u32) -> Unit {
    let index = row * params.units + unit;
    var out: Unit;
    out.scale = vec2<f32>(1.0);
    out.bias = vec2<f32>(0.0);
    if (SCALES == 2u) {
        let at = base.codes / 4u + 8u * index;
        out.q = array<vec4<f32>, 8>(
            bitcast<vec4<f32>>(quads[at]), bitcast<vec4<f32>>(quads[at + 1u]),
            bitcast<vec4<f32>>(quads[at + 2u]), bitcast<vec4<f32>>(quads[at + 3u]),
            bitcast<vec4<f32>>(quads[at + 4u]), bitcast<vec4<f32>>(quads[at + 5u]),
            bitcast<vec4<f32>>(quads[at + 6u]), bitcast<vec4<f32>>(quads[at + 7u]),
        );
    } else {
        let at = base.codes / 4u + 4u * index;
        let a = quads[at];
        let b = quads[at + 1u];
        let c = quads[at + 2u];
        let d = quads[at + 3u];
        out.q = array<vec4<f32>, 8>(
            vec4<f32>(pair(a.x), pair(a.y)), vec4<f32>(pair(a.z), pair(a.w)),
            vec4<f32>(pair(b.x), pair(b.y)), vec4<f32>(pair(b.z), pair(b.w)),
            vec4<f32>(pair(c.x), pair(c.y)), vec4<f32>(pair(c.z), pair(c.w)),
            vec4<f32>(pair(d.x), pair(d.y)), vec4<f32>(pair(d.z), pair(d.w)),
        );
    }
    return out;
}

const BIASED: bool = false;

fn half_of(base: Base, row: u32, unit: u32, part: u32) -> Half {
    let half = 2u * (row * params.units + unit) + part;
    if (SCALES == 2u) {
        let at = base.codes / 4u + 4u * half;
        let q = array<vec4<f32>, 4>(
            bitcast<vec4<f32>>(quads[at]), bitcast<vec4<f32>>(quads[at + 1u]),
            bitcast<vec4<f32>>(quads[at + 2u]), bitcast<vec4<f32>>(quads[at + 3u]),
        );
        return Half(q, 1.0, 0.0);
    }
    let at = base.codes / 4u + 2u * half;
    let a = quads[at];
    let b = quads[at + 1u];
    let q = array<vec4<f32>, 4>(
        vec4<f32>(pair(a.x), pair(a.y)), vec4<f32>(pair(a.z), pair(a.w)),
        vec4<f32>(pair(b.x), pair(b.y)), vec4<f32>(pair(b.z), pair(b.w)),
    );
    return Half(q, 1.0, 0.0);
}
