// Matrices are of two formats, of which the text of the second has other names. Each has its own way to the sums:
// a driver that takes arithmetic apart then does so as where a format is alone.

fn add_unit(matrix: Matrix, base: Base, row: u32, unit: u32, at: u32, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    if (matrix.index < params.other) {
        add_products(unit_of(base, row, unit), at, first, sums);
    } else {
        add_products(other_unit_of(base, row, unit), at, first, sums);
    }
}
