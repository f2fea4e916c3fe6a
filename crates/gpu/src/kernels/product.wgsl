// `y = x W^T` for up to N_X rows of x at a time, which share the decoding of weights. With FUSED, there are
// two matrices, and `y = silu(x gate^T) * (x up^T)`. Which rows a workgroup has is said by `rows_all.wgsl`, or
// for routed experts by `rows_of_experts.wgsl` or `rows_of_choice.wgsl`; which matrix by `matrix_one.wgsl`, or by `matrix_each.wgsl` where
// several matrices share their input.
//
// A row of W belongs to a team of eight lanes. Lane l adds units l, l + 8, l + 16 .. in order, and the team adds its
// lanes: one order, whatever N_X and N_ROWS are.
//
// Reads take long. So a lane has its next units on their way before it multiplies those that it has, and the first
// before x is there. With LOOPS = 1, there are fewer workgroups than rows need: each goes on with other rows and the
// x that it holds, which is a whole row.
//
// What stands between `each` and `end` is repeated by `kernel.rs`, with the number in place of $r (rows of W of a
// team; with FUSED, the first half are of gate, the others the same rows of up), $a (units that a lane reads at
// once) and $s (quads of x that a lane holds): what has a name of its own is kept in registers.

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

const TEAMS: u32 = WORKGROUP / 8u;
// Rows of y of a team.
const OUT_ROWS: u32 = N_ROWS / select(1u, 2u, FUSED);
// HELD units of x are in memory of the workgroup, those of all of its rows.
const TILE: u32 = HELD / N_X;
const SUMS: u32 = N_ROWS * N_X;

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

var<workgroup> held: array<vec4<u32>, HELD * UNIT_QUADS>;

// The row of W that is a team's with this number, or the last if there is none.
fn row_of(matrix: Matrix, group: u32, team: u32, r: u32) -> u32 {
    return min((group * TEAMS + team) * OUT_ROWS + r % OUT_ROWS, matrix.rows - 1u);
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let at = lanes(entry);
    let item = entry.group.y;
    let n = n_rows_of(item);
    if (n == 0u) {
        return;
    }
    if (!begin(entry, item)) {
        return;
    }
    let matrix = matrix_of(entry.group.x, item);
    let last = params.units - 1u;
    var group = entry.group.x - matrix.group;
    //: each r
    var row_$r = row_of(matrix, group, at.team, $ru) * params.units;
    var base_$r = matrix.base;
    if ($ru >= OUT_ROWS) {
        base_$r = matrix.up;
    }
    let is_there_$r = $ru < OUT_ROWS || matrix.is_pair;
    //: each a
    var next_$r_$a: Stored;
    if (is_there_$r) {
        next_$r_$a = read_of(matrix, base_$r, row_$r + min(at.lane + 8u * $au, last));
    }
    //: end
    //: end

    var is_held = false;
    loop {
        // Where this team goes on: the same rows again where it does not.
        //: each r
        let row_then_$r = row_of(matrix, group + LOOPS * params.n_groups, at.team, $ru) * params.units;
        //: end
        var sums: array<f32, SUMS>;
        for (var tile = 0u; tile < params.units; tile += TILE) {
            let end = min(tile + TILE, params.units);
            if (!is_held) {
                //: each s
                let unit_$s = $su * TEAMS + at.team;
                let quad_$s = (tile + unit_$s % TILE) * 8u + at.lane;
                var value_$s = vec4<f32>(0.0);
                if (unit_$s / TILE < n && quad_$s < params.x_quads) {
                    value_$s = x[x_row_of(item, unit_$s / TILE) * params.x_quads + quad_$s];
                }
                //: end
                workgroupBarrier();
                //: each s
                hold(entry, at.lane, unit_$s, value_$s);
                //: end
                workgroupBarrier();
            }
            for (var unit = tile + at.lane; unit < end; unit += 8u * AHEAD) {
                let then = unit + 8u * AHEAD;
                //: each a
                var now_$a: array<Stored, N_ROWS>;
                var at_$a: array<u32, N_ROWS>;
                //: each r
                if (is_there_$r) {
                    now_$a[$r] = next_$r_$a;
                    at_$a[$r] = row_$r + unit + 8u * $au;
                    if (then + 8u * $au <= last) {
                        next_$r_$a = read_of(matrix, base_$r, row_$r + then + 8u * $au);
                    } else if (LOOPS == 1u) {
                        next_$r_$a = read_of(matrix, base_$r, row_then_$r + min(at.lane + 8u * $au, last));
                    }
                }
                //: end
                //: end
                //: each a
                if (unit + 8u * $au < end) {
                    add_units(matrix, now_$a, at_$a, unit + 8u * $au - tile, &sums);
                }
                //: end
            }
        }

        let first = (group * TEAMS + at.team) * OUT_ROWS;
        for (var r = 0u; r < OUT_ROWS; r++) {
            for (var j = 0u; j < N_X; j++) {
                var value = team_sum(entry, sums[r * N_X + j]);
                if (FUSED && matrix.is_pair) {
                    value = silu(value) * team_sum(entry, sums[(OUT_ROWS + r) % N_ROWS * N_X + j]);
                }
                if (at.lane == 0u && j < n && first + r < matrix.rows) {
                    keep(matrix, y_row_of(item, j) * matrix.rows + first + r, value);
                }
            }
        }
        group += params.n_groups;
        if (LOOPS == 0u || group * TEAMS * OUT_ROWS >= matrix.rows) {
            break;
        }
        is_held = true;
        //: each r
        row_$r = row_then_$r;
        //: end
    }
}
