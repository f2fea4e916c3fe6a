// Half a unit of weights times that of x, whose sum is `x_sum`, added to `sum`; by the group sums of MLX's identity,
// sum((s q + b) x) = s sum(q x) + b sum(x). Sums begin with a zero that a compiler does not know, so that it has no choice of
// which product to round: see `delta_net.rs`.
fn multiply(w: Half, x: array<vec4<f32>, 4>, x_sum: f32, sum: f32) -> f32 {
    var products = fma(w.q[0], x[0], vec4<f32>(params.zero));
    products = fma(w.q[1], x[1], products);
    products = fma(w.q[2], x[2], products);
    products = fma(w.q[3], x[3], products);
    // What is left out where all biases are zero would add zero.
    var biased = sum;
    if (BIASED) {
        biased = fma(w.bias, x_sum, sum);
    }
    return fma(w.scale, total(products), biased);
}
