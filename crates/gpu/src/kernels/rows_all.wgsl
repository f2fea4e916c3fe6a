// An item is N_X neighbouring rows of x, and no expert's: its slot is the first.

// Prepares an item, and tells whether the workgroup multiplies.
fn begin(entry: Entry, item: u32) -> bool {
    return true;
}

fn slot_of(item: u32) -> u32 {
    return 0u;
}

fn n_rows_of(item: u32) -> u32 {
    return min(N_X, params.n_x - item * N_X);
}

fn x_row_of(item: u32, index: u32) -> u32 {
    return item * N_X + index;
}

fn y_row_of(item: u32, index: u32) -> u32 {
    return item * N_X + index;
}
