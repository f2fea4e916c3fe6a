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

const BIASED: bool = true;

// The word with the scale or bias of a group, and what it says.
fn parameter_word(base: u32, group: u32) -> u32 {
    return words[base + group / select(2u, 1u, SCALES == 2u)];
}

fn parameter(word: u32, group: u32) -> f32 {
    if (SCALES == 2u) {
        return bitcast<f32>(word);
    }
    let half = (word >> (16u * (group % 2u))) & 0xffffu;
    if (SCALES == 1u) {
        return unpack2x16float(half).x;
    }
    return bitcast<f32>(half << 16u);
}

// The words of the codes; those with the scale and the bias.
fn read_half(base: Base, index: u32, part: u32) -> Stored {
    var stored: Stored;
    if (BITS == 4u) {
        stored[0] = quads[base.codes / 4u + index];
    } else if (BITS == 8u) {
        stored[0] = quads[base.codes / 4u + 2u * index + part];
    } else {
        // From the word that holds the first of them.
        let at = base.codes + index * BITS + part * (BITS / 2u);
        stored[0].x = words[at];
        if (BITS > 2u) {
            stored[0].y = words[at + 1u];
        }
        if (BITS > 3u) {
            stored[0].z = words[at + 2u];
        }
    }
    let group = index / (GROUP / 32u);
    stored[1].x = parameter_word(base.scales, group);
    stored[1].y = parameter_word(base.biases, group);
    return stored;
}

// Four codes are at most 32 bits, in one word or across two.
fn quad(codes: vec4<u32>, index: u32) -> vec4<f32> {
    let bit = 4u * BITS * index;
    let word = bit / 32u;
    let shift = bit % 32u;
    var window = codes[word] >> shift;
    if (shift + 4u * BITS > 32u) {
        window |= codes[word + 1u] << (32u - shift);
    }
    return codes_of(window);
}

fn half_of(stored: Stored, index: u32, part: u32) -> Half {
    var codes = stored[0];
    if (BITS == 4u) {
        codes = select(codes, codes.zwxy, part == 1u);
    }
    if (BITS == 3u || BITS == 5u) {
        // An upper half begins in the middle of a word.
        codes = select(codes, (codes >> vec4<u32>(16u)) | (codes.yzwx << vec4<u32>(16u)), part == 1u);
    }
    let group = index / (GROUP / 32u);
    let q = array<vec4<f32>, 4>(quad(codes, 0u), quad(codes, 1u), quad(codes, 2u), quad(codes, 3u));
    return Half(q, parameter(stored[1].x, group), parameter(stored[1].y, group));
}
