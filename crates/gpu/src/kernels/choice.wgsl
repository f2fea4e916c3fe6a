// The TOP_K largest logits of a row, in order, of equals the one with the lower index first; weighted by
// their softmax, renormalised over the chosen ones with NORMALISE. A workgroup chooses for a row.

const MOST: u32 = 1024u;
// Parts that the softmax is summed in: one order of additions, however many lanes there are.
const PARTS: u32 = 128u;
// Quads that are compared at a time.
const STEP: u32 = 4u;

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

fn key_at(expert: u32) -> u32 {
    return keys[min(expert, MOST - 1u) / 4u][expert % 4u];
}

// Which of four logits come before a key: equals do, too, where their index is lower.
fn earlier(four: vec4<u32>, key: u32, is_lower: bool) -> vec4<u32> {
    return select(vec4<u32>(0u), vec4<u32>(1u), four > vec4<u32>(key - u32(is_lower)));
}

// Puts an expert where it belongs, when those are counted that come before its four.
fn place(expert: u32, key: u32, before: vec4<u32>) {
    var rank = (before.x + before.y) + (before.z + before.w);
    for (var i = 0u; i < expert % 4u; i++) {
        rank += u32(keys[expert / 4u][i] == key);
    }
    if (rank < TOP_K) {
        ids[rank] = expert;
    }
}

// Leaves the chosen experts of a row of so many logits in `ids`.
fn choose(local: u32, row: u32, n_experts: u32) {
    // Whole steps, filled up with nothing.
    let n_quads = (n_experts + 4u * STEP - 1u) / (4u * STEP) * STEP;
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
    // Two experts of a lane at a time share what is read.
    for (var expert = local; expert < n_experts; expert += 2u * WORKGROUP) {
        let other = expert + WORKGROUP;
        let key = key_at(expert);
        let other_key = key_at(other);
        var before = vec4<u32>();
        var before_other = vec4<u32>();
        for (var step = 0u; step < n_quads; step += STEP) {
            for (var i = 0u; i < STEP; i++) {
                let four = keys[step + i];
                before += earlier(four, key, step + i < expert / 4u);
                before_other += earlier(four, other_key, step + i < other / 4u);
            }
        }
        place(expert, key, before);
        if (other < n_experts) {
            place(other, other_key, before_other);
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
