//! The gated delta net on whatever GPU there is.

use compute::STATE_BLOCK;

use super::*;
use crate::testing::mixers::DeltaCase;
use crate::testing::{gpus, translate};

const LEN: usize = 140;
/// Ways to cut a sequence into calls.
const CUTS: [&[usize]; 2] = [&[100, 1, 1, 38], &[31, 2, 64, 1, 42]];

#[test]
fn outputs_and_states_agree_and_do_not_depend_on_cuts() {
    for (shape, tiled) in [
        ([2, 4, 32, 32, 4], false),
        ([2, 4, 32, 32, 4], true),
        ([1, 3, 8, 20, 2], false),
        ([1, 2, 128, 44, 4], true),
        // Fewer rows fit where the delta rule holds them.
        ([1, 2, 172, 12, 4], false),
    ] {
        let case = DeltaCase::new(LEN, shape, tiled);
        let expected = case.expected();
        gpus().for_each(|mut gpu| case.agrees(&mut gpu, &expected, &CUTS));
    }
}

#[test]
fn sequences_of_a_batch_do_not_touch() {
    let case = DeltaCase::new(LEN, [2, 4, 32, 32, 4], false);
    gpus().for_each(|mut gpu| case.does_not_touch_others(&mut gpu));
}

#[test]
fn a_state_goes_on_from_a_snapshot_with_the_same_bits() {
    const MARKS: [usize; 2] = [STATE_BLOCK, 2 * STATE_BLOCK];
    let case = DeltaCase::new(LEN, [1, 3, 8, 20, 2], false);
    let cuts = [&[LEN], CUTS[0], CUTS[1]];
    gpus().for_each(|mut gpu| case.goes_on_from_snapshots(&mut gpu, &MARKS, &cuts));
}

#[test]
fn kernels_translate_to_every_language() {
    for shape in [[2, 4, 32, 32, 4], [1, 3, 8, 20, 2], [16, 32, 128, 128, 4], [1, 2, 256, 8, 4]] {
        Shape::of(&DeltaCase::new(1, shape, true).spec).with_sources(translate);
    }
}
