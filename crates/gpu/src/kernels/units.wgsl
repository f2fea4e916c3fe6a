// Units of one format times one of x. Where there are two formats, this stands behind the text of each.

// The same unit of the first n_rows of a team's rows, times that of each row of x, `unit` of those that are held. What is
// held is read once for all rows of W; half a unit is decoded at a time, so that few registers hold it.
fn add_units_of(stored: array<array<Stored, 2>, N_ROWS>, at: array<u32, N_ROWS>, n_rows: u32, unit: u32, sums: ptr<function, array<f32, SUMS>>) {
    //: each p
    {
        //: each r
        var w_$r: Half;
        if ($ru < n_rows) {
            w_$r = half_in_place(stored[$r][$p], at[$r], $pu);
        }
        //: end
        for (var j = 0u; j < N_X; j++) {
            let begin = (j * TILE + unit) * UNIT_QUADS;
            let quad = begin + 4u * $pu;
            let x = array<vec4<f32>, 4>(held[quad], held[quad + 1u], held[quad + 2u], held[quad + 3u]);
            let x_sum = held[begin + 8u][$p];
            //: each r
            if ($ru < n_rows) {
                (*sums)[$ru * N_X + j] = multiply(w_$r, x, x_sum, (*sums)[$ru * N_X + j]);
            }
            //: end
        }
    }
    //: end
}
