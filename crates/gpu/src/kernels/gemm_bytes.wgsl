// The part of x that a workgroup of `gemm.wgsl` holds at a time, of rows in eight bits as `quantize.wgsl` leaves them: three quads a
// unit, which lie as they are held.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;

// The number of a lane's piece among those of all rows.
fn index_of(at: Lanes, piece: u32) -> u32 {
    return (piece * TEAMS + at.team) * 8u + at.lane;
}

// Where the row begins of which this lane has the piece with this number: in the place of rows that are not there, the last.
fn row_of_piece(at: Lanes, item: u32, n: u32, piece: u32) -> u32 {
    return x_row_of(item, min(index_of(at, piece) / ROW_QUADS, n - 1u)) * params.units * UNIT_QUADS;
}

// Behind a row lie other rows, or nothing: lanes that have no weights there have no use for them.
fn piece_of(at: Lanes, row: u32, tile: u32, piece: u32) -> vec4<u32> {
    let quad = min(tile * UNIT_QUADS + index_of(at, piece) % ROW_QUADS, params.units * UNIT_QUADS - 1u);
    return x[row + quad];
}

fn hold_piece(entry: Entry, at: Lanes, piece: u32, value: vec4<u32>) {
    let index = index_of(at, piece);
    if (index < N_X * ROW_QUADS) {
        held[index] = value;
    }
}
