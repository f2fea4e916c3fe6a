// Teams of eight neighbouring lanes, added through memory of the workgroup, for devices without subgroup
// operations or with subgroups of fewer than eight lanes. The order of additions is that of
// `lanes_subgroup.wgsl`: the same bits on every device.

// What a lane knows of itself: the parameter of `main`.
struct Entry {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
}

struct Lanes {
    // Which team of the workgroup, which of its eight lanes.
    team: u32,
    lane: u32,
}

var<workgroup> lane_words: array<u32, WORKGROUP>;

fn lanes(entry: Entry) -> Lanes {
    return Lanes(entry.local / 8u, entry.local % 8u);
}

// The word that the lane of the team has whose number differs in the bits of `step`. All lanes of the workgroup must
// call it.
fn team_exchange_word(entry: Entry, word: u32, step: u32) -> u32 {
    workgroupBarrier();
    lane_words[entry.local] = word;
    workgroupBarrier();
    return lane_words[entry.local ^ step];
}

// The same of a value.
fn team_exchange(entry: Entry, value: f32, step: u32) -> f32 {
    return bitcast<f32>(team_exchange_word(entry, bitcast<u32>(value), step));
}

// The sum over a team, in each of its lanes. All lanes of the workgroup must call it.
fn team_sum(entry: Entry, value: f32) -> f32 {
    var sum = value;
    for (var step = 1u; step < 8u; step *= 2u) {
        sum += team_exchange(entry, sum, step);
    }
    return sum;
}
