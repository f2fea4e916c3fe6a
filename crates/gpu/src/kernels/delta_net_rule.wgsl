// The gated delta rule over all rows of a span, with the state in registers: a team of lanes takes a column
// of the state of a value head, each lane some rows of it.
//
// A workgroup holds HELD rows of what its head reads: queries and keys, values, scalars. Those of the next rows are on
// their way to registers while these are computed, so that only the first wait for memory of the device.
//
// What stands between `each` and `end` is repeated by `kernel.rs`, with the number in place of $i (chunks of a lane) and $p (parts of
// the next rows that a lane reads): what has a name of its own is kept in registers.
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
const TEAMS: u32 = WORKGROUP / 8u;
// Chunks of the queries and keys of the rows that are held.
const HELD_CHUNKS: u32 = HELD * 2u * CHUNKS;

// (HELD, 2, CHUNKS): the query and the key of each row.
var<workgroup> held: array<vec4<f32>, HELD_CHUNKS>;
// (HELD, TEAMS).
var<workgroup> held_values: array<f32, HELD * TEAMS>;
// (3, HELD): decays, strengths of writing, products of query and key.
var<workgroup> held_scalars: array<f32, 3u * HELD>;

// A chunk of the rows from `begin` on. Rows and chunks that are not there are the last.
fn chunk_of(begin: u32, index: u32, key_head: u32) -> vec4<f32> {
    let place = min(index, HELD_CHUNKS - 1u);
    let row = min(begin + place / (2u * CHUNKS), params.rows - 1u);
    let inside = place % (2u * CHUNKS);
    let skipped = select(0u, KEYS / 4u - CHUNKS, inside >= CHUNKS);
    return mixed[row * (MIXED / 4u) + key_head * CHUNKS + skipped + inside];
}

// The value of a row and a column of this workgroup.
fn value_of(begin: u32, index: u32, head: u32, first_column: u32) -> f32 {
    let row = min(begin + index / TEAMS, params.rows - 1u);
    let column = min(first_column + index % TEAMS, VALUE_DIM - 1u);
    return scalars[row * MIXED + 2u * KEYS + head * VALUE_DIM + column];
}

// One of the three scalars of a row.
fn scalar_of(begin: u32, index: u32, head: u32, key_head: u32) -> f32 {
    let row = min(begin + index % HELD, params.rows - 1u);
    let kind = min(index / HELD, 2u);
    let gates = row * MIXED + CHANNELS;
    return scalars[gates + select(2u * head + kind, 2u * N_VALUE_HEADS + key_head, kind == 2u)];
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
    let place = entry.group.x * TEAMS + me.team;
    let is_ours = place < VALUE_DIM;
    // Teams without a column read what the last one does, for all must take part in sums.
    let column = min(place, VALUE_DIM - 1u);
    let at = (head * VALUE_DIM + column) * CHUNKS;
    //: each i
    let chunk_$i = $iu * 8u + me.lane;
    // Chunks that are not there are zero.
    let is_chunk_$i = chunk_$i < CHUNKS;
    var s_$i = vec4<f32>();
    if (is_chunk_$i) {
        s_$i = state[at + chunk_$i];
    }
    let key_at_$i = min(chunk_$i, CHUNKS - 1u);
    //: end
    let first_column = entry.group.x * TEAMS;
    //: each p
    var next_$p = chunk_of(0u, $pu * WORKGROUP + entry.local, key_head);
    //: end
    var next_value = value_of(0u, entry.local, head, first_column);
    var next_scalar = scalar_of(0u, entry.local, head, key_head);
    for (var begin = 0u; begin < params.rows; begin += HELD) {
        // All have computed the rows before.
        workgroupBarrier();
        //: each p
        if ($pu * WORKGROUP + entry.local < HELD_CHUNKS) {
            held[$pu * WORKGROUP + entry.local] = next_$p;
        }
        //: end
        if (entry.local < HELD * TEAMS) {
            held_values[entry.local] = next_value;
        }
        if (entry.local < 3u * HELD) {
            held_scalars[entry.local] = next_scalar;
        }
        workgroupBarrier();
        //: each p
        next_$p = chunk_of(begin + HELD, $pu * WORKGROUP + entry.local, key_head);
        //: end
        next_value = value_of(begin + HELD, entry.local, head, first_column);
        next_scalar = scalar_of(begin + HELD, entry.local, head, key_head);
        //: each i
        var query_$i = held[key_at_$i];
        var key_$i = held[CHUNKS + key_at_$i];
        //: end
        let rows = min(HELD, params.rows - begin);
        for (var row = 0u; row < rows; row++) {
            let then = min(row + 1u, HELD - 1u) * 2u * CHUNKS;
            //: each i
            let q_$i = query_$i;
            let k_$i = select(vec4<f32>(), key_$i, is_chunk_$i);
            query_$i = held[then + key_at_$i];
            key_$i = held[then + CHUNKS + key_at_$i];
            //: end
            let value = held_values[row * TEAMS + me.team];
            let decay = held_scalars[row];
            let strength = held_scalars[HELD + row];
            let product = held_scalars[2u * HELD + row];
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
                let to = ((params.row + begin + row) * N_VALUE_HEADS + head) * VALUE_DIM + column;
                out[to] = fma(delta, product, answer);
            }
        }
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
