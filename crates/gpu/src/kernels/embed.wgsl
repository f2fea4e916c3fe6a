// Rows of the embedding: `out[i] = table[tokens[i]]`, a lane a unit.

struct Params {
    codes: u32,
    scales: u32,
    biases: u32,
    units: u32,
    // Values of a row.
    width: u32,
    n_tokens: u32,
}

var<immediate> params: Params;

@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// Rows are read as they are stored.
fn deals() -> bool {
    return false;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let unit = group.x * 64u + local;
    if (unit >= params.units) {
        return;
    }
    let index = tokens[group.y] * params.units + unit;
    let base = Base(params.codes, params.scales, params.biases);
    let stored = read_unit(base, index);
    for (var part = 0u; part < 2u; part++) {
        let w = half_of(stored, index, part);
        for (var i = 0u; i < 16u; i++) {
            let column = 32u * unit + 16u * part + i;
            if (column < params.width) {
                out[group.y * params.width + column] = fma(w.scale, w.q[i / 4u][i % 4u], w.bias);
            }
        }
    }
}
