// The end of attention: merges partial results in order, divides, and applies the gates.
//
// N_HEADS, HEAD_DIM, QUERY_WIDTH: shape; the gates follow the query if QUERY_WIDTH is more than HEAD_DIM.

struct Params {
    // First row of the batch.
    row: u32,
    rows: u32,
    position: u32,
    // Positions of a partial result.
    share: u32,
    zero: f32,
}

@group(0) @binding(0) var<storage, read> partial_sums: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> partial_totals: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> query: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
var<immediate> params: Params;

const CHUNKS: u32 = HEAD_DIM / 4u;
// Partial results that are read before they are used: reads take long, and several are as quick as one.
const AHEAD: u32 = 8u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = id.x;
    let index = id.y;
    if (at >= N_HEADS * CHUNKS) {
        return;
    }
    let head = at / CHUNKS;
    var whole = Partial(NOTHING, 0.0, vec4<f32>());
    let n_slots = (params.position + index) / params.share + 1u;
    for (var step = 0u; step < n_slots; step += AHEAD) {
        var ahead: array<Partial, AHEAD>;
        for (var j = 0u; j < AHEAD; j++) {
            let slot = min(step + j, n_slots - 1u);
            let source = (slot * params.rows + index) * N_HEADS + head;
            let totals = partial_totals[source];
            ahead[j] = Partial(totals.x, totals.y, partial_sums[source * CHUNKS + at % CHUNKS]);
        }
        for (var j = 0u; j < AHEAD; j++) {
            if (step + j < n_slots) {
                whole = merged(whole, ahead[j], params.zero);
            }
        }
    }
    var result = whole.sums / whole.total;
    let row = params.row + index;
    if (QUERY_WIDTH > HEAD_DIM) {
        let gates = query[(row * N_HEADS + head) * QUERY_WIDTH / 4u + CHUNKS + at % CHUNKS];
        result *= vec4<f32>(1.0) / (vec4<f32>(1.0) + exp(-gates));
    }
    out[row * N_HEADS * CHUNKS + at] = result;
}
