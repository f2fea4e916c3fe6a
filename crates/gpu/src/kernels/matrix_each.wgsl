// Products of one input with several matrices in one buffer, each with an output of its own. Workgroups are
// those of the first matrix, then those of the second, and so on. The last matrices may be of another format:
// `format_one.wgsl` and `format_two.wgsl`.

struct Params {
    // Where codes, scales and biases begin, and the rows.
    matrices: array<vec4<u32>, 4>,
    // Where those of the matrix begin that is computed together with one of them; which one.
    up: vec4<u32>,
    // Units of a row.
    units: u32,
    // Rows of x.
    n_x: u32,
    // Quads of a row of x.
    x_quads: u32,
    // The first matrix of the other format.
    other: u32,
    // Workgroups of all: none goes on with other rows.
    n_groups: u32,
    zero: f32,
}

var<immediate> params: Params;

@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> second: array<f32>;
@group(0) @binding(5) var<storage, read_write> third: array<f32>;
@group(0) @binding(6) var<storage, read_write> fourth: array<f32>;

fn matrix_of(group: u32, item: u32) -> Matrix {
    const SHARE: u32 = TEAMS * OUT_ROWS;
    var first = 0u;
    var index = 0u;
    while (index < 3u) {
        let next = first + (params.matrices[index].w + SHARE - 1u) / SHARE;
        if (group < next) {
            break;
        }
        first = next;
        index += 1u;
    }
    let parts = params.matrices[index];
    let base = Base(parts.x, parts.y, parts.z);
    let up = Base(params.up.x, params.up.y, params.up.z);
    return Matrix(base, up, params.up.w == index, parts.w, first, index);
}

fn keep(matrix: Matrix, at: u32, value: f32) {
    switch matrix.index {
        case 0u: { y[at] = value; }
        case 1u: { second[at] = value; }
        case 2u: { third[at] = value; }
        default: { fourth[at] = value; }
    }
}
