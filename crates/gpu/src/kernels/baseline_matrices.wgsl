enable f16;
enable wgpu_cooperative_matrix;

// `y = x W^T` of whole numbers with a scale for each 32 columns, by cooperative matrices, measured beside `gemm.wgsl` as
// the most that they could give to it: both operands lie there as numbers in 16 bits, nothing is decoded, and units are
// added in their order, in one sum instead of eight. It computes no model.
//
// Two products of 16 x 16 x 16 add the whole numbers of a unit without an error. Each of the 256 sums has scales of its
// own, and WGSL reaches no element of a matrix: they go through memory of the workgroup.
//
// A subgroup of 32 lanes has 16 * M rows of x and 32 rows of W. What stands between `each` and `end` is repeated by
// `kernel.rs`: $m (16 rows of x), $n (16 rows of W), $k (16 columns), $q and $e (four rows of x, and each of them), $s
// (fours that a lane reads).

struct Params {
    x_rows: u32,
    w_rows: u32,
    units: u32,
}

var<immediate> params: Params;

// A unit of a row is eight times four numbers. Scales lie by units: those of all rows for the first, and so on.
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> x_scales: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> w_scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const SUBGROUPS: u32 = DOWN * ACROSS;
const X_ROWS: u32 = 16u * M * DOWN;
const W_ROWS: u32 = 32u * ACROSS;
// Four numbers each: of eight a row uses all, and two keep rows in different banks.
const STRIDE: u32 = 10u;
// The same of columns of sixteen sums.
const SUMS: u32 = 5u;

var<workgroup> held: array<vec4<f16>, (X_ROWS + W_ROWS) * STRIDE>;
var<workgroup> held_scales: array<vec4<f32>, X_ROWS / 4u>;
// Of each subgroup two times 16 x 32: one is read while the other is written.
var<workgroup> passed: array<vec4<f32>, SUBGROUPS * 2u * 32u * SUMS>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first_x = group.y * X_ROWS;
    let first_w = group.x * W_ROWS;
    let x_row = subgroup / ACROSS * 16u * M;
    let w_row = subgroup % ACROSS * 32u;
    let own_passed = subgroup * 2u * 32u * SUMS;
    //: each m
    //: each q
    //: each e
    var sum_$m_$q_$e = 0.0;
    //: end
    //: end
    //: end

    for (var unit = 0u; unit < params.units; unit++) {
        //: each s
        var value_$s: vec4<f16>;
        {
            let piece = $su * WORKGROUP + index;
            if (piece < X_ROWS * 8u) {
                value_$s = x[((first_x + piece / 8u) * params.units + unit) * 8u + piece % 8u];
            } else {
                let w_piece = piece - X_ROWS * 8u;
                value_$s = w[((first_w + w_piece / 8u) * params.units + unit) * 8u + w_piece % 8u];
            }
        }
        //: end
        let scales_of_x = x_scales[(unit * params.x_rows + first_x) / 4u + index % (X_ROWS / 4u)];
        let scale_of_w = w_scales[unit * params.w_rows + first_w + w_row + lane];
        workgroupBarrier();
        //: each s
        {
            let piece = $su * WORKGROUP + index;
            held[piece / 8u * STRIDE + piece % 8u] = value_$s;
        }
        //: end
        if (index < X_ROWS / 4u) {
            held_scales[index] = scales_of_x;
        }
        workgroupBarrier();
        //: each n
        //: each k
        let b_$n_$k = coopLoad<coop_mat16x16<f16, B>>(&held[(X_ROWS + w_row + $nu * 16u) * STRIDE + $ku * 4u], STRIDE);
        //: end
        //: end
        //: each m
        {
            //: each k
            let a_$k = coopLoadT<coop_mat16x16<f16, A>>(&held[(x_row + $mu * 16u) * STRIDE + $ku * 4u], STRIDE);
            //: end
            let at = own_passed + $mu % 2u * 32u * SUMS;
            //: each n
            {
                var c = coop_mat16x16<f32, C>();
                //: each k
                c = coopMultiplyAdd(a_$k, b_$n_$k, c);
                //: end
                coopStore(c, &passed[at + $nu * 16u * SUMS], SUMS);
            }
            //: end
            subgroupBarrier();
            //: each q
            let whole_$q = passed[at + lane * SUMS + $qu] * scale_of_w;
            let scales_$q = held_scales[(x_row + $mu * 16u) / 4u + $qu];
            //: each e
            sum_$m_$q_$e = fma(whole_$q[$eu], scales_$q[$eu], sum_$m_$q_$e);
            //: end
            //: end
        }
        //: end
    }

    let column = first_w + w_row + lane;
    //: each m
    //: each q
    //: each e
    y[(first_x + x_row + $mu * 16u + $qu * 4u + $eu) * params.w_rows + column] = sum_$m_$q_$e;
    //: end
    //: end
    //: end
}
