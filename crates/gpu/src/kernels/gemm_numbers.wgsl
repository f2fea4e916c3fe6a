// The part of x that a workgroup of `gemm.wgsl` holds at a time, of rows of floats: a lane reads a quad of a unit, and its team
// holds the unit.

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

// Where the row begins of which this lane has the piece with this number: in the place of rows that are not there, the last.
fn row_of_piece(at: Lanes, item: u32, n: u32, piece: u32) -> u32 {
    return x_row_of(item, min((piece * TEAMS + at.team) / 8u, n - 1u)) * params.x_quads;
}

fn piece_of(at: Lanes, row: u32, tile: u32, piece: u32) -> vec4<u32> {
    let quad = (tile + at.team % 8u) * 8u + at.lane;
    let last_quad = params.x_quads - 1u;
    return bitcast<vec4<u32>>(select(vec4<f32>(), x[row + min(quad, last_quad)], quad <= last_quad));
}

fn hold_piece(entry: Entry, at: Lanes, piece: u32, value: vec4<u32>) {
    hold(entry, at.lane, piece * TEAMS + at.team, bitcast<vec4<f32>>(value));
}
