// The first part of a gated delta net, for each row: the causal convolution with SiLU, normalised queries
// and keys, and the gates of each value head. A team of lanes takes a key head (its query, its key, and
// their product), or a value head with its gates.
//
// MIXED: width of a row of results: queries, keys, values, then for each value head its decay and its
// writing strength, then for each key head the product of query and key.

struct Params {
    // First row of the batch.
    row: u32,
    // Where the history is.
    history: u32,
    // What queries are multiplied by.
    scale: f32,
    // Zero, which a compiler does not know: see `delta_net.rs`.
    zero: f32,
}

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
// (TAPS - 1, CHANNELS): inputs before the first row.
@group(0) @binding(1) var<storage, read> history: array<f32>;
// (CHANNELS, TAPS).
@group(0) @binding(2) var<storage, read> conv: array<f32>;
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
@group(0) @binding(5) var<storage, read> a_log: array<f32>;
@group(0) @binding(6) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(7) var<storage, read_write> mixed: array<f32>;
var<immediate> params: Params;

fn convolved(index: u32, channel: u32) -> f32 {
    var sum = params.zero;
    for (var tap = 0u; tap < TAPS; tap++) {
        // Inputs are counted from the first of the history.
        let input = index + tap;
        var x: f32;
        if (input < TAPS - 1u) {
            x = history[params.history + input * CHANNELS + channel];
        } else {
            x = qkv[(params.row + input + 1u - TAPS) * CHANNELS + channel];
        }
        sum = fma(conv[channel * TAPS + tap], x, sum);
    }
    return silu(sum);
}

@compute @workgroup_size(WORKGROUP)
fn main(entry: Entry) {
    let me = lanes(entry);
    // Teams without a head do what the last one does, for all must take part in sums.
    let head = min(entry.group.x * (WORKGROUP / 8u) + me.team, N_KEY_HEADS + N_VALUE_HEADS - 1u);
    let index = entry.group.y;
    let out = index * MIXED;
    let is_key = head < N_KEY_HEADS;
    // Sums of squares of the query and of the key, and their product.
    var squares = vec2<f32>(params.zero);
    var product = params.zero;
    if (is_key) {
        for (var d = me.lane; d < KEY_DIM; d += 8u) {
            let channel = head * KEY_DIM + d;
            let query = convolved(index, channel);
            let key = convolved(index, KEYS + channel);
            mixed[out + channel] = query;
            mixed[out + KEYS + channel] = key;
            squares.x = fma(query, query, squares.x);
            squares.y = fma(key, key, squares.y);
            product = fma(query, key, product);
        }
    } else {
        for (var d = me.lane; d < VALUE_DIM; d += 8u) {
            let channel = 2u * KEYS + (head - N_KEY_HEADS) * VALUE_DIM + d;
            mixed[out + channel] = convolved(index, channel);
        }
    }
    let query_squares = team_sum(entry, squares.x);
    let key_squares = team_sum(entry, squares.y);
    product = team_sum(entry, product);
    if (is_key) {
        let query_scale = params.scale / sqrt(query_squares + L2_EPS);
        let key_scale = 1.0 / sqrt(key_squares + L2_EPS);
        for (var d = me.lane; d < KEY_DIM; d += 8u) {
            let channel = head * KEY_DIM + d;
            mixed[out + channel] *= query_scale;
            mixed[out + KEYS + channel] *= key_scale;
        }
        if (me.lane == 0u) {
            mixed[out + CHANNELS + 2u * N_VALUE_HEADS + head] = product * query_scale * key_scale;
        }
    } else if (me.lane == 0u) {
        let value_head = head - N_KEY_HEADS;
        let gate = (params.row + index) * N_VALUE_HEADS + value_head;
        let decay = decay_of(a[gate], a_log[value_head], dt_bias[value_head]);
        mixed[out + CHANNELS + 2u * value_head] = decay;
        mixed[out + CHANNELS + 2u * value_head + 1u] = sigmoid(b[gate]);
    }
}
