// An item is an expert's slot, the number of its uses here, and N_X uses: `row * top_k + rank`.

@group(0) @binding(4) var<storage, read> items: array<u32>;

const ITEM_WORDS: u32 = 2u + N_X;

// Prepares an item, and tells whether the workgroup multiplies.
fn begin(entry: Entry, item: u32) -> bool {
    return true;
}

fn slot_of(item: u32) -> u32 {
    return items[params.n_x + item * ITEM_WORDS];
}

fn n_rows_of(item: u32) -> u32 {
    return items[params.n_x + item * ITEM_WORDS + 1u];
}

fn x_row_of(item: u32, index: u32) -> u32 {
    return y_row_of(item, index) / params.x_div;
}

fn y_row_of(item: u32, index: u32) -> u32 {
    return items[params.n_x + item * ITEM_WORDS + 2u + index];
}
