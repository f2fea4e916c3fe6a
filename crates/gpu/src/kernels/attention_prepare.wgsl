// Before attention: a team of lanes norms and turns a head of a row, or only rounds a value head. Queries
// go, scaled, to working memory; keys and values to their place in the cache.
//
// N_HEADS, N_KV_HEADS, HEAD_DIM, QUERY_WIDTH: shape of a row. TURNED: leading dimensions that are turned;
// HALF_TURNED: their half, at least 1.

struct Params {
    // First row of the batch.
    row: u32,
    // Where in its chunk of the cache the first row goes.
    place: u32,
    // Where in the table of angles its position is.
    angle: u32,
    eps: f32,
    // What queries are multiplied by.
    scale: f32,
}

@group(0) @binding(0) var<storage, read> query: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> key: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> value: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> query_norm: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> key_norm: array<vec4<f32>>;
// (positions, HALF_TURNED): cosine and sine.
@group(0) @binding(5) var<storage, read> angles: array<vec2<f32>>;
// (rows, N_HEADS, HEAD_DIM).
@group(0) @binding(6) var<storage, read_write> prepared: array<vec4<f32>>;
// (positions, keys and values, N_KV_HEADS, HEAD_DIM) in halves.
@group(0) @binding(7) var<storage, read_write> cache: array<vec2<u32>>;
var<immediate> params: Params;

const TEAMS: u32 = WORKGROUP / 8u;
// A chunk is four dimensions; those of a lane, and those of them that may be turned.
const CHUNKS: u32 = HEAD_DIM / 4u;
const LANE_CHUNKS: u32 = (CHUNKS + 7u) / 8u;
const TURNED_CHUNKS: u32 = (TURNED + 31u) / 32u;

// Heads of the teams, normed.
var<workgroup> normed: array<vec4<f32>, TEAMS * CHUNKS>;

// Heads in order: queries, keys, values.
fn projected(head: u32, row: u32, chunk: u32) -> vec4<f32> {
    if (head < N_HEADS) {
        return query[(row * N_HEADS + head) * (QUERY_WIDTH / 4u) + chunk];
    }
    let kv_head = (head - N_HEADS) % N_KV_HEADS;
    let at = (row * N_KV_HEADS + kv_head) * CHUNKS + chunk;
    if (head < N_HEADS + N_KV_HEADS) {
        return key[at];
    }
    return value[at];
}

// A dimension of a team's head, which is turned with the one that is half as far again.
fn turned(team: u32, d: u32, turn: vec2<f32>) -> f32 {
    let first = team * HEAD_DIM;
    let is_first = d < HALF_TURNED;
    let partner = first + select(d - HALF_TURNED, d + HALF_TURNED, is_first);
    let other = normed[partner / 4u][partner % 4u] * turn.y;
    let at = first + d;
    return fma(normed[at / 4u][at % 4u], turn.x, select(other, -other, is_first));
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    // Teams without a head do what the last one does, for all must take part in sums.
    let head = min(entry.group.x * TEAMS + me.team, N_HEADS + 2u * N_KV_HEADS - 1u);
    let index = entry.group.y;
    let row = params.row + index;
    let is_value = head >= N_HEADS + N_KV_HEADS;
    // All that is read is on its way before any of it is needed.
    var x: array<vec4<f32>, LANE_CHUNKS>;
    var weight: array<vec4<f32>, LANE_CHUNKS>;
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = 8u * i + me.lane;
        x[i] = vec4<f32>();
        weight[i] = vec4<f32>(1.0);
        if (chunk < CHUNKS) {
            x[i] = projected(head, row, chunk);
            if (head < N_HEADS) {
                weight[i] = query_norm[chunk];
            } else if (!is_value) {
                weight[i] = key_norm[chunk];
            }
        }
    }
    let angle = (params.angle + index) * HALF_TURNED;
    var turns: array<array<vec2<f32>, 4>, TURNED_CHUNKS + 1u>;
    for (var i = 0u; i < TURNED_CHUNKS; i++) {
        for (var j = 0u; j < 4u; j++) {
            turns[i][j] = angles[angle + (4u * (8u * i + me.lane) + j) % HALF_TURNED];
        }
    }

    var squares = vec4<f32>();
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        squares = fma(x[i], x[i], squares);
    }
    let mean = team_sum(entry, (squares.x + squares.y) + (squares.z + squares.w)) / f32(HEAD_DIM);
    let scale = 1.0 / sqrt(mean + params.eps);
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = 8u * i + me.lane;
        if (!is_value) {
            x[i] = x[i] * scale * weight[i];
        }
        if (chunk < CHUNKS) {
            normed[me.team * CHUNKS + chunk] = x[i];
        }
    }
    workgroupBarrier();

    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = 8u * i + me.lane;
        if (i < TURNED_CHUNKS && !is_value) {
            for (var j = 0u; j < 4u; j++) {
                let d = 4u * chunk + j;
                if (d < TURNED) {
                    x[i][j] = turned(me.team, d, turns[i][j]);
                }
            }
        }
        if (chunk >= CHUNKS) {
            continue;
        }
        if (head < N_HEADS) {
            prepared[(index * N_HEADS + head) * CHUNKS + chunk] = x[i] * params.scale;
        } else {
            // Keys of all heads come first, then values.
            let place = (params.place + index) * 2u * N_KV_HEADS + head - N_HEADS;
            cache[place * CHUNKS + chunk] = vec2<u32>(pack_half(x[i].xy), pack_half(x[i].zw));
        }
    }
}
