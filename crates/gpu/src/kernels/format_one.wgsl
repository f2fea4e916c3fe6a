// All matrices are of one format.

const ARE_SUMMED: bool = BIASED;

fn read_of(matrix: Matrix, base: Base, index: u32) -> Stored {
    return read_unit(base, index);
}

fn add_units(matrix: Matrix, stored: array<Stored, N_ROWS>, at: array<u32, N_ROWS>, unit: u32, sums: ptr<function, array<f32, SUMS>>) {
    let n_rows = select(OUT_ROWS, N_ROWS, !FUSED || matrix.is_pair);
    add_units_of(stored, at, n_rows, unit, sums);
}
