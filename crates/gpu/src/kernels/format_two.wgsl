// Matrices are of two formats, of which the text of the second has other names. Each has its own way to the sums:
// a driver that takes arithmetic apart then does so as where a format is alone.

const ARE_SUMMED: bool = BIASED || other_BIASED;

fn read_of(matrix: Matrix, base: Base, index: u32) -> Stored {
    if (matrix.index < params.other) {
        return read_unit(base, index);
    }
    return other_read_unit(base, index);
}

fn add_units(matrix: Matrix, stored: array<Stored, N_ROWS>, at: array<u32, N_ROWS>, unit: u32, sums: ptr<function, array<f32, SUMS>>) {
    let n_rows = select(OUT_ROWS, N_ROWS, !FUSED || matrix.is_pair);
    if (matrix.index < params.other) {
        add_units_of(stored, at, n_rows, unit, sums);
    } else {
        other_add_units_of(stored, at, n_rows, unit, sums);
    }
}
