// Whole rows: `out[i] = x[rows[i]]`. A lane a value.

struct Params {
    // Values of a row, and of all rows.
    width: u32,
    len: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < params.len; i += groups.x * 256u) {
        out[i] = x[rows[i / params.width] * params.width + i % params.width];
    }
}
