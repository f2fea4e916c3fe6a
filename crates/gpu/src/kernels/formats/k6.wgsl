// Q6_K: blocks of 256 values with a signed scale for each 16, `w = d * scale * (q - 32)`. A block's codes
// and scales lie as in a GGUF file, 208 bytes; the half-precision factors lie apart.

const PLACES = PLACES_OF_BYTES;

fn bytes_of(low: u32, high: u32, quarter: u32) -> vec4<f32> {
    let nibble = (low >> (4u * (quarter / 2u))) & 0x0f0f0f0fu;
    let top = ((high >> (2u * quarter)) & 0x03030303u) << 4u;
    return bytes_as_floats(nibble | top);
}

fn unit_of(base: Base, row: u32, unit_in_row: u32) -> Unit {
    let index = row * params.units + unit_in_row;
    let block = index / 8u;
    let part = index % 8u / 4u;
    let quarter = index % 4u;
    let at = base.codes / 4u + 13u * block;
    let low = at + 4u * part + 2u * (quarter % 2u);
    let high = at + 8u + 2u * part;
    let a = quads[low];
    let b = quads[low + 1u];
    let c = quads[high];
    let d = quads[high + 1u];
    let factor = unpack2x16float(words[base.scales + block / 2u] >> (16u * (block % 2u))).x;
    let first = 8u * part + 2u * quarter;
    let scales = words[base.codes + 52u * block + 48u + first / 4u] >> (8u * (first % 4u));
    let pair = unpack4xI8(scales);
    let scale = factor * vec2<f32>(f32(pair.x), f32(pair.y));
    var out: Unit;
    out.scale = scale;
    out.bias = -32.0 * scale;
    out.q = array<vec4<f32>, 8>(
        bytes_of(a.x, c.x, quarter), bytes_of(a.y, c.y, quarter),
        bytes_of(a.z, c.z, quarter), bytes_of(a.w, c.w, quarter),
        bytes_of(b.x, d.x, quarter), bytes_of(b.y, d.y, quarter),
        bytes_of(b.z, d.z, quarter), bytes_of(b.w, d.w, quarter),
    );
    return out;
}

const BIASED: bool = true;

fn half_of(base: Base, row: u32, unit_in_row: u32, side: u32) -> Half {
    let index = row * params.units + unit_in_row;
    let block = index / 8u;
    let part = index % 8u / 4u;
    let quarter = index % 4u;
    let at = base.codes / 4u + 13u * block;
    let low = quads[at + 4u * part + 2u * (quarter % 2u) + side];
    let high = quads[at + 8u + 2u * part + side];
    let factor = unpack2x16float(words[base.scales + block / 2u] >> (16u * (block % 2u))).x;
    let number = 8u * part + 2u * quarter + side;
    let codes = words[base.codes + 52u * block + 48u + number / 4u] >> (8u * (number % 4u));
    let scale = factor * f32(unpack4xI8(codes).x);
    let q = array<vec4<f32>, 4>(
        bytes_of(low.x, high.x, quarter), bytes_of(low.y, high.y, quarter),
        bytes_of(low.z, high.z, quarter), bytes_of(low.w, high.w, quarter),
    );
    return Half(q, scale, -32.0 * scale);
}
