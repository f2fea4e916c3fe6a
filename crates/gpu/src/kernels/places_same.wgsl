// Codes are multiplied where they stand: x was scaled for it.

fn unit_in_place(base: Base, row: u32, unit: u32) -> Unit {
    return unit_of(base, row, unit);
}
