// The largest of the first values of a row, of equals the first as `compute::best` has it, and whether all of the row are finite. A
// workgroup takes a part of a row; the host finds the best of the parts.

struct Params {
    // Values of a row, how many of them are to choose from, and how many are a part.
    width: u32,
    n: u32,
    share: u32,
}

var<immediate> params: Params;

// Bits of the values.
@group(0) @binding(0) var<storage, read> x: array<u32>;
// (rows, parts): the key of the best, zero if there is none, and its column.
@group(0) @binding(1) var<storage, read_write> best: array<vec2<u32>>;

const LANES: u32 = 256u;
const EXPONENT: u32 = 0x7f800000u;
const NOT_FINITE: u32 = 0xffffffffu;

var<workgroup> found: array<vec2<u32>, LANES>;

// Finite numbers in the order of their values, as integers from 1; both zeros are equal.
fn key_of(bits: u32) -> u32 {
    let value = select(bits, 0u, bits == 0x80000000u);
    return value ^ select(0x80000000u, 0xffffffffu, value >= 0x80000000u);
}

// The key of what is not finite is more than all others.
fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let begin = group.x * params.share;
    let end = min(begin + params.share, params.width);
    var mine = vec2<u32>(0u, params.width);
    for (var column = begin + local; column < end; column += LANES) {
        let bits = x[group.y * params.width + column];
        var key = key_of(bits);
        if ((bits & EXPONENT) == EXPONENT) {
            key = NOT_FINITE;
        } else if (column >= params.n) {
            key = 0u;
        }
        mine = better(mine, vec2<u32>(key, column));
    }
    found[local] = mine;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (local < step) {
            found[local] = better(found[local], found[local + step]);
        }
    }
    if (local == 0u) {
        best[group.y * groups.x + group.x] = found[0];
    }
}
