// Q6_K: blocks of 256 values with a signed scale for each 16, `w = d * scale * (q - 32)`. A block's codes
// and scales lie as in a GGUF file, 208 bytes; the half-precision factors lie apart.

const PLACES = PLACES_OF_BYTES;
const BIASED: bool = true;

fn bytes_of(low: u32, high: u32, quarter: u32) -> vec4<f32> {
    let nibble = (low >> (4u * (quarter / 2u))) & 0x0f0f0f0fu;
    let top = ((high >> (2u * quarter)) & 0x03030303u) << 4u;
    return bytes_as_floats(nibble | top);
}

// Low bits, high bits, the words with the factor and with the scale.
fn read_half(base: Base, index: u32, side: u32) -> Stored {
    let block = index / 8u;
    let part = index % 8u / 4u;
    let at = base.codes / 4u + 13u * block;
    var stored: Stored;
    stored[0] = quads[at + 4u * part + 2u * (index % 2u) + side];
    stored[1] = quads[at + 8u + 2u * part + side];
    stored[2].x = words[base.scales + block / 2u];
    stored[2].y = words[base.codes + 52u * block + 48u + index % 8u / 2u];
    return stored;
}

fn half_of(stored: Stored, index: u32, side: u32) -> Half {
    let quarter = index % 4u;
    let low = stored[0];
    let high = stored[1];
    let factor = unpack2x16float(stored[2].x >> (16u * (index / 8u % 2u))).x;
    let scale = factor * f32(unpack4xI8(stored[2].y >> (16u * (index % 2u) + 8u * side)).x);
    let q = array<vec4<f32>, 4>(
        bytes_of(low.x, high.x, quarter), bytes_of(low.y, high.y, quarter),
        bytes_of(low.z, high.z, quarter), bytes_of(low.w, high.w, quarter),
    );
    return Half(q, scale, -32.0 * scale);
}
