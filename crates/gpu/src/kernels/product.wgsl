// `y = x W^T` for up to N_X rows of x at a time, which share the decoding of weights. With FUSED, there are
// two matrices, and `y = silu(x gate^T) * (x up^T)`. Which rows a workgroup has is said by `rows_all.wgsl`, or
// for routed experts by `rows_of_experts.wgsl` or `rows_of_choice.wgsl`; which matrix by `matrix_one.wgsl`, or by `matrix_each.wgsl` where
// several matrices share their input.
//
// A row of W belongs to a team of eight lanes. Lane l adds units l, l + 8, l + 16 .. in order, and the team
// adds its lanes: one order, whatever N_X and N_ROWS are. Within a unit, by the group sums of MLX's
// identity: sum((s q + b) x) = s sum(q x) + b sum(x).

// What a workgroup multiplies with.
struct Matrix {
    base: Base,
    // The matrix that is computed together with it, if it is one of a pair.
    up: Base,
    is_pair: bool,
    rows: u32,
    // The first workgroup of the matrix.
    group: u32,
    // Which of several matrices it is.
    index: u32,
}

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

// What x is scaled by: the places of the first format's codes.
const HELD_PLACES = PLACES;
const TEAMS: u32 = WORKGROUP / 8u;
// Units of x in memory of the workgroup, of all of its rows; eight quads each, scaled by the places of codes,
// and a ninth that holds the unscaled sums of both halves and keeps the lanes' reads out of each other's way.
const HELD: u32 = 64u;
const TILE: u32 = HELD / N_X;
const SUMS: u32 = N_ROWS * N_X;

var<workgroup> held: array<vec4<f32>, HELD * 9u>;

// A unit of weights times the unit of x at `at`, added to `sum`. Sums begin with a zero that a compiler does not
// know, so that it has no choice of which product to round: see `delta_net.rs`.
fn multiply(w: Unit, at: u32, sum: f32) -> f32 {
    var low = fma(w.q[0], held[at], vec4<f32>(params.zero));
    low = fma(w.q[1], held[at + 1u], low);
    low = fma(w.q[2], held[at + 2u], low);
    low = fma(w.q[3], held[at + 3u], low);
    var high = fma(w.q[4], held[at + 4u], vec4<f32>(params.zero));
    high = fma(w.q[5], held[at + 5u], high);
    high = fma(w.q[6], held[at + 6u], high);
    high = fma(w.q[7], held[at + 7u], high);
    let sums = held[at + 8u];
    // Half after half, as `gemm.wgsl` does.
    let lower = fma(w.scale.x, total(low), fma(w.bias.x, sums.x, sum));
    return fma(w.scale.y, total(high), fma(w.bias.y, sums.y, lower));
}

// Units of a row of weights that a lane multiplies at once: `unit` of the tile, and those of its next ones that
// AHEAD (1, 2 or 4) says, as far as the tile is so wide. Reads take long, and several are as quick as one.
struct Units {
    row: u32,
    tile: u32,
    unit: u32,
    width: u32,
}

// Units times those of each row of x, added to sums from `first` on.
fn add_products(w: Unit, unit: u32, exists: bool, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    for (var j = 0u; j < N_X; j++) {
        let sum = (*sums)[first + j];
        (*sums)[first + j] = select(sum, multiply(w, (j * TILE + unit) * 9u, sum), exists);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let at = lanes(entry);
    let item = entry.group.y;
    let n = n_rows_of(item);
    if (n == 0u) {
        return;
    }
    begin(entry, item);
    let matrix = matrix_of(entry.group.x, item);
    let first = ((entry.group.x - matrix.group) * TEAMS + at.team) * N_ROWS;
    var sums: array<f32, SUMS>;
    var up_sums: array<f32, SUMS>;

    for (var tile = 0u; tile < params.units; tile += TILE) {
        let width = min(TILE, params.units - tile);
        workgroupBarrier();
        for (var i = entry.local; i < HELD * 8u; i += WORKGROUP) {
            let row = i / 8u / TILE;
            let unit = i / 8u % TILE;
            let quad = (tile + unit) * 8u + i % 8u;
            if (row < n && unit < width) {
                var value = vec4<f32>(0.0);
                if (quad < params.x_quads) {
                    value = x[x_row_of(item, row) * params.x_quads + quad] * HELD_PLACES;
                }
                held[i / 8u * 9u + i % 8u] = value;
            }
        }
        workgroupBarrier();
        for (var i = entry.local; i < HELD; i += WORKGROUP) {
            let first = i * 9u;
            let low = ((held[first] + held[first + 1u]) + held[first + 2u]) + held[first + 3u];
            let high = ((held[first + 4u] + held[first + 5u]) + held[first + 6u]) + held[first + 7u];
            held[first + 8u] = vec4<f32>(total(low / HELD_PLACES), total(high / HELD_PLACES), 0.0, 0.0);
        }
        workgroupBarrier();
        for (var unit = at.lane; unit < width; unit += 8u * AHEAD) {
            for (var r = 0u; r < N_ROWS; r++) {
                let row = min(first + r, matrix.rows - 1u);
                let units = Units(row, tile, unit, width);
                add_units(matrix, matrix.base, units, r * N_X, &sums);
                if (FUSED && matrix.is_pair) {
                    add_units(matrix, matrix.up, units, r * N_X, &up_sums);
                }
            }
        }
    }

    for (var r = 0u; r < N_ROWS; r++) {
        for (var j = 0u; j < N_X; j++) {
            var value = team_sum(entry, sums[r * N_X + j]);
            if (FUSED && matrix.is_pair) {
                value = silu(value) * team_sum(entry, up_sums[r * N_X + j]);
            }
            if (at.lane == 0u && j < n && first + r < matrix.rows) {
                keep(matrix, y_row_of(item, j) * matrix.rows + first + r, value);
            }
        }
    }
}
