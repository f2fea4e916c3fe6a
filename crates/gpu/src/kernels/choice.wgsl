// The TOP_K largest logits of a row, in order, of equals the one with the lower index first; weighted by
// their softmax, renormalised over the chosen ones with NORMALISE. A workgroup chooses for a row.

const MOST: u32 = 1024u;
// Parts that the softmax is summed in: one order of additions, however many lanes there are.
const PARTS: u32 = 128u;

// Logits in order as integers, four at a time, filled up with zeros.
var<workgroup> keys: array<vec4<u32>, MOST / 4u>;
var<workgroup> ids: array<u32, TOP_K>;
// Parts of the softmax's sum; after it the shares of the chosen ones.
var<workgroup> shares: array<f32, PARTS + TOP_K>;

// Floats in the order of their values, as integers from 1.
fn key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return max(bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u), 1u);
}

fn value_of(expert: u32) -> f32 {
    let key = keys[expert / 4u][expert % 4u];
    return bitcast<f32>(key ^ select(0xffffffffu, 0x80000000u, key >= 0x80000000u));
}

// Leaves the chosen experts of a row of so many logits in `ids`.
fn choose(local: u32, row: u32, n_experts: u32) {
    let n_quads = (n_experts + 3u) / 4u;
    for (var quad = local; quad < n_quads; quad += WORKGROUP) {
        var four = vec4<u32>();
        for (var i = 0u; i < 4u; i++) {
            let expert = 4u * quad + i;
            if (expert < n_experts) {
                four[i] = key_of(logits[row * n_experts + expert]);
            }
        }
        keys[quad] = four;
    }
    workgroupBarrier();
    for (var expert = local; expert < n_experts; expert += WORKGROUP) {
        let own = expert / 4u;
        let key = keys[own][expert % 4u];
        var before = vec4<u32>();
        for (var quad = 0u; quad < n_quads; quad++) {
            // Equals with a lower index come first, too.
            let least = vec4<u32>(key - u32(quad < own));
            before += select(vec4<u32>(0u), vec4<u32>(1u), keys[quad] > least);
        }
        for (var i = 0u; i < expert % 4u; i++) {
            before.x += u32(keys[own][i] == key);
        }
        let rank = (before.x + before.y) + (before.z + before.w);
        if (rank < TOP_K) {
            ids[rank] = expert;
        }
    }
    workgroupBarrier();
}

// Leaves the softmax of the chosen ones before its division in `shares`, and gives its sum.
fn weigh(local: u32, n_experts: u32) -> f32 {
    let best = value_of(ids[0]);
    var sum = 0.0;
    if (!NORMALISE) {
        for (var part = local; part < PARTS; part += WORKGROUP) {
            var share = 0.0;
            for (var expert = part; expert < n_experts; expert += PARTS) {
                share += exp(value_of(expert) - best);
            }
            shares[part] = share;
        }
        for (var step = PARTS / 2u; step > 0u; step /= 2u) {
            workgroupBarrier();
            for (var part = local; part < step; part += WORKGROUP) {
                shares[part] += shares[part + step];
            }
        }
        workgroupBarrier();
        sum = shares[0];
        workgroupBarrier();
    }
    for (var rank = local; rank < TOP_K; rank += WORKGROUP) {
        shares[rank] = exp(value_of(ids[rank]) - best);
    }
    workgroupBarrier();
    if (NORMALISE) {
        for (var rank = 0u; rank < TOP_K; rank++) {
            sum += shares[rank];
        }
    }
    return sum;
}

// Tells of the chosen expert of a rank, as `chosen` and `items` are read. `uses` is the number of all.
fn tell(row: u32, rank: u32, sum: f32, uses: u32) {
    let use_index = row * TOP_K + rank;
    chosen[use_index] = ids[rank];
    chosen[uses + use_index] = bitcast<u32>(shares[rank] / sum);
    items[3u * use_index] = ids[rank];
    items[3u * use_index + 1u] = 1u;
    items[3u * use_index + 2u] = use_index;
}
