// Matrices are of two formats, of which the text of the second has other names. Each has its own way to the sums:
// a driver that takes arithmetic apart then does so as where a format is alone.

const ARE_SUMMED: bool = BIASED || other_BIASED;

fn read_of(matrix: Matrix, base: Base, index: u32) -> Stored {
    if (matrix.index < params.other) {
        return read_unit(base, index);
    }
    return other_read_unit(base, index);
}

fn add_unit(matrix: Matrix, stored: Stored, index: u32, unit: u32, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    if (matrix.index < params.other) {
        add_unit_of(stored, index, unit, first, sums);
    } else {
        other_add_unit_of(stored, index, unit, first, sums);
    }
}
