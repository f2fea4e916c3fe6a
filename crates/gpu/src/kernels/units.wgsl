// A unit of one format times those of x. Where there are two formats, this stands behind the text of each.

// The unit times that of each row of x, `unit` of those that are held, added to sums from `first` on.
fn add_unit_of(stored: Stored, index: u32, unit: u32, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    let low = half_in_place(stored, index, 0u);
    let high = half_in_place(stored, index, 1u);
    for (var j = 0u; j < N_X; j++) {
        let at = (j * TILE + unit) * UNIT_QUADS;
        let x_sums = held[at + 8u].xy;
        let x_low = array<vec4<f32>, 4>(held[at], held[at + 1u], held[at + 2u], held[at + 3u]);
        let x_high = array<vec4<f32>, 4>(held[at + 4u], held[at + 5u], held[at + 6u], held[at + 7u]);
        let sum = multiply(low, x_low, x_sums.x, (*sums)[first + j]);
        (*sums)[first + j] = multiply(high, x_high, x_sums.y, sum);
    }
}
