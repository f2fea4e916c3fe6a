// `y = x W^T` for up to N_X rows of x at a time, which share the decoding of weights. With FUSED, there are
// two matrices, and `y = silu(x gate^T) * (x up^T)`. Which rows and which matrix a workgroup has is said by
// `rows_all.wgsl`, or for routed experts by `rows_of_experts.wgsl`.
//
// A row of W belongs to a team of eight lanes. Lane l adds units l, l + 8, l + 16 .. in order, and the team
// adds its lanes: one order, whatever N_X and N_ROWS are. Within a unit, by the group sums of MLX's
// identity: sum((s q + b) x) = s sum(q x) + b sum(x).

struct Params {
    codes: u32,
    scales: u32,
    biases: u32,
    up_codes: u32,
    up_scales: u32,
    up_biases: u32,
    // Words from an expert to the next.
    stride: u32,
    // Rows of W, units of a row.
    rows: u32,
    units: u32,
    // Rows of x, or where the table of items begins.
    n_x: u32,
    // Row of x of an expert's use: use / x_div.
    x_div: u32,
    // Quads of a row of x.
    x_quads: u32,
}

var<immediate> params: Params;

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const TEAMS: u32 = WORKGROUP / 8u;
// Units of x in memory of the workgroup, of all of its rows; eight quads each, and a ninth that holds the sums
// of both halves and keeps the lanes' reads out of each other's way.
const HELD: u32 = 64u;
const TILE: u32 = HELD / N_X;
const SUMS: u32 = N_ROWS * N_X;

var<workgroup> held: array<vec4<f32>, HELD * 9u>;

fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// A unit of weights times the unit of x at `at`, added to `sum`.
fn multiply(w: Unit, at: u32, sum: f32) -> f32 {
    var low = w.q[0] * held[at];
    low = fma(w.q[1], held[at + 1u], low);
    low = fma(w.q[2], held[at + 2u], low);
    low = fma(w.q[3], held[at + 3u], low);
    var high = w.q[4] * held[at + 4u];
    high = fma(w.q[5], held[at + 5u], high);
    high = fma(w.q[6], held[at + 6u], high);
    high = fma(w.q[7], held[at + 7u], high);
    let sums = held[at + 8u];
    // Half after half, as `gemm.wgsl` does.
    var out = sum;
    if (BIASED) {
        out = fma(w.bias.x, sums.x, out);
    }
    out = fma(w.scale.x, total(low), out);
    if (BIASED) {
        out = fma(w.bias.y, sums.y, out);
    }
    return fma(w.scale.y, total(high), out);
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let at = lanes(entry);
    let item = entry.group.y;
    let n = n_rows_of(item);
    if (n == 0u) {
        return;
    }
    let offset = slot_of(item) * params.stride;
    let base = Base(params.codes + offset, params.scales + offset, params.biases + offset);
    let up = Base(params.up_codes + offset, params.up_scales + offset, params.up_biases + offset);
    let first = (entry.group.x * TEAMS + at.team) * N_ROWS;
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
                    value = x[x_row_of(item, row) * params.x_quads + quad];
                }
                held[i / 8u * 9u + i % 8u] = value;
            }
        }
        workgroupBarrier();
        for (var i = entry.local; i < HELD; i += WORKGROUP) {
            let first = i * 9u;
            let low = ((held[first] + held[first + 1u]) + held[first + 2u]) + held[first + 3u];
            let high = ((held[first + 4u] + held[first + 5u]) + held[first + 6u]) + held[first + 7u];
            held[first + 8u] = vec4<f32>(total(low), total(high), 0.0, 0.0);
        }
        workgroupBarrier();
        for (var unit = at.lane; unit < width; unit += 8u) {
            for (var r = 0u; r < N_ROWS; r++) {
                let row = min(first + r, params.rows - 1u);
                let w = unit_of(base, row, tile + unit);
                for (var j = 0u; j < N_X; j++) {
                    let sum = r * N_X + j;
                    sums[sum] = multiply(w, (j * TILE + unit) * 9u, sums[sum]);
                }
                if (FUSED) {
                    let w = unit_of(up, row, tile + unit);
                    for (var j = 0u; j < N_X; j++) {
                        let sum = r * N_X + j;
                        up_sums[sum] = multiply(w, (j * TILE + unit) * 9u, up_sums[sum]);
                    }
                }
            }
        }
    }

    for (var r = 0u; r < N_ROWS; r++) {
        for (var j = 0u; j < N_X; j++) {
            var value = team_sum(entry, sums[r * N_X + j]);
            if (FUSED) {
                value = silu(value) * team_sum(entry, up_sums[r * N_X + j]);
            }
            if (at.lane == 0u && j < n && first + r < params.rows) {
                y[y_row_of(item, j) * params.rows + first + r] = value;
            }
        }
    }
}
