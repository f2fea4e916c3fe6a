// Weights of one matrix or of many experts in one buffer, seen as words and as quads of words.

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> quads: array<vec4<u32>>;

// Where the parts of a matrix begin, in words; codes at a multiple of four.
struct Base {
    codes: u32,
    scales: u32,
    biases: u32,
}

// A unit is 32 neighbouring weights of a row: what a lane takes at a time. This is one half of it as it is stored; each format
// says which quads hold what, and those that it has no use for are never written.
alias Stored = array<vec4<u32>, STORED_QUADS>;

// The lower (part 0) or the upper (part 1) sixteen of a unit, as numbers: `scale * q * PLACES + bias`. PLACES, which each format says, are
// powers of two: codes become floats where they stand in their word, and whoever multiplies them scales the
// other factor once instead of moving each code. BIASED tells whether a format has biases.
struct Half {
    q: array<vec4<f32>, 4>,
    scale: f32,
    bias: f32,
}

// The sum of four, in one order.
fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// Bits below the 23rd, as the mantissa of 2^23 + bits: two operations of full rate for a code, where extracting and
// converting it takes four or more.
fn as_floats(bits: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits | vec4<u32>(0x4b000000u)) - vec4<f32>(8388608.0);
}

// Four codes in the low bits of bytes.
const PLACES_OF_BYTES = vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625);

fn bytes_as_floats(bytes: u32) -> vec4<f32> {
    let high = bytes >> 16u;
    return as_floats(vec4<u32>(bytes & 0xffu, bytes & 0xff00u, high & 0xffu, high & 0xff00u));
}
