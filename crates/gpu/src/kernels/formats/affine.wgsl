// MLX affine codes of BITS bits, one scale and bias for each GROUP columns, `w = scale * q + bias`; scales
// and biases are bf16, f16 or f32 (SCALES = 0, 1, 2).

// Up to five bits, four codes become floats where they stand; wider ones, two and two.
const STEP: u32 = 1u << BITS;
const IS_NARROW: u32 = u32(BITS <= 5u);
const PLACE = 1.0 / f32(STEP);
const HIGH_PLACE = 1.0 / f32(1u << (2u * BITS * IS_NARROW));
const PLACES = vec4<f32>(1.0, PLACE, HIGH_PLACE, PLACE * HIGH_PLACE);
const MASK: u32 = STEP - 1u;

// The four codes from the lowest bit on.
fn codes_of(window: u32) -> vec4<f32> {
    if (IS_NARROW == 1u) {
        return as_floats(vec4<u32>(window) & vec4<u32>(MASK, MASK << BITS, MASK << (2u * BITS), MASK << (3u * BITS)));
    }
    let high = window >> (2u * BITS);
    return as_floats(vec4<u32>(window, window, high, high) & vec4<u32>(MASK, MASK << BITS, MASK, MASK << BITS));
}

fn quad(at: u32, index: u32) -> vec4<f32> {
    // Four codes are at most 32 bits, in one word or across two.
    let bit = 4u * BITS * index;
    let word = at + bit / 32u;
    let shift = bit % 32u;
    var window = words[word] >> shift;
    if (shift + 4u * BITS > 32u) {
        window |= words[word + 1u] << (32u - shift);
    }
    return codes_of(window);
}

fn parameter(base: u32, index: u32) -> f32 {
    if (SCALES == 2u) {
        return bitcast<f32>(words[base + index]);
    }
    let pair = words[base + index / 2u];
    let half = (pair >> (16u * (index % 2u))) & 0xffffu;
    if (SCALES == 1u) {
        return unpack2x16float(half).x;
    }
    return bitcast<f32>(half << 16u);
}

fn unit_of(base: Base, row: u32, unit: u32) -> Unit {
    let index = row * params.units + unit;
    let group = index / (GROUP / 32u);
    let scale = parameter(base.scales, group);
    let bias = parameter(base.biases, group);
    var out: Unit;
    out.scale = vec2<f32>(scale);
    out.bias = vec2<f32>(bias);
    if (BITS == 4u) {
        let w = quads[base.codes / 4u + index];
        out.q = array<vec4<f32>, 8>(
            codes_of(w.x), codes_of(w.x >> 16u), codes_of(w.y), codes_of(w.y >> 16u),
            codes_of(w.z), codes_of(w.z >> 16u), codes_of(w.w), codes_of(w.w >> 16u),
        );
    } else if (BITS == 8u) {
        let low = quads[base.codes / 4u + 2u * index];
        let high = quads[base.codes / 4u + 2u * index + 1u];
        out.q = array<vec4<f32>, 8>(
            codes_of(low.x), codes_of(low.y), codes_of(low.z), codes_of(low.w),
            codes_of(high.x), codes_of(high.y), codes_of(high.z), codes_of(high.w),
        );
    } else {
        let at = base.codes + index * BITS;
        out.q = array<vec4<f32>, 8>(
            quad(at, 0u), quad(at, 1u), quad(at, 2u), quad(at, 3u),
            quad(at, 4u), quad(at, 5u), quad(at, 6u), quad(at, 7u),
        );
    }
    return out;
}

const BIASED: bool = true;

fn half_of(base: Base, row: u32, unit: u32, part: u32) -> Half {
    let index = row * params.units + unit;
    let group = index / (GROUP / 32u);
    var out: Half;
    out.scale = parameter(base.scales, group);
    out.bias = parameter(base.biases, group);
    if (BITS == 4u) {
        let w = quads[base.codes / 4u + index];
        let codes = select(w.xy, w.zw, part == 1u);
        out.q = array<vec4<f32>, 4>(
            codes_of(codes.x), codes_of(codes.x >> 16u), codes_of(codes.y), codes_of(codes.y >> 16u),
        );
    } else if (BITS == 8u) {
        let codes = quads[base.codes / 4u + 2u * index + part];
        out.q = array<vec4<f32>, 4>(
            codes_of(codes.x), codes_of(codes.y), codes_of(codes.z), codes_of(codes.w),
        );
    } else {
        let at = base.codes + index * BITS;
        let first = 4u * part;
        out.q = array<vec4<f32>, 4>(quad(at, first), quad(at, first + 1u), quad(at, first + 2u), quad(at, first + 3u));
    }
    return out;
}
