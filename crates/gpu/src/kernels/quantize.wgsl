// Rows of x in eight bits, three quads a unit: two of bytes; its scale, and that times the sum of its bytes. A team a unit.

struct Params {
    // Quads and units of a row.
        x_quads: u32,
    units: u32,
    rows: u32,
    // Rows of a layer of workgroups.
    layer: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let at = lanes(entry);
    // Workgroups behind the last row do what it needs once more: all must take part in exchanges.
    let row = min(entry.group.z * params.layer + entry.group.y, params.rows - 1u);
    let unit = entry.group.x * (WORKGROUP / 8u) + at.team;
    let quad = unit * 8u + at.lane;
    let last_quad = params.x_quads - 1u;
    let value = select(vec4<f32>(), x[row * params.x_quads + min(quad, last_quad)], quad <= last_quad);
    let bytes = in_eight_bits(entry, at.lane, value);
    if (unit < params.units) {
        let begin = (row * params.units + unit) * 12u;
        out[begin + at.lane] = bytes.word;
        if (at.lane < 2u) {
            out[begin + 8u + at.lane] = bitcast<u32>(select(bytes.scale, bytes.sum, at.lane == 1u));
        }
    }
}
