// The gated delta rule over all rows of a span, with the state in registers: a team of lanes takes a column
// of the state of a value head, each lane some rows of it.
//
// What stands between `each` and `end` is repeated by `kernel.rs`, with the number in place of $i (chunks of a lane) and $a (rows
// that are on their way while one is computed): what has a name of its own is kept in registers.
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
// The same as `mixed`.
@group(0) @binding(5) var<storage, read> scalars: array<f32>;
var<immediate> params: Params;

// A chunk is four rows of the state.
const CHUNKS: u32 = KEY_DIM / 4u;

// The value of a column, the decay, the strength of writing, and the product of query and key.
fn scalars_of(index: u32, head: u32, key_head: u32, column: u32) -> vec4<f32> {
    let at = index * MIXED;
    let gates = at + CHANNELS + 2u * head;
    let value = scalars[at + 2u * KEYS + head * VALUE_DIM + column];
    return vec4<f32>(value, scalars[gates], scalars[gates + 1u], scalars[at + CHANNELS + 2u * N_VALUE_HEADS + key_head]);
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
    let last = params.rows - 1u;
    //: each i
    let chunk_$i = $iu * 8u + me.lane;
    // Chunks that are not there are zero.
    let is_chunk_$i = chunk_$i < CHUNKS;
    var s_$i = vec4<f32>();
    if (is_chunk_$i) {
        s_$i = state[at + chunk_$i];
    }
    let key_at_$i = key_head * CHUNKS + min(chunk_$i, CHUNKS - 1u);
    //: end
    //: each a
    let first_$a = min($au, last);
    //: each i
    var query_$a_$i = mixed[first_$a * (MIXED / 4u) + key_at_$i];
    var key_$a_$i = mixed[first_$a * (MIXED / 4u) + KEYS / 4u + key_at_$i];
    //: end
    var scalars_$a = scalars_of(first_$a, head, key_head, column);
    //: end
    for (var begin = 0u; begin < params.rows; begin += AHEAD) {
        //: each a
        if (begin + $au < params.rows) {
            let index = begin + $au;
            let then = min(index + AHEAD, last);
            //: each i
            let q_$i = query_$a_$i;
            let k_$i = select(vec4<f32>(), key_$a_$i, is_chunk_$i);
            query_$a_$i = mixed[then * (MIXED / 4u) + key_at_$i];
            key_$a_$i = mixed[then * (MIXED / 4u) + KEYS / 4u + key_at_$i];
            //: end
            let value = scalars_$a.x;
            let decay = scalars_$a.y;
            let strength = scalars_$a.z;
            let product = scalars_$a.w;
            scalars_$a = scalars_of(then, head, key_head, column);
            var by_key = vec4<f32>(params.zero);
            var by_query = vec4<f32>(params.zero);
            //: each i
            s_$i = fma(s_$i, vec4<f32>(decay), vec4<f32>(params.zero));
            by_key = fma(s_$i, k_$i, by_key);
            by_query = fma(s_$i, q_$i, by_query);
            //: end
            let known = team_sum(entry, (by_key.x + by_key.y) + (by_key.z + by_key.w));
            let answer = team_sum(entry, (by_query.x + by_query.y) + (by_query.z + by_query.w));
            let delta = strength * (value - known);
            //: each i
            s_$i = fma(k_$i, vec4<f32>(delta), s_$i);
            //: end
            if (is_ours && me.lane == 0u) {
                let to = ((params.row + index) * N_VALUE_HEADS + head) * VALUE_DIM + column;
                out[to] = fma(delta, product, answer);
            }
        }
        //: end
    }
    //: each i
    if (is_ours && is_chunk_$i) {
        state[at + chunk_$i] = s_$i;
    }
    //: end
    let lane = (head * COLUMNS + entry.group.x) * WORKGROUP + entry.local;
    for (var channel = lane; channel < CHANNELS; channel += N_VALUE_HEADS * COLUMNS * WORKGROUP) {
        keep_history(channel);
    }
}
