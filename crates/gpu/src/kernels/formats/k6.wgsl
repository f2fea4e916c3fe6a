// Q6_K: blocks of 256 values with a signed scale for each 16, `w = d * scale * (q - 32)`. A block's codes
// and scales lie as in a GGUF file, 208 bytes; the half-precision factors lie apart.

const BIASED: bool = false;
const HALVES_DIFFER: bool = true;

// Low bits of both halves, high bits of both, the words with the factor and with the scales.
fn read_unit(base: Base, index: u32) -> Stored {
    let block = index / 8u;
    let part = index % 8u / 4u;
    let at = base.codes / 4u + 13u * block;
    let low = at + 4u * part + 2u * (index % 2u);
    let high = at + 8u + 2u * part;
    var stored: Stored;
    stored[0] = quads[low];
    stored[1] = quads[low + 1u];
    stored[2] = quads[high];
    stored[3] = quads[high + 1u];
    stored[4].x = words[base.scales + block / 2u];
    stored[4].y = words[base.codes + 52u * block + 48u + index % 8u / 2u];
    return stored;
}

fn bytes_of(stored: Stored, index: u32, part: u32) -> Bytes {
    let quarter = index % 4u;
    let factor = unpack2x16float(stored[4].x >> (16u * (index / 8u % 2u))).x;
    let scale = factor * f32(unpack4xI8(stored[4].y >> (16u * (index % 2u) + 8u * part)).x);
    let low = (select(stored[0], stored[1], part == 1u) >> vec4<u32>(4u * (quarter / 2u))) & vec4<u32>(0x0f0f0f0fu);
    let high = (select(stored[2], stored[3], part == 1u) >> vec4<u32>(2u * quarter)) & vec4<u32>(0x03030303u);
    // 32 less, in each byte: the high bit keeps bytes from borrowing of each other.
    let bytes = ((low | (high << vec4<u32>(4u)) | vec4<u32>(0x80808080u)) - vec4<u32>(0x20202020u)) ^ vec4<u32>(0x80808080u);
    return Bytes(bytes, scale, 0.0);
}
