// Rows of x in memory of the workgroup, as the products need them: HOLDS_NUMBERS as floats, HOLDS_BYTES in eight bits.

// A unit is eight quads of floats, with a ninth for the sums of both halves (ARE_SUMMED), or two of bytes, with a third for their
// scale and their sum times that. An odd number keeps the lanes' reads out of each other's way.
const BYTES_AT: u32 = select(0u, 8u, HOLDS_NUMBERS);
const UNIT_QUADS: u32 = select(9u, BYTES_AT + 3u, HOLDS_BYTES);

