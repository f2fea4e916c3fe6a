// Attention of a tile of queries that share a key head to the positions of some segments.
//
// A workgroup takes QUERIES queries: the query heads of a key head, row after row. Segment by segment a team
// of lanes computes the scores of KEYS keys for all queries of the tile; a softmax follows; then lanes weight
// values, each for four dimensions of all queries. Segments are at fixed positions and merged in order, so
// that a result does not depend on what else is computed, nor on QUERIES and KEYS. For `each k` see `kernel.rs`.
//
// N_HEADS, N_KV_HEADS, HEAD_DIM: shape. QUERIES: of a tile, at most WORKGROUP / 8. SEGMENT: positions.
// KEY_GROUPS: groups of HEAD_DIM / 4 lanes that share the values of a segment.

struct Params {
    // Rows, and the position of the first.
    rows: u32,
    position: u32,
    // Positions that the chunk of the cache holds: the first, and the one after the last.
    begin: u32,
    end: u32,
    // Positions of a workgroup, a multiple of SEGMENT.
    share: u32,
    // Where partial results of the first workgroup go.
    slot: u32,
    // Whether what is there already is continued.
    resume: u32,
    zero: f32,
}

@group(0) @binding(0) var<storage, read> prepared: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> cache: array<vec2<u32>>;
// (slots, rows, N_HEADS, HEAD_DIM).
@group(0) @binding(2) var<storage, read_write> partial_sums: array<vec4<f32>>;
// (slots, rows, N_HEADS): the largest score and the total.
@group(0) @binding(3) var<storage, read_write> partial_totals: array<vec2<f32>>;
var<immediate> params: Params;

const GROUP: u32 = N_HEADS / N_KV_HEADS;
// A chunk is four dimensions.
const CHUNKS: u32 = HEAD_DIM / 4u;
const LANE_CHUNKS: u32 = (CHUNKS + 7u) / 8u;
const TEAMS: u32 = WORKGROUP / 8u;
// Keys of which a lane reads the values before it uses them: reads take long, and several are as quick as one.
const AHEAD: u32 = 8u;
// Chunks of all queries that a lane merges.
const OWN: u32 = (QUERIES * CHUNKS + WORKGROUP - 1u) / WORKGROUP;

// Queries of the tile; once scores are known, weighted values.
var<workgroup> tile: array<vec4<f32>, QUERIES * CHUNKS>;
// (SEGMENT, QUERIES): scores, then weights.
var<workgroup> scores: array<f32, SEGMENT * QUERIES>;
// Of eight lanes for each query.
var<workgroup> lane_largest: array<f32, QUERIES * 8u>;
var<workgroup> lane_totals: array<f32, QUERIES * 8u>;

fn unpacked(halves: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(halves.x), unpack2x16float(halves.y));
}

// Where in the partial results a query of the tile is.
fn place(slot: u32, query: u32, kv_head: u32) -> u32 {
    return (slot * params.rows + query / GROUP) * N_HEADS + kv_head * GROUP + query % GROUP;
}

// What a lane reads of a key, or of nothing.
fn load_key(record: u32, lane: u32, exists: bool) -> array<vec2<u32>, LANE_CHUNKS> {
    var x: array<vec2<u32>, LANE_CHUNKS>;
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = i * 8u + lane;
        x[i] = vec2<u32>();
        if (exists && chunk < CHUNKS) {
            x[i] = cache[record * CHUNKS + chunk];
        }
    }
    return x;
}

fn largest_of(query: u32) -> f32 {
    var largest = NOTHING;
    for (var i = 0u; i < 8u; i++) {
        largest = max(largest, lane_largest[query * 8u + i]);
    }
    return largest;
}

