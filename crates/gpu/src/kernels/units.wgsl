// Units of one format times one of x. Where there are two formats, this stands behind the text of each.

// The same unit of the first n_rows of a team's rows, times that of each row of x, `unit` of those that are held. What is
// held is read once for all rows of W.
fn add_units_of(stored: array<Stored, N_ROWS>, at: array<u32, N_ROWS>, n_rows: u32, unit: u32, sums: ptr<function, array<f32, SUMS>>) {
    //: each p
    if ($pu < PIECES) {
        //: each r
        var w_$r: Weights;
        if ($ru < n_rows) {
            w_$r = weights_of(stored[$r], at[$r], $pu);
        }
        //: end
        for (var j = 0u; j < N_X; j++) {
            let x = held_of(j * TILE + unit, $pu);
            //: each r
            if ($ru < n_rows) {
                (*sums)[$ru * N_X + j] = multiply(w_$r, x, (*sums)[$ru * N_X + j]);
            }
            //: end
        }
    }
    //: end
}
