// Groups the uses of a layer's experts by expert, where each expert is in the slot of its index: a table of items
// of up to N_X uses, as `rows_of_experts.wgsl` reads it. One workgroup; an item that is not needed has no uses.
//
// The order of an expert's uses is that of the lanes' arrival. It decides which rows share a tile, and no bit of
// what is computed.

struct Params {
    uses: u32,
    n_experts: u32,
    items: u32,
}

var<immediate> params: Params;

// The expert of each use.
@group(0) @binding(0) var<storage, read> chosen: array<u32>;
@group(0) @binding(1) var<storage, read_write> items: array<u32>;

const LANES: u32 = 256u;
const MOST: u32 = 1024u;
// Experts of a lane in the sum.
const OWN: u32 = MOST / LANES;
const ITEM_WORDS: u32 = 2u + N_X;

var<workgroup> counts: array<atomic<u32>, MOST>;
// For each expert its first item.
var<workgroup> begins: array<u32, MOST>;
var<workgroup> sums: array<u32, LANES>;

fn items_of(expert: u32) -> u32 {
    return (atomicLoad(&counts[expert]) + N_X - 1u) / N_X;
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) local: u32) {
    for (var i = local; i < MOST; i += LANES) {
        atomicStore(&counts[i], 0u);
    }
    workgroupBarrier();
    for (var i = local; i < params.uses; i += LANES) {
        atomicAdd(&counts[chosen[i]], 1u);
    }
    workgroupBarrier();

    var own = 0u;
    for (var i = 0u; i < OWN; i++) {
        own += items_of(local * OWN + i);
    }
    sums[local] = own;
    for (var step = 1u; step < LANES; step *= 2u) {
        workgroupBarrier();
        var before = 0u;
        if (local >= step) {
            before = sums[local - step];
        }
        workgroupBarrier();
        sums[local] += before;
    }
    workgroupBarrier();
    var begin = sums[local] - own;
    for (var i = 0u; i < OWN; i++) {
        begins[local * OWN + i] = begin;
        begin += items_of(local * OWN + i);
    }
    let n_items = sums[LANES - 1u];
    workgroupBarrier();

    for (var expert = local; expert < params.n_experts; expert += LANES) {
        let count = atomicLoad(&counts[expert]);
        for (var done = 0u; done < count; done += N_X) {
            let at = (begins[expert] + done / N_X) * ITEM_WORDS;
            items[at] = expert;
            items[at + 1u] = min(count - done, N_X);
        }
        atomicStore(&counts[expert], 0u);
    }
    for (var item = n_items + local; item < params.items; item += LANES) {
        items[item * ITEM_WORDS] = 0u;
        items[item * ITEM_WORDS + 1u] = 0u;
    }
    workgroupBarrier();
    for (var i = local; i < params.uses; i += LANES) {
        let expert = chosen[i];
        let index = atomicAdd(&counts[expert], 1u);
        items[(begins[expert] + index / N_X) * ITEM_WORDS + 2u + index % N_X] = i;
    }
}
