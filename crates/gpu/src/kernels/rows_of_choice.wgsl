// An item is an expert that the router chooses for a row: every workgroup finds out which by itself, so that
// nothing waits for the choice. One more of an item tells what was chosen.

@group(0) @binding(4) var<storage, read> logits: array<f32>;
// As in `router.wgsl`.
@group(0) @binding(5) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(6) var<storage, read_write> items: array<u32>;

// Here `n_x` is the number of experts and `x_div` that of all uses. Prepares an item, and tells whether the workgroup multiplies.
fn begin(entry: Entry, item: u32) -> bool {
    let row = item / TOP_K;
    choose(entry.local, row, params.n_x);
    if (entry.group.x < params.n_groups) {
        return true;
    }
    let sum = weigh(entry.local, params.n_x);
    if (entry.local == 0u) {
        tell(row, item % TOP_K, sum, params.x_div);
    }
    return false;
}

fn slot_of(item: u32) -> u32 {
    return ids[item % TOP_K];
}

fn n_rows_of(item: u32) -> u32 {
    return 1u;
}

fn x_row_of(item: u32, index: u32) -> u32 {
    return item / TOP_K;
}

fn y_row_of(item: u32, index: u32) -> u32 {
    return item;
}
