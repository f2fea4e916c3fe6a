// Q8_0: 32 signed bytes with a half-precision scale; scales lie apart from the codes.

const BIASED: bool = false;
const HALVES_DIFFER: bool = false;

// Codes, and the word with the scale.
fn read_unit(base: Base, index: u32) -> Stored {
    var stored: Stored;
    stored[0] = quads[base.codes / 4u + 2u * index];
    stored[1] = quads[base.codes / 4u + 2u * index + 1u];
    stored[2].x = words[base.scales + index / 2u];
    return stored;
}

fn bytes_of(stored: Stored, index: u32, part: u32) -> Bytes {
    return Bytes(select(stored[0], stored[1], part == 1u), unpack2x16float(stored[2].x >> (16u * (index % 2u))).x, 0.0);
}
