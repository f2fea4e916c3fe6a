// `y = x W^T` for one row of x, MLX affine 4-bit codes in groups of 64 with bf16 scales, in the form of
// the kernels that this program's ancestor had for Metal: `acc += fma(q, s * x, b * x)` for each weight.
// It is measured beside `product.wgsl`, which multiplies by group sums, and computes no model.
//
// A row of W belongs to a team of eight lanes; a lane takes two words of codes at a time, and x comes from
// memory of the device: what suits this form best.

struct Params {
    // Where codes, scales and biases of a matrix begin, in words, and words from a matrix to the next.
    codes: u32,
    scales: u32,
    biases: u32,
    stride: u32,
    rows: u32,
    cols: u32,
    // Where the slots of this dispatch begin; item i multiplies row i of x by the matrix of its slot.
    begin: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> slots: array<u32>;

const TEAMS: u32 = WORKGROUP / 8u;

fn bf16(base: u32, index: u32) -> f32 {
    let half = words[base + index / 2u] >> (16u * (index % 2u));
    return bitcast<f32>(half << 16u);
}

fn nibbles(word: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> (vec4<u32>(0u, 4u, 8u, 12u) + shift)) & vec4<u32>(15u));
}

fn multiply(q: vec4<f32>, scale: f32, bias: f32, x: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return sum + fma(q, scale * x, bias * x);
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let at = lanes(entry);
    let item = entry.group.y;
    let offset = slots[params.begin + item] * params.stride;
    let n_pairs = params.cols / 16u;
    let first = (entry.group.x * TEAMS + at.team) * N_ROWS;
    var sums: array<vec4<f32>, N_ROWS>;
    for (var pair = at.lane; pair < n_pairs; pair += 8u) {
        let quad = (item * params.cols + pair * 16u) / 4u;
        let xs = array<vec4<f32>, 4>(x[quad], x[quad + 1u], x[quad + 2u], x[quad + 3u]);
        for (var r = 0u; r < N_ROWS; r++) {
            let index = min(first + r, params.rows - 1u) * n_pairs + pair;
            let scale = bf16(params.scales + offset, index / 4u);
            let bias = bf16(params.biases + offset, index / 4u);
            let codes = pairs[(params.codes + offset) / 2u + index];
            var sum = sums[r];
            sum = multiply(nibbles(codes.x, 0u), scale, bias, xs[0], sum);
            sum = multiply(nibbles(codes.x, 16u), scale, bias, xs[1], sum);
            sum = multiply(nibbles(codes.y, 0u), scale, bias, xs[2], sum);
            sums[r] = multiply(nibbles(codes.y, 16u), scale, bias, xs[3], sum);
        }
    }
    for (var r = 0u; r < N_ROWS; r++) {
        let sum = sums[r];
        let value = team_sum(entry, (sum.x + sum.y) + (sum.z + sum.w));
        if (at.lane == 0u && first + r < params.rows) {
            y[item * params.rows + first + r] = value;
        }
    }
}
