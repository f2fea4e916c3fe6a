//! Attention on whatever GPU there is.

use super::*;
use crate::testing::mixers::AttentionCase;
use crate::testing::{gpus, translate};

/// Errors of outputs, keys and values with a cache of 16-bit floats, whose steps are 2^-11.
const TOLERANCE: [f32; 3] = [5e-3, 2e-3, 5e-4];
/// Longer than two segments.
const LEN: usize = 270;
/// Ways to cut a sequence into calls. Calls of many rows merge segments in one workgroup, calls of few
/// in the last kernel.
const CUTS: [&[usize]; 2] = [&[200, 1, 1, 3, 65], &[31, 2, 64, 150, 1, 1, 21]];

#[test]
fn outputs_agree_and_do_not_depend_on_cuts() {
    for (shape, gated, cuts) in [
        ([4, 2, 32, 8], true, &CUTS[..]),
        ([3, 1, 20, 20], false, &CUTS[..1]),
        ([16, 1, 64, 2], true, &CUTS[..1]),
        ([2, 1, 256, 64], true, &CUTS[..1]),
    ] {
        let case = AttentionCase::new(LEN, shape, gated);
        let expected = case.expected();
        gpus().for_each(|mut gpu| case.agrees(&mut gpu, &expected, TOLERANCE, cuts));
    }
}

#[test]
fn sequences_of_a_batch_do_not_touch() {
    let case = AttentionCase::new(LEN, [4, 2, 32, 8], true);
    gpus().for_each(|mut gpu| case.does_not_touch_others(&mut gpu));
}

#[test]
fn a_cache_goes_on_from_saved_blocks_with_the_same_bits() {
    let case = AttentionCase::new(LEN, [4, 2, 32, 8], true);
    gpus().for_each(|mut gpu| case.goes_on_from_saved_blocks(&mut gpu));
}

#[test]
fn kernels_translate_to_every_language() {
    for (shape, gated) in [([4, 2, 32, 8], true), ([3, 1, 20, 20], false), ([32, 2, 256, 64], true)]
    {
        let shape = Shape::of(&AttentionCase::new(1, shape, gated).spec);
        shape.with_sources(translate);
        shape.with_attend(MANY, translate);
    }
}
