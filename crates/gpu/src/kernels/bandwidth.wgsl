// Reads each vector of a buffer once and does next to nothing with it.

const LANES: u32 = 256u;
const VECTORS_OF_LANE: u32 = 16u;

struct Params {
    // First vector of the dispatch's part.
    begin: u32,
}

@group(0) @binding(0) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
var<immediate> params: Params;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var at = params.begin + group.x * LANES * VECTORS_OF_LANE + lane;
    var sum = vec4<u32>(0u);
    for (var index = 0u; index < VECTORS_OF_LANE; index += 4u) {
        let a = words[at];
        let b = words[at + LANES];
        let c = words[at + 2u * LANES];
        let d = words[at + 3u * LANES];
        sum ^= (a ^ b) ^ (c ^ d);
        at += 4u * LANES;
    }
    // Nearly never true, which no compiler knows.
    if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x9e3779b9u) {
        out[0] = sum.x;
    }
}
