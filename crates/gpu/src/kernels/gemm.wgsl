// `y = x W^T` for many rows of x: a workgroup takes N_X rows of x and N_ROWS rows of W for each of its teams, and
// decodes a weight once for all of those rows of x. With FUSED, the first half of a team's rows are of one
// matrix and the others the same rows of another, and `y = silu(x gate^T) * (x up^T)`. Which rows of x and which
// matrix a workgroup has is said by `rows_all.wgsl`, or for routed experts by `rows_of_experts.wgsl`.
//
// The order of additions is that of `product.wgsl`, and so are the bits: lane l of a team adds units l, l + 8,
// l + 16 .. in order, and the team adds its lanes in pairs of pairs.
//
// What stands between `each` and `end` is repeated by `kernel.rs`, with the number in place of $r (rows of W), $g
// (groups of eight rows of x), $j (rows of a group) and $s (quads of x that a lane reads, by `gemm_numbers.wgsl` or
// `gemm_bytes.wgsl`): sums must have names of their own to be kept in registers.

const TEAMS: u32 = WORKGROUP / 8u;
// Rows of y of a team.
const OUT_ROWS: u32 = N_ROWS / select(1u, 2u, FUSED);
const ARE_SUMMED: bool = BIASED;
const ROW_QUADS: u32 = 8u * UNIT_QUADS;

// A unit for each lane of a team, of all rows of x.
var<workgroup> held: array<vec4<u32>, N_X * ROW_QUADS>;

fn base_of(r: u32, offset: u32) -> Base {
    if (r < OUT_ROWS) {
        return base_at(offset);
    }
    return up_base_at(offset);
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
    let first = (entry.group.x * TEAMS + at.team) * OUT_ROWS;
    //: each r
    let row_$r = min(first + $ru % OUT_ROWS, params.rows - 1u) * params.units;
    //: end
    //: each s
    let from_$s = row_of_piece(at, item, n, $su);
    //: end
    //: each g
    //: each j
    //: each r
    var sum_$r_$g_$j = 0.0;
    //: end
    //: end
    //: end

    for (var tile = 0u; tile < params.units; tile += 8u) {
        // All of them are read before the first is needed.
        //: each s
        let value_$s = piece_of(at, from_$s, tile, $su);
        //: end
        workgroupBarrier();
        //: each s
        hold_piece(entry, at, $su, value_$s);
        //: end
        workgroupBarrier();
        let unit = tile + at.lane;
        if (unit < params.units) {
            //: each p
            if ($pu < PIECES) {
                //: each r
                let stored_$r = read_unit(base_of($ru, offset), row_$r + unit);
                //: end
                //: each r
                let w_$r = weights_of(stored_$r, row_$r + unit, $pu);
                //: end
                //: each g
                if ($gu * 8u < n) {
                    //: each j
                    {
                        let x = held_of(($gu * 8u + $ju) * 8u + at.lane, $pu);
                        //: each r
                        sum_$r_$g_$j = multiply(w_$r, x, sum_$r_$g_$j);
                        //: end
                    }
                    //: end
                }
                //: end
            }
            //: end
        }
    }

    // Lanes add in pairs: each keeps one half of the sums and gives away the other, three times.
    var sums: array<f32, N_X * N_ROWS>;
    //: each g
    //: each j
    //: each r
    sums[($gu * 8u + $ju) * N_ROWS + $ru] = sum_$r_$g_$j;
    //: end
    //: end
    //: end
    var len = N_X * N_ROWS;
    for (var step = 1u; step < 8u; step *= 2u) {
        len /= 2u;
        let is_upper = (at.lane & step) != 0u;
        for (var i = 0u; i < len; i++) {
            let low = sums[i];
            let high = sums[i + len];
            sums[i] = select(low, high, is_upper) + team_exchange(entry, select(high, low, is_upper), step);
        }
    }
    let column = (at.lane & 1u) * (N_X / 2u) + (at.lane / 2u & 1u) * (N_X / 4u) + at.lane / 4u * (N_X / 8u);
    for (var j = 0u; j < N_X / 8u; j++) {
        for (var r = 0u; r < OUT_ROWS; r++) {
            var value = sums[j * N_ROWS + r];
            if (FUSED) {
                value = silu(value) * sums[j * N_ROWS + OUT_ROWS + r];
            }
            if (column + j < n && first + r < params.rows) {
                y[y_row_of(item, column + j) * params.rows + first + r] = value;
            }
        }
    }
}
