// `out = x / sqrt(mean(x^2) + eps) * weight`, a workgroup a row. With ADD, `x += y` before that.

struct Params {
    width: u32,
    eps: f32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const LANES: u32 = 256u;

var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let begin = group.x * params.width;
    var sum = 0.0;
    for (var i = local; i < params.width; i += LANES) {
        var value = x[begin + i];
        if (ADD) {
            value += y[begin + i];
            x[begin + i] = value;
        }
        sum = fma(value, value, sum);
    }
    partial[local] = sum;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (local < step) {
            partial[local] += partial[local + step];
        }
    }
    workgroupBarrier();
    let scale = 1.0 / sqrt(partial[0] / f32(params.width) + params.eps);
    for (var i = local; i < params.width; i += LANES) {
        out[begin + i] = x[begin + i] * scale * weight[i];
    }
}
