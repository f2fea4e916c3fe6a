// Codes stand in other places than those that x was scaled for.

fn half_in_place(stored: Stored, index: u32, part: u32) -> Half {
    var w = half_of(stored, index, part);
    for (var i = 0u; i < 4u; i++) {
        w.q[i] *= PLACES / HELD_PLACES;
    }
    return w;
}
