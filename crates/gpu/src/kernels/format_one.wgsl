// All matrices are of one format.

fn add_units(matrix: Matrix, base: Base, units: Units, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    add_units_of(base, units, first, sums);
}
