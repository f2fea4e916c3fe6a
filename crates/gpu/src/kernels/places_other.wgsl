// Codes stand in other places than those that x was scaled for.

fn unit_in_place(base: Base, row: u32, unit: u32) -> Unit {
    var w = unit_of(base, row, unit);
    for (var i = 0u; i < 8u; i++) {
        w.q[i] *= PLACES / HELD_PLACES;
    }
    return w;
}
