// A gated delta net for one row, whole: a workgroup takes a value head. The arithmetic is that of
// `delta_net_mix.wgsl`, `delta_net_rule.wgsl` and `delta_net_norm.wgsl`, in the same order: the same bits.
//
// TILED: whether value heads that share a key head lie apart.

struct Params {
    // Row of the batch.
    row: u32,
    // Where the history is, and where its successor goes.
    history: u32,
    new_history: u32,
    // What queries are multiplied by.
    scale: f32,
    eps: f32,
    // Zero, which a compiler does not know: see `delta_net.rs`.
    zero: f32,
}

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read_write> history: array<f32>;
@group(0) @binding(2) var<storage, read> conv: array<f32>;
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
@group(0) @binding(5) var<storage, read> a_log: array<f32>;
@group(0) @binding(6) var<storage, read> dt_bias: array<f32>;
// (N_VALUE_HEADS, VALUE_DIM, KEY_DIM).
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> z: array<f32>;
@group(0) @binding(9) var<storage, read> norm: array<f32>;
// (rows, N_VALUE_HEADS, VALUE_DIM).
@group(0) @binding(10) var<storage, read_write> out: array<f32>;
var<immediate> params: Params;

const TEAMS: u32 = WORKGROUP / 8u;
// A chunk is four rows of the state.
const CHUNKS: u32 = KEY_DIM / 4u;
const LANE_CHUNKS: u32 = (CHUNKS + 7u) / 8u;
// Columns of a team.
const TEAM_COLUMNS: u32 = (VALUE_DIM + TEAMS - 1u) / TEAMS;

// The query, the key and the value after the convolution.
var<workgroup> mixed: array<f32, 2u * KEY_DIM + VALUE_DIM>;
var<workgroup> answers: array<f32, VALUE_DIM>;

fn convolved(channel: u32) -> f32 {
    var sum = params.zero;
    for (var tap = 0u; tap < TAPS; tap++) {
        var x: f32;
        if (tap < TAPS - 1u) {
            x = history[params.history + tap * CHANNELS + channel];
        } else {
            x = qkv[params.row * CHANNELS + channel];
        }
        sum = fma(conv[channel * TAPS + tap], x, sum);
    }
    return silu(sum);
}

fn keep_history(channel: u32) {
    for (var i = 0u; i + 1u < TAPS; i++) {
        var x: f32;
        if (i + 2u < TAPS) {
            x = history[params.history + (i + 1u) * CHANNELS + channel];
        } else {
            x = qkv[params.row * CHANNELS + channel];
        }
        history[params.new_history + i * CHANNELS + channel] = x;
    }
}

