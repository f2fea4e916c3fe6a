// A workgroup a row. With ADD, `x += y`. With COMBINE, `x += sum over rank of weight * routed`, in order of
// rank, and with SHARED `+ sigmoid(gate) * shared`. Then, with NORM, `out = x / sqrt(mean(x^2) + eps) * weight`.
//
// A lane takes every 256th quad of a row, whatever the flags say: a norm has the same bits with a sum as
// behind it.

struct Params {
    // Quads of a row.
    width: u32,
    eps: f32,
    // Where the weights of experts begin in `chosen`.
    weights: u32,
    top_k: u32,
    // Zero, which a compiler does not know: see `delta_net.rs`.
    zero: f32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> shared_out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> shared_gate: array<f32>;
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

// Quads of a row that a lane keeps until they are normed; what is more of them is read again.
const KEPT: u32 = 4u;
const LEFT_OUT: u32 = 0xffffffffu;
// Outputs that are read before they are used: reads take long, and several are as quick as one.
const AHEAD: u32 = 8u;

// Sums of teams.
var<workgroup> partial: array<f32, WORKGROUP / 8u>;

fn combined(row: u32, quad: u32) -> vec4<f32> {
    let at = row * params.width + quad;
    var sum = x[at];
    for (var first = 0u; first < params.top_k; first += AHEAD) {
        var ahead: array<vec4<f32>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            let rank = min(first + i, params.top_k - 1u);
            ahead[i] = y[(row * params.top_k + rank) * params.width + quad];
        }
        for (var i = 0u; i < AHEAD; i++) {
            let use_index = row * params.top_k + first + i;
            // An expert that was left out has no output.
            if (first + i < params.top_k && chosen[use_index] != LEFT_OUT) {
                let weight = bitcast<f32>(chosen[params.weights + use_index]);
                sum = fma(vec4<f32>(weight), ahead[i], sum);
            }
        }
    }
    if (SHARED) {
        sum = fma(vec4<f32>(sigmoid(shared_gate[row])), shared_out[at], sum);
    }
    return sum;
}

// What is normed of a row: a quad of it, with what is added.
fn summed(row: u32, quad: u32) -> vec4<f32> {
    let at = row * params.width + quad;
    if (COMBINE) {
        return combined(row, quad);
    }
    if (ADD) {
        return x[at] + y[at];
    }
    return x[at];
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let local = entry.local;
    let row = entry.group.x;
    let begin = row * params.width;
    var kept: array<vec4<f32>, KEPT>;
    // On their way while others are added.
    var weights: array<vec4<f32>, KEPT>;
    var squares = vec4<f32>(params.zero);
    for (var i = 0u; i < KEPT; i++) {
        let quad = local + i * WORKGROUP;
        if (quad < params.width) {
            if (NORM) {
                weights[i] = weight[quad];
            }
            kept[i] = summed(row, quad);
            squares = fma(kept[i], kept[i], squares);
        }
    }
    for (var quad = local + KEPT * WORKGROUP; quad < params.width; quad += WORKGROUP) {
        let value = summed(row, quad);
        if (ADD || COMBINE) {
            x[begin + quad] = value;
        }
        squares = fma(value, value, squares);
    }
    if (ADD || COMBINE) {
        for (var i = 0u; i < KEPT; i++) {
            let quad = local + i * WORKGROUP;
            if (quad < params.width) {
                x[begin + quad] = kept[i];
            }
        }
    }
    if (!NORM) {
        return;
    }
    let at = lanes(entry);
    let of_team = team_sum(entry, (squares.x + squares.y) + (squares.z + squares.w));
    if (at.lane == 0u) {
        partial[at.team] = of_team;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var team = 0u; team < WORKGROUP / 8u; team++) {
        sum += partial[team];
    }
    let scale = 1.0 / sqrt(sum / f32(4u * params.width) + params.eps);
    for (var i = 0u; i < KEPT; i++) {
        let quad = local + i * WORKGROUP;
        if (quad < params.width) {
            out[begin + quad] = kept[i] * scale * weights[i];
        }
    }
    for (var quad = local + KEPT * WORKGROUP; quad < params.width; quad += WORKGROUP) {
        out[begin + quad] = x[begin + quad] * scale * weight[quad];
    }
}
