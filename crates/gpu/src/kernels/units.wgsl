// Units of one format times those of x. Where there are two formats, this stands behind the text of each.

fn add_units_of(base: Base, units: Units, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    let at = units.unit;
    let a = unit_in_place(base, units.row, units.tile + at);
    if (AHEAD == 1u) {
        add_products(a, at, true, first, sums);
        return;
    }
    // Those that are not there are read, and not added.
    let last = units.width - 1u;
    let b = unit_in_place(base, units.row, units.tile + min(at + 8u, last));
    if (AHEAD == 2u) {
        add_products(a, at, true, first, sums);
        add_products(b, min(at + 8u, last), at + 8u <= last, first, sums);
        return;
    }
    let c = unit_in_place(base, units.row, units.tile + min(at + 16u, last));
    let d = unit_in_place(base, units.row, units.tile + min(at + 24u, last));
    add_products(a, at, true, first, sums);
    add_products(b, min(at + 8u, last), at + 8u <= last, first, sums);
    add_products(c, min(at + 16u, last), at + 16u <= last, first, sums);
    add_products(d, min(at + 24u, last), at + 24u <= last, first, sums);
}
