// `x += sum over rank of weight * routed + sigmoid(gate) * shared`, in order of rank; a lane a value.

struct Params {
    width: u32,
    rows: u32,
    // Where the weights begin in `chosen`.
    weights: u32,
    top_k: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> routed: array<f32>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> shared_out: array<f32>;
@group(0) @binding(3) var<storage, read> shared_gate: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * 256u + local;
    let row = group.y;
    if (column >= params.width) {
        return;
    }
    let at = row * params.width + column;
    var sum = x[at];
    for (var rank = 0u; rank < params.top_k; rank++) {
        let use_index = row * params.top_k + rank;
        // An expert that was left out has no output.
        if (chosen[use_index] == 0xffffffffu) {
            continue;
        }
        let weight = bitcast<f32>(chosen[params.weights + use_index]);
        sum = fma(weight, routed[use_index * params.width + column], sum);
    }
    if (SHARED) {
        sum = fma(sigmoid(shared_gate[row]), shared_out[at], sum);
    }
    x[at] = sum;
}
