// What a product with one matrix is told, or with that of an expert: `product.wgsl` through `matrix_one.wgsl`, and
// `gemm.wgsl`.

struct Params {
    codes: u32,
    scales: u32,
    biases: u32,
    up_codes: u32,
    up_scales: u32,
    up_biases: u32,
    // Words from an expert to the next.
    stride: u32,
    // Rows of W, units of a row.
    rows: u32,
    units: u32,
    // With `rows_all.wgsl`: rows of x. With `rows_of_experts.wgsl`: where the items begin in their table. With
    // `rows_of_choice.wgsl`: experts to choose from.
    n_x: u32,
    // With `rows_all.wgsl`: without meaning. With `rows_of_experts.wgsl`: uses of a row of x, which use / x_div is. With
    // `rows_of_choice.wgsl`: uses of all rows.
    x_div: u32,
    // Quads of a row of x.
    x_quads: u32,
    // Workgroups of an item.
    n_groups: u32,
    // Zero, which a compiler does not know: it has no choice of which product to round.
    zero: f32,
}

var<immediate> params: Params;

@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// Where the matrix begins, so many words further on.
fn base_at(offset: u32) -> Base {
    return Base(params.codes + offset, params.scales + offset, params.biases + offset);
}

// The same of the one that is computed together with it.
fn up_base_at(offset: u32) -> Base {
    return Base(params.up_codes + offset, params.up_scales + offset, params.up_biases + offset);
}