fn total_of(query: u32) -> f32 {
    var total = 0.0;
    for (var i = 0u; i < 8u; i++) {
        total += lane_totals[query * 8u + i];
    }
    return total;
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    let local = entry.local;
    let kv_head = entry.group.z;
    let n_queries = params.rows * GROUP;
    // The last tiles see most positions: they come first.
    let first = ((n_queries + QUERIES - 1u) / QUERIES - 1u - entry.group.y) * QUERIES;
    // Positions that some query of the tile sees.
    let seen = params.position + (min(first + QUERIES, n_queries) - 1u) / GROUP + 1u;
    let share_begin = params.begin + entry.group.x * params.share;
    let share_end = min(min(share_begin + params.share, params.end), seen);
    let slot = params.slot + entry.group.x;
    if (share_begin >= share_end) {
        return;
    }

    var whole: array<Partial, OWN>;
    for (var i = 0u; i < OWN; i++) {
        whole[i] = Partial(NOTHING, 0.0, vec4<f32>());
        let at = i * WORKGROUP + local;
        let query = first + at / CHUNKS;
        if (params.resume != 0u && at < QUERIES * CHUNKS && query < n_queries) {
            let source = place(slot, query, kv_head);
            let totals = partial_totals[source];
            whole[i] = Partial(totals.x, totals.y, partial_sums[source * CHUNKS + at % CHUNKS]);
        }
    }

    for (var begin = share_begin; begin < share_end; begin += SEGMENT) {
        let n_keys = min(SEGMENT, share_end - begin);
        // The first record of the segment; those of a position are the keys and the values.
        let records = (begin - params.begin) * 2u;
        //: each k
        let first_key_$k = $ku * TEAMS + me.team;
        var next_$k = load_key((records + 2u * first_key_$k) * N_KV_HEADS + kv_head, me.lane, first_key_$k < n_keys);
        //: end
        for (var at = local; at < QUERIES * CHUNKS; at += WORKGROUP) {
            let query = first + at / CHUNKS;
            var x = vec4<f32>();
            if (query < n_queries) {
                x = prepared[place(0u, query, kv_head) * CHUNKS + at % CHUNKS];
            }
            tile[at] = x;
        }
        workgroupBarrier();

        // Scores: KEYS keys for each team. The next ones are read while these are computed.
        for (var step = 0u; step < n_keys; step += KEYS * TEAMS) {
            //: each k
            let key_$k = step + first_key_$k;
            var x_$k: array<vec4<f32>, LANE_CHUNKS>;
            for (var i = 0u; i < LANE_CHUNKS; i++) {
                x_$k[i] = unpacked(next_$k[i]);
            }
            let next_key_$k = key_$k + KEYS * TEAMS;
            next_$k = load_key((records + 2u * next_key_$k) * N_KV_HEADS + kv_head, me.lane, next_key_$k < n_keys);
            //: end
            for (var query = 0u; query < QUERIES; query++) {
                //: each k
                var sums_$k = vec4<f32>();
                //: end
                for (var i = 0u; i < LANE_CHUNKS; i++) {
                    let values = tile[query * CHUNKS + min(i * 8u + me.lane, CHUNKS - 1u)];
                    //: each k
                    sums_$k = fma(x_$k[i], values, sums_$k);
                    //: end
                }
                //: each k
                let score_$k = team_sum(entry, (sums_$k.x + sums_$k.y) + (sums_$k.z + sums_$k.w));
                if (me.lane == query % 8u && key_$k < n_keys) {
                    scores[key_$k * QUERIES + query] = score_$k;
                }
                //: end
            }
        }
        workgroupBarrier();

        // Weights: eight lanes for each query.
        let query = local / 8u;
        var visible = 0u;
        if (query < QUERIES && first + query < n_queries) {
            let end = params.position + (first + query) / GROUP + 1u;
            visible = min(max(end, begin) - begin, n_keys);
        }
        if (query < QUERIES) {
            var largest = NOTHING;
            for (var key = local % 8u; key < visible; key += 8u) {
                largest = max(largest, scores[key * QUERIES + query]);
            }
            lane_largest[local] = largest;
        }
        workgroupBarrier();
        if (query < QUERIES) {
            let largest = largest_of(query);
            var total = 0.0;
            for (var key = local % 8u; key < SEGMENT; key += 8u) {
                // Positions after the query's own weigh nothing.
                var weight = 0.0;
                if (key < visible) {
                    weight = exp(scores[key * QUERIES + query] - largest);
                }
                scores[key * QUERIES + query] = weight;
                total += weight;
            }
            lane_totals[local] = total;
        }
        workgroupBarrier();

        // Weighted values: a lane takes four dimensions of some keys for all queries.
        let key_group = local / CHUNKS;
        let chunk = local % CHUNKS;
        var sums: array<vec4<f32>, QUERIES>;
        for (var i = 0u; i < QUERIES; i++) {
            sums[i] = vec4<f32>();
        }
        if (key_group < KEY_GROUPS) {
            for (var step = key_group; step < n_keys; step += AHEAD * KEY_GROUPS) {
                var ahead: array<vec2<u32>, AHEAD>;
                for (var j = 0u; j < AHEAD; j++) {
                    let key = step + j * KEY_GROUPS;
                    ahead[j] = vec2<u32>();
                    if (key < n_keys) {
                        let record = (records + 2u * key + 1u) * N_KV_HEADS + kv_head;
                        ahead[j] = cache[record * CHUNKS + chunk];
                    }
                }
                for (var j = 0u; j < AHEAD; j++) {
                    // Keys that are not there weigh nothing.
                    let key = min(step + j * KEY_GROUPS, SEGMENT - 1u);
                    let x = unpacked(ahead[j]);
                    for (var i = 0u; i < QUERIES; i++) {
                        sums[i] = fma(vec4<f32>(scores[key * QUERIES + i]), x, sums[i]);
                    }
                }
            }
        }
        for (var group = 0u; group < KEY_GROUPS; group++) {
            if (key_group == group) {
                for (var i = 0u; i < QUERIES; i++) {
                    if (group == 0u) {
                        tile[i * CHUNKS + chunk] = sums[i];
                    } else {
                        tile[i * CHUNKS + chunk] += sums[i];
                    }
                }
            }
            workgroupBarrier();
        }

        for (var i = 0u; i < OWN; i++) {
            let at = i * WORKGROUP + local;
            if (at < QUERIES * CHUNKS) {
                let owner = at / CHUNKS;
                whole[i] = merged(whole[i], Partial(largest_of(owner), total_of(owner), tile[at]), params.zero);
            }
        }
        workgroupBarrier();
    }

    for (var i = 0u; i < OWN; i++) {
        let at = i * WORKGROUP + local;
        let query = first + at / CHUNKS;
        if (at < QUERIES * CHUNKS && query < n_queries) {
            let to = place(slot, query, kv_head);
            partial_sums[to * CHUNKS + at % CHUNKS] = whole[i].sums;
            if (at % CHUNKS == 0u) {
                partial_totals[to] = vec2<f32>(whole[i].largest, whole[i].total);
            }
        }
    }
}
