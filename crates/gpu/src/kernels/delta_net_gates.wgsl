// What the kernels of a gated delta net share.
//
// N_KEY_HEADS, N_VALUE_HEADS, KEY_DIM, VALUE_DIM: shape. TAPS: of the convolution.

const KEYS: u32 = N_KEY_HEADS * KEY_DIM;
const CHANNELS: u32 = 2u * KEYS + N_VALUE_HEADS * VALUE_DIM;
// Added to the sum of squares when queries and keys are normalised.
const L2_EPS: f32 = 1e-6;

// ln(1 + x) for positive x.
fn log_of_one_and(x: f32) -> f32 {
    if (x > 1.0) {
        return log(1.0 + x);
    }
    // 2 artanh(s): logarithms on a device are poor near one.
    let s = x / (2.0 + x);
    let square = s * s;
    var sum = 1.0 / 15.0;
    sum = fma(sum, square, 1.0 / 13.0);
    sum = fma(sum, square, 1.0 / 11.0);
    sum = fma(sum, square, 1.0 / 9.0);
    sum = fma(sum, square, 1.0 / 7.0);
    sum = fma(sum, square, 1.0 / 5.0);
    sum = fma(sum, square, 1.0 / 3.0);
    sum = fma(sum, square, 1.0);
    return 2.0 * s * sum;
}

// ln(1 + e^x), which is x to all digits from 20 on.
fn softplus(x: f32) -> f32 {
    if (x > 20.0) {
        return x;
    }
    return log_of_one_and(exp(x));
}

// What a state is multiplied by before a row.
fn decay_of(a: f32, a_log: f32, dt_bias: f32) -> f32 {
    return exp(-exp(a_log) * softplus(a + dt_bias));
}
