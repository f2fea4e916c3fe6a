// All matrices are of one format.

fn add_unit(matrix: Matrix, base: Base, row: u32, unit: u32, at: u32, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    add_products(unit_of(base, row, unit), at, first, sums);
}
