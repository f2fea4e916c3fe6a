// Products in 32-bit floats: of weights that are floats, and of all others where that is asked for. A unit is multiplied in
// two parts, so that few registers hold it.

const PIECES: u32 = 2u;

alias Weights = Half;

struct Held {
    quads: array<vec4<f32>, 4>,
    // Their sum, where weights have biases.
    sum: f32,
}

// Whether units of weights are dealt out: see `formats/float.wgsl`.
fn deals() -> bool {
    return ARE_FLOATS && params.units % 8u == 0u;
}

fn weights_of(stored: Stored, index: u32, part: u32) -> Weights {
    return half_of(stored, index, part);
}

fn held_quad(unit: u32, quad: u32) -> vec4<f32> {
    if (deals()) {
        let place = dealt(unit, quad);
        return bitcast<vec4<f32>>(held[(unit / 8u * 8u + place / 8u) * UNIT_QUADS + place % 8u]);
    }
    return bitcast<vec4<f32>>(held[unit * UNIT_QUADS + quad]);
}

// What is held of a unit of x.
fn held_of(unit: u32, part: u32) -> Held {
    let quad = 4u * part;
    let quads = array<vec4<f32>, 4>(
        held_quad(unit, quad), held_quad(unit, quad + 1u), held_quad(unit, quad + 2u), held_quad(unit, quad + 3u),
    );
    var sum = 0.0;
    if (BIASED) {
        sum = bitcast<f32>(held[unit * UNIT_QUADS + 8u][part]);
    }
    return Held(quads, sum);
}

// The product of both, added to `sum`; by the group sums of MLX's identity, sum((s q + b) x) = s sum(q x) + b sum(x). Sums begin
// with a zero that a compiler does not know, so that it has no choice of which product to round: see `delta_net.rs`.
fn multiply(w: Weights, x: Held, sum: f32) -> f32 {
    var products = fma(w.q[0], x.quads[0], vec4<f32>(params.zero));
    products = fma(w.q[1], x.quads[1], products);
    products = fma(w.q[2], x.quads[2], products);
    products = fma(w.q[3], x.quads[3], products);
    // What is left out where all biases are zero would add zero.
    var biased = sum;
    if (BIASED) {
        biased = fma(w.bias, x.sum, sum);
    }
    return fma(w.scale, total(products), biased);
}
