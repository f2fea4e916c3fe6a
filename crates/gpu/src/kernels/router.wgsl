// The TOP_K largest logits of a row, in order, of equals the one with the lower index first; weighted by
// their softmax, renormalised over the chosen ones with NORMALISE. A workgroup a row.

struct Params {
    n_experts: u32,
}

var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
// (rows, TOP_K) experts, then as many weights.
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>;
// The table of `product.wgsl` with one use an item: slot, 1, use. A device that holds all experts of a layer
// holds each in the slot of its index.
@group(0) @binding(2) var<storage, read_write> items: array<u32>;

const LANES: u32 = 128u;
const MOST: u32 = 1024u;

var<workgroup> keys: array<u32, MOST>;
var<workgroup> ids: array<u32, TOP_K>;
var<workgroup> partial: array<f32, LANES>;

// Floats in the order of their values, as integers.
fn key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let n = params.n_experts;
    let begin = group.x * n;
    for (var i = local; i < n; i += LANES) {
        keys[i] = key_of(logits[begin + i]);
    }
    workgroupBarrier();
    for (var i = local; i < n; i += LANES) {
        let key = keys[i];
        var rank = 0u;
        for (var other = 0u; other < n; other++) {
            rank += u32(keys[other] > key || (keys[other] == key && other < i));
        }
        if (rank < TOP_K) {
            ids[rank] = i;
        }
    }
    workgroupBarrier();
    let best = logits[begin + ids[0]];
    if (!NORMALISE) {
        var sum = 0.0;
        for (var i = local; i < n; i += LANES) {
            sum += exp(logits[begin + i] - best);
        }
        partial[local] = sum;
        for (var step = LANES / 2u; step > 0u; step /= 2u) {
            workgroupBarrier();
            if (local < step) {
                partial[local] += partial[local + step];
            }
        }
        workgroupBarrier();
    }
    if (local == 0u) {
        var sum = 0.0;
        if (NORMALISE) {
            for (var rank = 0u; rank < TOP_K; rank++) {
                sum += exp(logits[begin + ids[rank]] - best);
            }
        } else {
            sum = partial[0];
        }
        for (var rank = 0u; rank < TOP_K; rank++) {
            let use_index = group.x * TOP_K + rank;
            let weight = exp(logits[begin + ids[rank]] - best) / sum;
            chosen[use_index] = ids[rank];
            chosen[groups.x * TOP_K + use_index] = bitcast<u32>(weight);
            items[3u * use_index] = ids[rank];
            items[3u * use_index + 1u] = 1u;
            items[3u * use_index + 2u] = use_index;
        }
    }
}
