//! Constraints: what may not be said is not said, and what follows by itself costs no pass of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{
    Constraint, ConstraintError, Engine, Error, FinishReason, GenerateOptions, Sampling, Step,
};

use crate::{demo, streaming, tokens};

/// Allows any of some tokens, then forces a run, as often as told.
struct Script {
    allowed: Vec<u32>,
    run: Vec<u32>,
    rounds: usize,
    /// Whether a run is due.
    due: bool,
    n_masks: Arc<AtomicUsize>,
}

impl Constraint for Script {
    fn forced(&mut self, out: &mut Vec<u32>) -> Result<(), ConstraintError> {
        if std::mem::take(&mut self.due) {
            out.extend_from_slice(&self.run);
        }
        Ok(())
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        self.n_masks.fetch_add(1, Ordering::Relaxed);
        for (token, logit) in (0_u32..).zip(logits) {
            if !self.allowed.contains(&token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        if !self.allowed.contains(&token) {
            return Err(ConstraintError(format!("{token} was not allowed")));
        }
        self.rounds -= 1;
        self.due = true;
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.rounds == 0
    }
}

/// A constraint of so many rounds, and the number of its masks.
pub(crate) fn script(
    allowed: &[u32],
    run: &[u32],
    rounds: usize,
) -> (Box<dyn Constraint>, Arc<AtomicUsize>) {
    let n_masks = Arc::default();
    let (allowed, run) = (allowed.to_vec(), run.to_vec());
    let script = Script { allowed, run, rounds, due: false, n_masks: Arc::clone(&n_masks) };
    (Box::new(script), n_masks)
}

fn generate(
    engine: &mut Engine,
    options: GenerateOptions,
    constraint: Box<dyn Constraint>,
) -> (Vec<Step>, Vec<u32>) {
    let prompt = tokens(engine, "Once upon a time");
    let mut session = engine.session().expect("a session");
    let generation = engine.generate_constrained(&mut session, &prompt, options, Some(constraint));
    let steps = generation.expect("it is sound").map(|step| step.expect("it goes well")).collect();
    (steps, session.tokens()[prompt.len()..].to_vec())
}

fn said(steps: &[Step]) -> Vec<u32> {
    steps.iter().filter_map(|step| step.token).collect()
}

#[test]
fn forced_runs_are_said_in_turn_and_computed_with_the_next_choice() {
    let mut engine = demo(streaming());
    let (constraint, n_masks) = script(&[300, 310, 320], &[500, 501, 502], 3);
    let (steps, computed) = generate(&mut engine, GenerateOptions::default(), constraint);
    let tokens = said(&steps);
    assert_eq!(tokens.len(), 12);
    for round in tokens.chunks(4) {
        assert!([300, 310, 320].contains(&round[0]), "{tokens:?}");
        assert_eq!(round[1..], [500, 501, 502]);
    }
    assert_eq!(n_masks.load(Ordering::Relaxed), 3, "one choice a round");
    let passes: Vec<usize> = steps.iter().map(|step| step.usage.tokens).collect();
    assert_eq!(passes[1..], [0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0], "a pass a choice");
    assert_eq!(steps[11].finish, Some(FinishReason::Stop), "nothing may follow");
    assert_eq!(computed, tokens[..8], "nothing is computed after the last choice");
}

#[test]
fn logprobs_are_the_models_own_and_do_not_change_the_tokens() {
    let mut engine = demo(streaming());
    let plain = generate(&mut engine, GenerateOptions::default(), script(&[300, 310], &[500], 3).0);
    let options = GenerateOptions { logprobs: Some(1), ..GenerateOptions::default() };
    let (steps, _) = generate(&mut engine, options.clone(), script(&[300, 310], &[500], 3).0);
    assert_eq!(said(&steps), said(&plain.0));

    let free = tokens(&engine, "Once upon a time");
    let mut session = engine.session().expect("a session");
    let first = engine
        .generate(&mut session, &free, GenerateOptions { max_tokens: Some(1), ..options })
        .expect("it is sound")
        .next()
        .expect("a step")
        .expect("it goes well");
    drop(session);
    let (_, best) = first.logprobs.expect("they were asked for");
    let (chosen, best_constrained) = steps[0].logprobs.clone().expect("they were asked for");
    assert_eq!(best_constrained, best, "the mask does not show");
    assert!(chosen < best[0].logprob, "the model would have said something else");
    assert!(steps.iter().all(|step| step.logprobs.is_some()), "forced tokens have theirs");
}

#[test]
fn limits_hold_inside_a_forced_run() {
    let mut engine = demo(streaming());
    for sampling in [
        Sampling::default(),
        Sampling { temperature: 1.0, repetition_penalty: 1.2, ..Sampling::default() },
    ] {
        let options =
            GenerateOptions { max_tokens: Some(3), sampling, ..GenerateOptions::default() };
        let (constraint, _) = script(&[300, 310], &[500, 501, 502], 3);
        let (steps, _) = generate(&mut engine, options, constraint);
        assert_eq!(said(&steps)[1..], [500, 501]);
        assert_eq!(steps[2].finish, Some(FinishReason::Length));
    }
}

#[test]
fn a_constraint_that_allows_nothing_is_an_error_and_leaves_the_engine_running() {
    let mut engine = demo(streaming());
    let prompt = tokens(&engine, "Once upon a time");
    let mut session = engine.session().expect("a session");
    let (constraint, _) = script(&[], &[], 1);
    let mut generation = engine
        .generate_constrained(&mut session, &prompt, GenerateOptions::default(), Some(constraint))
        .expect("it is sound");
    assert!(matches!(generation.next(), Some(Err(Error::Constraint(_)))));
    assert!(generation.next().is_none());
    drop(session);
    let (steps, _) = generate(&mut engine, GenerateOptions::default(), script(&[300], &[], 1).0);
    assert_eq!(said(&steps), [300]);
}

/// Wants one token to be the last that is said.
struct Ending {
    last: u32,
    is_finished: bool,
}

impl Constraint for Ending {
    fn forced(&mut self, _: &mut Vec<u32>) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn mask(&mut self, _: &mut [f32]) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn accept(
        &mut self,
        token: u32,
        room: usize,
        logits: &mut [f32],
    ) -> Result<bool, ConstraintError> {
        let is_last = token == self.last;
        if room == 0 && !is_last {
            logits.fill(f32::NEG_INFINITY);
            logits[self.last as usize] = 0.0;
        }
        Ok(room > 0 && !is_last || room == 0 && is_last)
    }

    fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.is_finished = token == self.last;
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.is_finished
    }
}

#[test]
fn what_has_to_end_ends_at_the_limit_and_says_so() {
    let mut engine = demo(streaming());
    let ending = || Box::new(Ending { last: 300, is_finished: false });
    for max_tokens in [1, 5] {
        let options =
            GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() };
        let (steps, _) = generate(&mut engine, options, ending());
        let tokens = said(&steps);
        assert_eq!(tokens.len(), max_tokens);
        assert_eq!(tokens.iter().position(|&token| token == 300), Some(max_tokens - 1));
        assert_eq!(steps[max_tokens - 1].finish, Some(FinishReason::Length));
    }
}
