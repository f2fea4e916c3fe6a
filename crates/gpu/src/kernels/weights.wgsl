// Weights of one matrix or of many experts in one buffer, seen as words and as quads of words.

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> quads: array<vec4<u32>>;

// Where the parts of a matrix begin, in words; codes at a multiple of four.
struct Base {
    codes: u32,
    scales: u32,
    biases: u32,
}

// 32 neighbouring weights of a row: `scale * q + bias`, one scale and bias for each half.
struct Unit {
    q: array<vec4<f32>, 8>,
    scale: vec2<f32>,
    bias: vec2<f32>,
}

// The lower or the upper sixteen of them.
struct Half {
    q: array<vec4<f32>, 4>,
    scale: f32,
    bias: f32,
}
