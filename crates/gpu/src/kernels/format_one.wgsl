// All matrices are of one format.

const ARE_SUMMED: bool = BIASED;

fn read_of(matrix: Matrix, base: Base, index: u32) -> Stored {
    return read_unit(base, index);
}

fn add_unit(matrix: Matrix, stored: Stored, index: u32, unit: u32, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    add_unit_of(stored, index, unit, first, sums);
}
