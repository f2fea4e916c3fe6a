// The choice of experts by itself: a workgroup a row.

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

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    choose(local, group.x, params.n_experts);
    let sum = weigh(local, params.n_experts);
    for (var rank = local; rank < TOP_K; rank += WORKGROUP) {
        tell(group.x, rank, sum, groups.x * TOP_K);
    }
}