fn four(at: u32) -> vec4<f32> {
    return vec4<f32>(mixed[at], mixed[at + 1u], mixed[at + 2u], mixed[at + 3u]);
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    let head = entry.group.x;
    const SHARED_BY: u32 = N_VALUE_HEADS / N_KEY_HEADS;
    var key_head = head / SHARED_BY;
    var is_first = head % SHARED_BY == 0u;
    if (TILED != 0u) {
        key_head = head % N_KEY_HEADS;
        is_first = head < N_KEY_HEADS;
    }

    // The state is on its way while the convolution is computed.
    var s: array<vec4<f32>, TEAM_COLUMNS * LANE_CHUNKS>;
    for (var j = 0u; j < TEAM_COLUMNS; j++) {
        let column = j * TEAMS + me.team;
        for (var i = 0u; i < LANE_CHUNKS; i++) {
            let chunk = i * 8u + me.lane;
            s[j * LANE_CHUNKS + i] = vec4<f32>();
            if (column < VALUE_DIM && chunk < CHUNKS) {
                s[j * LANE_CHUNKS + i] = state[(head * VALUE_DIM + column) * CHUNKS + chunk];
            }
        }
    }

    for (var at = entry.local; at < 2u * KEY_DIM + VALUE_DIM; at += WORKGROUP) {
        var channel = key_head * KEY_DIM + at;
        if (at >= 2u * KEY_DIM) {
            channel = 2u * KEYS + head * VALUE_DIM + at - 2u * KEY_DIM;
        } else if (at >= KEY_DIM) {
            channel = KEYS + key_head * KEY_DIM + at - KEY_DIM;
        }
        mixed[at] = convolved(channel);
        // A key head has several value heads, of which one keeps its history.
        if (is_first || at >= 2u * KEY_DIM) {
            keep_history(channel);
        }
    }
    workgroupBarrier();

    // Sums of squares of the query and of the key, and their product.
    var squares = vec2<f32>(params.zero);
    var product = params.zero;
    for (var d = me.lane; d < KEY_DIM; d += 8u) {
        let query = mixed[d];
        let key = mixed[KEY_DIM + d];
        squares.x = fma(query, query, squares.x);
        squares.y = fma(key, key, squares.y);
        product = fma(query, key, product);
    }
    let query_squares = team_sum(entry, squares.x);
    let key_squares = team_sum(entry, squares.y);
    product = team_sum(entry, product);
    let query_scale = params.scale / sqrt(query_squares + L2_EPS);
    let key_scale = 1.0 / sqrt(key_squares + L2_EPS);
    product = product * query_scale * key_scale;
    var query: array<vec4<f32>, LANE_CHUNKS>;
    var key: array<vec4<f32>, LANE_CHUNKS>;
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = i * 8u + me.lane;
        query[i] = vec4<f32>();
        key[i] = vec4<f32>();
        if (chunk < CHUNKS) {
            query[i] = four(4u * chunk) * query_scale;
            key[i] = four(KEY_DIM + 4u * chunk) * key_scale;
        }
    }
    let gate = params.row * N_VALUE_HEADS + head;
    let decay = decay_of(a[gate], a_log[head], dt_bias[head]);
    let strength = sigmoid(b[gate]);

    for (var j = 0u; j < TEAM_COLUMNS; j++) {
        let column = j * TEAMS + me.team;
        var by_key = vec4<f32>(params.zero);
        var by_query = vec4<f32>(params.zero);
        for (var i = 0u; i < LANE_CHUNKS; i++) {
            let at = j * LANE_CHUNKS + i;
            s[at] = fma(s[at], vec4<f32>(decay), vec4<f32>(params.zero));
            by_key = fma(s[at], key[i], by_key);
            by_query = fma(s[at], query[i], by_query);
        }
        let known = team_sum(entry, (by_key.x + by_key.y) + (by_key.z + by_key.w));
        let answer = team_sum(entry, (by_query.x + by_query.y) + (by_query.z + by_query.w));
        if (column < VALUE_DIM) {
            let delta = strength * (mixed[2u * KEY_DIM + column] - known);
            for (var i = 0u; i < LANE_CHUNKS; i++) {
                let chunk = i * 8u + me.lane;
                if (chunk < CHUNKS) {
                    let at = (head * VALUE_DIM + column) * CHUNKS + chunk;
                    state[at] = fma(key[i], vec4<f32>(delta), s[j * LANE_CHUNKS + i]);
                }
            }
            if (me.lane == 0u) {
                answers[column] = fma(delta, product, answer);
            }
        }
    }
    workgroupBarrier();

    var answer_squares = params.zero;
    for (var d = me.lane; d < VALUE_DIM; d += 8u) {
        answer_squares = fma(answers[d], answers[d], answer_squares);
    }
    let mean = team_sum(entry, answer_squares) / f32(VALUE_DIM);
    let rms_scale = 1.0 / sqrt(mean + params.eps);
    for (var d = entry.local; d < VALUE_DIM; d += WORKGROUP) {
        let at = (params.row * N_VALUE_HEADS + head) * VALUE_DIM + d;
        out[at] = answers[d] * rms_scale * norm[d] * silu(z[at]);
    }
}
