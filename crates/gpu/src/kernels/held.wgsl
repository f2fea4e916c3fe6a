// What is held of x in memory of the workgroup, as the products need it: floats, or with HOLDS_BYTES = 1 eight bits.

// A unit is eight quads of floats, with a ninth for the sums of both halves (ARE_SUMMED); or two of bytes, with a
// third for their scale and for that times their sum: `quantize.wgsl` writes this form, and `gemm_bytes.wgsl` copies
// it. An odd number keeps the lanes' reads out of each other's way.
const UNIT_QUADS: u32 = select(9u, 3u, HOLDS_BYTES == 1u);
