// Products of low-bit weights with activations in eight bits, as the CPU has them: a unit of x is `scale * byte` with bytes of
// -127 to 127, so that what a unit adds comes of one whole number, which has no order, and of a few roundings, which have
// one: `sum + bias * (scale_x * sum of bytes) + whole * scale_w * scale_x`. Four products are one operation where a device has it.

const PIECES: u32 = 1u;

struct Weights {
    low: Bytes,
    high: Bytes,
}

struct Held {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
    // Times the sum of the bytes.
    sum: f32,
}

fn weights_of(stored: Stored, index: u32, part: u32) -> Weights {
    return Weights(bytes_of(stored, index, 0u), bytes_of(stored, index, 1u));
}

// What is held of a unit of x.
fn held_of(unit: u32, part: u32) -> Held {
    let begin = unit * UNIT_QUADS;
    let parameters = bitcast<vec4<f32>>(held[begin + 2u]);
    return Held(held[begin], held[begin + 1u], parameters.x, parameters.y);
}

// Sums of products begin with a number below which lie 22 bits of either sign, and are read as the mantissa of a float:
// an addition instead of a conversion.
const ZERO: i32 = 0x4b400000;

fn add_products(a: vec4<u32>, b: vec4<u32>, sum: i32) -> i32 {
    var out = sum + dot4I8Packed(a.x, b.x);
    out += dot4I8Packed(a.y, b.y);
    out += dot4I8Packed(a.z, b.z);
    return out + dot4I8Packed(a.w, b.w);
}

fn whole(sum: i32) -> f32 {
    return bitcast<f32>(sum) - 12582912.0;
}

fn multiply(w: Weights, x: Held, sum: f32) -> f32 {
    var biased = sum;
    if (BIASED) {
        biased = fma(w.low.bias, x.sum, sum);
    }
    let low = add_products(w.low.bytes, x.low, ZERO);
    if (HALVES_DIFFER) {
        let first = fma(whole(low) * w.low.scale, x.scale, biased);
        return fma(whole(add_products(w.high.bytes, x.high, ZERO)) * w.high.scale, x.scale, first);
    }
    return fma(whole(add_products(w.high.bytes, x.high, low)) * w.low.scale, x.scale, biased);
}
