// The end of a gated delta net: a team of lanes norms a value head of a row and applies its gate.
//
// N_VALUE_HEADS, VALUE_DIM: shape.

struct Params {
    // First row of the batch.
    row: u32,
    eps: f32,
    // Zero, which a compiler does not know: see `delta_net.rs`.
    zero: f32,
}

// (rows, N_VALUE_HEADS, VALUE_DIM).
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> norm: array<f32>;
var<immediate> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    let place = entry.group.x * (WORKGROUP / 8u) + me.team;
    // Teams without a head only take part in sums.
    let head = min(place, N_VALUE_HEADS - 1u);
    let at = ((params.row + entry.group.y) * N_VALUE_HEADS + head) * VALUE_DIM;
    var squares = params.zero;
    for (var d = me.lane; d < VALUE_DIM; d += 8u) {
        squares = fma(out[at + d], out[at + d], squares);
    }
    let mean = team_sum(entry, squares) / f32(VALUE_DIM);
    let scale = 1.0 / sqrt(mean + params.eps);
    if (place < N_VALUE_HEADS) {
        for (var d = me.lane; d < VALUE_DIM; d += 8u) {
            out[at + d] = out[at + d] * scale * norm[d] * silu(z[at + d]);
        }
    }
}
