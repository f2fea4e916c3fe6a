//! Attention and gated delta net on the CPU.

use compute::{Backend, Reference, STATE_BLOCK};

use crate::mixers::{AttentionCase, DeltaCase};
use crate::support::{cpus, cpus_with_q8_0, fast_cpus};

/// Longer than a segment of the cache, whose parts different threads may take.
const LEN: usize = 550;
/// Ways to cut a sequence into calls.
const CUTS: [&[usize]; 4] = [&[1; LEN], &[100, 1, 1, 448], &[31, 2, 64, 453], &[11; LEN / 11]];

/// Errors of outputs, keys and values with a cache of 16-bit floats, whose steps are 2^-11; keys here are
/// larger than one, and scores of many dimensions add up their errors.
const HALF_TOLERANCE: [f32; 3] = [2e-2, 1e-3, 5e-4];

/// The same in blocks of eight bits: half a step is 1/254 of a block's largest value, which is up to 7.4 for
/// keys (normed, weighted by 3, turned) and 1 for values; its 16-bit scale adds a little.
const EIGHT_BIT_TOLERANCE: [f32; 3] = [0.2, 3.2e-2, 4.5e-3];

#[test]
fn attention_agrees_and_does_not_depend_on_cuts() {
    for (shape, gated) in [([4, 2, 32, 8], true), ([3, 1, 20, 20], false), ([2, 2, 64, 2], true)] {
        let case = AttentionCase::new(LEN, shape, gated);
        let expected = case.expected();
        for (cpus, tolerance) in [
            (cpus(), [1e-4, 1e-4, 0.0]),
            (fast_cpus(), HALF_TOLERANCE),
            (cpus_with_q8_0(), EIGHT_BIT_TOLERANCE),
        ] {
            for mut cpu in cpus {
                case.agrees(&mut cpu, &expected, tolerance, &CUTS);
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_touch() {
    let attention = AttentionCase::new(LEN, [4, 2, 32, 8], true);
    let delta_net = DeltaCase::new(LEN, [2, 4, 32, 32, 4], false);
    for cpu in &mut cpus() {
        attention.does_not_touch_others(cpu);
        delta_net.does_not_touch_others(cpu);
    }
}

#[test]
fn attention_goes_on_from_saved_blocks_with_the_same_bits() {
    let case = AttentionCase::new(LEN, [4, 2, 32, 8], true);
    case.goes_on_from_saved_blocks(&mut Reference::new());
    // The dimensions of a head need not fill blocks of eight bits.
    let odd = AttentionCase::new(LEN, [3, 1, 20, 20], false);
    for mut cpu in cpus().into_iter().chain(fast_cpus()).chain(cpus_with_q8_0()) {
        for case in [&case, &odd] {
            let block = cpu.kv_block_bytes(&case.spec) as u64;
            assert_eq!(block, cpu.kv_cache_bytes(&case.spec, STATE_BLOCK), "it is as in memory");
            case.goes_on_from_saved_blocks(&mut cpu);
        }
    }
}

#[test]
fn the_blocked_delta_rule_is_the_recurrence_and_does_not_depend_on_cuts() {
    for (shape, tiled) in [
        ([2, 4, 32, 32, 4], false),
        ([2, 4, 32, 32, 4], true),
        ([1, 3, 8, 20, 2], false),
        ([2, 2, 16, 12, 3], true),
    ] {
        let case = DeltaCase::new(LEN, shape, tiled);
        let expected = case.expected();
        cpus().iter_mut().for_each(|cpu| case.agrees(cpu, &expected, &CUTS));
    }
}

#[test]
fn a_delta_net_goes_on_from_a_snapshot_with_the_same_bits() {
    const MARKS: [usize; 2] = [3 * STATE_BLOCK, 7 * STATE_BLOCK];
    for shape in [[2, 4, 32, 32, 4], [1, 3, 8, 20, 2]] {
        let case = DeltaCase::new(LEN, shape, false);
        case.goes_on_from_snapshots(&mut Reference::new(), &MARKS, &CUTS);
        cpus().iter_mut().for_each(|cpu| case.goes_on_from_snapshots(cpu, &MARKS, &CUTS));
    }
}
