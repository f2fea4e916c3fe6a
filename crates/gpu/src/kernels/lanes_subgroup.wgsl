// Teams of eight neighbouring lanes, added by subgroup operations. The order of additions is that of
// `lanes_shared.wgsl`: the same bits on every device.

// What a lane knows of itself: the parameter of `main`.
struct Entry {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
}

struct Lanes {
    // Which team of the workgroup, which of its eight lanes.
    team: u32,
    lane: u32,
}

// A device may number the lanes of a workgroup in another order than those of its subgroups.
fn lanes(entry: Entry) -> Lanes {
    return Lanes(entry.subgroup * (entry.subgroup_size / 8u) + entry.subgroup_lane / 8u, entry.subgroup_lane % 8u);
}

// The sum over a team, in each of its lanes. All lanes of the workgroup must call it.
fn team_sum(entry: Entry, value: f32) -> f32 {
    var sum = value;
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    sum += subgroupShuffleXor(sum, 4u);
    return sum;
}

// The value that the lane of the team has whose number differs in the bit `step`.
fn team_exchange(entry: Entry, value: f32, step: u32) -> f32 {
    return subgroupShuffleXor(value, step);
}

// The same of a word.
fn team_exchange_word(entry: Entry, word: u32, step: u32) -> u32 {
    return subgroupShuffleXor(word, step);
}
