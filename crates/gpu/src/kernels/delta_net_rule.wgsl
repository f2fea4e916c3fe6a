// The gated delta rule over all rows of a span, with the state in registers: a team of lanes takes a column
// of the state of a value head, each lane some rows of it.
//
//     S <- decay S;  delta = strength (v - S^T k);  S <- S + k delta^T;  o = S^T q
//
// The output is S^T q before the update, plus delta times (k . q): both reads of the state are one.
//
// MIXED: as in `delta_net_mix.wgsl`. TILED: whether value heads that share a key head lie apart. COLUMNS:
// workgroups of a head.

struct Params {
    // First row of the batch, and rows.
    row: u32,
    rows: u32,
    // Where the history is.
    history: u32,
    // Zero, which a compiler does not know: see `delta_net.rs`.
    zero: f32,
}

@group(0) @binding(0) var<storage, read> mixed: array<vec4<f32>>;
// (N_VALUE_HEADS, VALUE_DIM, KEY_DIM).
@group(0) @binding(1) var<storage, read_write> state: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> qkv: array<f32>;
// (TAPS - 1, CHANNELS): the last inputs of the convolution.
@group(0) @binding(3) var<storage, read_write> history: array<f32>;
// (rows, N_VALUE_HEADS, VALUE_DIM).
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
var<immediate> params: Params;

// A chunk is four rows of the state.
const CHUNKS: u32 = KEY_DIM / 4u;
const LANE_CHUNKS: u32 = (CHUNKS + 7u) / 8u;

struct Row {
    query: array<vec4<f32>, LANE_CHUNKS>,
    key: array<vec4<f32>, LANE_CHUNKS>,
    value: f32,
    decay: f32,
    strength: f32,
    product: f32,
}

fn scalar(index: u32, at: u32) -> f32 {
    return mixed[index * (MIXED / 4u) + at / 4u][at % 4u];
}

// What a lane reads of a row.
fn load_row(index: u32, head: u32, key_head: u32, column: u32, lane: u32) -> Row {
    var row: Row;
    let at = index * (MIXED / 4u) + key_head * CHUNKS;
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = i * 8u + lane;
        row.query[i] = vec4<f32>();
        row.key[i] = vec4<f32>();
        if (chunk < CHUNKS) {
            row.query[i] = mixed[at + chunk];
            row.key[i] = mixed[at + KEYS / 4u + chunk];
        }
    }
    row.value = scalar(index, 2u * KEYS + head * VALUE_DIM + column);
    row.decay = scalar(index, CHANNELS + 2u * head);
    row.strength = scalar(index, CHANNELS + 2u * head + 1u);
    row.product = scalar(index, CHANNELS + 2u * N_VALUE_HEADS + key_head);
    return row;
}

// The last inputs of the convolution become the history of what comes next.
fn keep_history(channel: u32) {
    for (var i = 0u; i + 1u < TAPS; i++) {
        let input = params.rows + i;
        var x: f32;
        if (input < TAPS - 1u) {
            x = history[params.history + input * CHANNELS + channel];
        } else {
            x = qkv[(params.row + input + 1u - TAPS) * CHANNELS + channel];
        }
        history[params.history + i * CHANNELS + channel] = x;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    let head = entry.group.y;
    var key_head = head / (N_VALUE_HEADS / N_KEY_HEADS);
    if (TILED != 0u) {
        key_head = head % N_KEY_HEADS;
    }
    let place = entry.group.x * (WORKGROUP / 8u) + me.team;
    let is_ours = place < VALUE_DIM;
    // Teams without a column read what the last one does, for all must take part in sums.
    let column = min(place, VALUE_DIM - 1u);
    let at = (head * VALUE_DIM + column) * CHUNKS;
    var s: array<vec4<f32>, LANE_CHUNKS>;
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = i * 8u + me.lane;
        s[i] = vec4<f32>();
        if (chunk < CHUNKS) {
            s[i] = state[at + chunk];
        }
    }
    // The next row is read while one is computed.
    var next = load_row(0u, head, key_head, column, me.lane);
    for (var index = 0u; index < params.rows; index++) {
        let row = next;
        next = load_row(min(index + 1u, params.rows - 1u), head, key_head, column, me.lane);
        var by_key = vec4<f32>(params.zero);
        var by_query = vec4<f32>(params.zero);
        for (var i = 0u; i < LANE_CHUNKS; i++) {
            s[i] = fma(s[i], vec4<f32>(row.decay), vec4<f32>(params.zero));
            by_key = fma(s[i], row.key[i], by_key);
            by_query = fma(s[i], row.query[i], by_query);
        }
        let known = team_sum(entry, (by_key.x + by_key.y) + (by_key.z + by_key.w));
        let answer = team_sum(entry, (by_query.x + by_query.y) + (by_query.z + by_query.w));
        let delta = row.strength * (row.value - known);
        for (var i = 0u; i < LANE_CHUNKS; i++) {
            s[i] = fma(row.key[i], vec4<f32>(delta), s[i]);
        }
        if (is_ours && me.lane == 0u) {
            let to = ((params.row + index) * N_VALUE_HEADS + head) * VALUE_DIM + column;
            out[to] = fma(delta, row.product, answer);
        }
    }
    for (var i = 0u; i < LANE_CHUNKS; i++) {
        let chunk = i * 8u + me.lane;
        if (is_ours && chunk < CHUNKS) {
            state[at + chunk] = s[i];
        }
    }
    let lane = (head * COLUMNS + entry.group.x) * WORKGROUP + entry.local;
    for (var channel = lane; channel < CHANNELS; channel += N_VALUE_HEADS * COLUMNS * WORKGROUP) {
        keep_history(channel);
    }
}
