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

@group(0) @binding(0) var<storage, read> query: array<f32>;
@group(0) @binding(1) var<storage, read> key: array<f32>;
@group(0) @binding(2) var<storage, read> value: array<f32>;
@group(0) @binding(3) var<storage, read> query_norm: array<f32>;
@group(0) @binding(4) var<storage, read> key_norm: array<f32>;
// (positions, HALF_TURNED): cosine and sine.
@group(0) @binding(5) var<storage, read> angles: array<vec2<f32>>;
// (rows, N_HEADS, HEAD_DIM).
@group(0) @binding(6) var<storage, read_write> prepared: array<vec4<f32>>;
// (positions, keys and values, N_KV_HEADS, HEAD_DIM) in halves.
@group(0) @binding(7) var<storage, read_write> cache: array<vec2<u32>>;
var<immediate> params: Params;

const CHUNKS: u32 = HEAD_DIM / 4u;

// Heads in order: queries, keys, values.
fn projected(head: u32, row: u32, d: u32) -> f32 {
    if (head < N_HEADS) {
        return query[(row * N_HEADS + head) * QUERY_WIDTH + d];
    }
    let kv_head = (head - N_HEADS) % N_KV_HEADS;
    let at = (row * N_KV_HEADS + kv_head) * HEAD_DIM + d;
    if (head < N_HEADS + N_KV_HEADS) {
        return key[at];
    }
    return value[at];
}

fn normed(head: u32, row: u32, d: u32, scale: f32) -> f32 {
    let x = projected(head, row, d) * scale;
    if (head < N_HEADS) {
        return x * query_norm[d];
    }
    return x * key_norm[d];
}

// A dimension of a head, normed and turned. `angle` is where the angles of the row begin.
fn turned(head: u32, row: u32, d: u32, scale: f32, angle: u32) -> f32 {
    let x = normed(head, row, d, scale);
    if (d >= TURNED) {
        return x;
    }
    let turn = angles[angle + d % HALF_TURNED];
    if (d < HALF_TURNED) {
        return fma(x, turn.x, -(normed(head, row, d + HALF_TURNED, scale) * turn.y));
    }
    return fma(x, turn.x, normed(head, row, d - HALF_TURNED, scale) * turn.y);
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    // Teams without a head do what the last one does, for all must take part in sums.
    let head = min(entry.group.x * (WORKGROUP / 8u) + me.team, N_HEADS + 2u * N_KV_HEADS - 1u);
    let index = entry.group.y;
    let row = params.row + index;
    var squares = 0.0;
    for (var d = me.lane; d < HEAD_DIM; d += 8u) {
        let x = projected(head, row, d);
        squares = fma(x, x, squares);
    }
    let mean = team_sum(entry, squares) / f32(HEAD_DIM);
    let scale = 1.0 / sqrt(mean + params.eps);
    let angle = (params.angle + index) * HALF_TURNED;
    let is_value = head >= N_HEADS + N_KV_HEADS;
    for (var chunk = me.lane; chunk < CHUNKS; chunk += 8u) {
        var x: vec4<f32>;
        for (var i = 0u; i < 4u; i++) {
            let d = 4u * chunk + i;
            if (is_value) {
                x[i] = projected(head, row, d);
            } else {
                x[i] = turned(head, row, d, scale, angle);
            }
        }
        if (head < N_HEADS) {
            prepared[(index * N_HEADS + head) * CHUNKS + chunk] = x * params.scale;
        } else {
            // Keys of all heads come first, then values.
            let place = (params.place + index) * 2u * N_KV_HEADS + head - N_HEADS;
            cache[place * CHUNKS + chunk] = vec2<u32>(pack_half(x.xy), pack_half(x.zw));
        }
    }
}
