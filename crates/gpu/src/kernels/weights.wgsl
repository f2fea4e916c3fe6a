// Weights of one matrix or of many experts in one buffer, seen as words and as quads of words.

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> quads: array<vec4<u32>>;

// Where the parts of a matrix begin, in words; codes at a multiple of four.
struct Base {
    codes: u32,
    scales: u32,
    biases: u32,
}

// A unit is 32 neighbouring weights of a row: what a lane takes at a time. This is one as it is stored; each format
// says which quads hold what, and those that it has no use for are never written.
alias Stored = array<vec4<u32>, STORED_QUADS>;

// Signed bytes of one half of a unit, the lower (part 0) or the upper (part 1) sixteen weights, which are
// `scale * byte + bias`. Where bytes lie apart in a word, they are left as they lie: byte i of word k is weight
// `k / ORDER * 4 * ORDER + k % ORDER + ORDER * i`, and the other factor is put in that order once, for all rows. Each
// format says its ORDER, and by BIASED whether it has biases.
struct Bytes {
    bytes: vec4<u32>,
    scale: f32,
    bias: f32,
}

// The same sixteen as numbers in their own order, `scale * q + bias`.
struct Half {
    q: array<vec4<f32>, 4>,
    scale: f32,
    bias: f32,
}

// The sum of four, in one order.
fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
