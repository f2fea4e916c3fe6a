// A product with one matrix, or with that of an expert.

fn matrix_of(group: u32, item: u32) -> Matrix {
    let offset = slot_of(item) * params.stride;
    return Matrix(base_at(offset), up_base_at(offset), FUSED, params.rows, 0u, 0u);
}

fn keep(matrix: Matrix, at: u32, value: f32) {
    y[at] = value;
}
