// Matrices are of two formats, of which the text of the second has other names. Each has its own way to the sums:
// a driver that takes arithmetic apart then does so as where a format is alone.

fn add_units(matrix: Matrix, base: Base, units: Units, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    if (matrix.index < params.other) {
        add_units_of(base, units, first, sums);
    } else {
        other_add_units_of(base, units, first, sums);
    }
}
