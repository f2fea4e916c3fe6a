// MLX affine codes of BITS bits, one scale and bias for each GROUP columns, `w = scale * q + bias`; scales
// and biases are bf16, f16 or f32 (SCALES = 0, 1, 2).

fn quad(at: u32, index: u32) -> vec4<f32> {
    // Four codes are at most 32 bits, in one word or across two.
    let bit = 4u * BITS * index;
    let word = at + bit / 32u;
    let shift = bit % 32u;
    var window = words[word] >> shift;
    if (shift + 4u * BITS > 32u) {
        window |= words[word + 1u] << (32u - shift);
    }
    let codes = (vec4<u32>(window) >> vec4<u32>(0u, BITS, 2u * BITS, 3u * BITS)) & vec4<u32>((1u << BITS) - 1u);
    return vec4<f32>(codes);
}

fn nibbles(word: u32) -> array<vec4<f32>, 2> {
    let even = unpack4xU8(word & 0x0f0f0f0fu);
    let odd = unpack4xU8((word >> 4u) & 0x0f0f0f0fu);
    return array<vec4<f32>, 2>(
        vec4<f32>(vec4<u32>(even.x, odd.x, even.y, odd.y)),
        vec4<f32>(vec4<u32>(even.z, odd.z, even.w, odd.w)),
    );
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
        let a = nibbles(w.x);
        let b = nibbles(w.y);
        let c = nibbles(w.z);
        let d = nibbles(w.w);
        out.q = array<vec4<f32>, 8>(a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]);
    } else if (BITS == 8u) {
        let low = quads[base.codes / 4u + 2u * index];
        let high = quads[base.codes / 4u + 2u * index + 1u];
        out.q = array<vec4<f32>, 8>(
            vec4<f32>(unpack4xU8(low.x)), vec4<f32>(unpack4xU8(low.y)),
            vec4<f32>(unpack4xU8(low.z)), vec4<f32>(unpack4xU8(low.w)),
            vec4<f32>(unpack4xU8(high.x)), vec4<f32>(unpack4xU8(high.y)),
            vec4<f32>(unpack4xU8(high.z)), vec4<f32>(unpack4xU8(high.w)),
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
        let a = nibbles(codes.x);
        let b = nibbles(codes.y);
        out.q = array<vec4<f32>, 4>(a[0], a[1], b[0], b[1]);
    } else if (BITS == 8u) {
        let codes = quads[base.codes / 4u + 2u * index + part];
        out.q = array<vec4<f32>, 4>(
            vec4<f32>(unpack4xU8(codes.x)), vec4<f32>(unpack4xU8(codes.y)),
            vec4<f32>(unpack4xU8(codes.z)), vec4<f32>(unpack4xU8(codes.w)),
        );
    } else {
        let at = base.codes + index * BITS;
        let first = 4u * part;
        out.q = array<vec4<f32>, 4>(quad(at, first), quad(at, first + 1u), quad(at, first + 2u), quad(at, first + 3u));
    }
    return out;
}
