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

var<workgroup> lane_values: array<f32, WORKGROUP>;

fn lanes(entry: Entry) -> Lanes {
    return Lanes(entry.local / 8u, entry.local % 8u);
}

// The sum over a team, in each of its lanes. All lanes of the workgroup must call it.
fn team_sum(entry: Entry, value: f32) -> f32 {
    var sum = value;
    for (var step = 1u; step < 8u; step *= 2u) {
        workgroupBarrier();
        lane_values[entry.local] = sum;
        workgroupBarrier();
        sum += lane_values[entry.local ^ step];
    }
    return sum;
}

// The value that the lane of the team has whose number differs in the bit `step`. All lanes of the workgroup must
// call it.
fn team_exchange(entry: Entry, value: f32, step: u32) -> f32 {
    workgroupBarrier();
    lane_values[entry.local] = value;
    workgroupBarrier();
    return lane_values[entry.local ^ step];
}
