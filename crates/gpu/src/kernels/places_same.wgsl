// Codes are multiplied where they stand: x was scaled for it.

fn half_in_place(stored: Stored, index: u32, part: u32) -> Half {
    return half_of(stored, index, part);
}
