// Plain values: bf16, f16 or f32 (SCALES = 0, 1, 2). Rows are filled up to whole units with zeros.

const BIASED: bool = false;
const ARE_FLOATS: bool = true;

fn pair(word: u32) -> vec2<f32> {
    if (SCALES == 1u) {
        return unpack2x16float(word);
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Quads of a unit as it is stored.
const UNIT_OF_FLOATS: u32 = select(4u, 8u, SCALES == 2u);

// In products, where rows are whole blocks of eight units, the quads of a block are dealt out among its units in turn: units that
// a team reads at once lie beside each other quad by quad, and so do the lanes' reads.
fn read_unit(base: Base, index: u32) -> Stored {
    let is_dealt = deals();
    let begin = select(index, index / 8u * 8u, is_dealt) * UNIT_OF_FLOATS + select(0u, index % 8u, is_dealt);
    let at = base.codes / 4u + begin;
    let step = select(1u, 8u, is_dealt);
    var stored: Stored;
    stored[0] = quads[at];
    stored[1] = quads[at + step];
    stored[2] = quads[at + 2u * step];
    stored[3] = quads[at + 3u * step];
    if (SCALES == 2u) {
        stored[4] = quads[at + 4u * step];
        stored[5] = quads[at + 5u * step];
        stored[6] = quads[at + 6u * step];
        stored[7] = quads[at + 7u * step];
    }
    return stored;
}

// Which quad of x is the one with this number of a unit, among those of its block.
fn dealt(unit: u32, quad: u32) -> u32 {
    let width = 8u / UNIT_OF_FLOATS;
    return (quad / width * 8u + unit % 8u) * width + quad % width;
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
