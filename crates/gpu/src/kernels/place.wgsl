// Looks up where the experts of a table with one use an item are held, and writes such a table for each buffer
// of slots: slot, 1, use. What is not in that buffer gets no use; one lane an item.

struct Params {
    uses: u32,
    buffers: u32,
}

var<immediate> params: Params;

// Expert, 1, use.
@group(0) @binding(0) var<storage, read> items: array<u32>;
// For each expert its slot, and above it the number of the buffer; NOWHERE if it is not held.
@group(0) @binding(1) var<storage, read> places: array<u32>;
@group(0) @binding(2) var<storage, read_write> placed: array<u32>;

const LANES: u32 = 64u;
const SLOT_BITS: u32 = 24u;
const NOWHERE: u32 = 0xffffffffu;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) local: u32) {
    for (var i = local; i < params.uses * params.buffers; i += LANES) {
        let item = 3u * (i % params.uses);
        let place = places[items[item]];
        let is_here = place != NOWHERE && place >> SLOT_BITS == i / params.uses;
        placed[3u * i] = select(0u, place & ((1u << SLOT_BITS) - 1u), is_here);
        placed[3u * i + 1u] = u32(is_here);
        placed[3u * i + 2u] = items[item + 2u];
    }
}
