// Units of one format times those of x. Where there are two formats, this stands behind the text of each.

fn add_units_of(base: Base, units: Units, first: u32, sums: ptr<function, array<f32, SUMS>>) {
    if (AHEAD == 1u) {
        add_products(unit_in_place(base, units.row, units.tile + units.unit), units.unit, true, first, sums);
    } else {
        let next = min(units.unit + 8u, units.width - 1u);
        let a = unit_in_place(base, units.row, units.tile + units.unit);
        let b = unit_in_place(base, units.row, units.tile + next);
        add_products(a, units.unit, true, first, sums);
        add_products(b, next, units.unit + 8u < units.width, first, sums);
    }
}
