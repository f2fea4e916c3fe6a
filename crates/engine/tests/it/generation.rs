//! Generation: limits, ends, cancellation, errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Beside, Engine, EngineOptions, Error, FinishReason, GenerateOptions, Sampling, Step};

use crate::{demo, repository, streaming, tokens};

fn generate(engine: &mut Engine, prompt: &str, options: GenerateOptions) -> Vec<Step> {
    let prompt = tokens(engine, prompt);
    let mut session = engine.session().expect("a session");
    let generation = engine.generate(&mut session, &prompt, options).expect("it is sound");
    generation.map(|step| step.expect("it goes well")).collect()
}

fn text(steps: &[Step]) -> String {
    steps.iter().map(|step| step.text.as_str()).collect()
}

#[test]
fn a_generation_ends_at_its_limit_and_at_the_models_end() {
    let mut engine = demo(streaming());
    let limited = GenerateOptions { max_tokens: Some(5), ..GenerateOptions::default() };
    let steps = generate(&mut engine, "Once upon a time", limited);
    assert_eq!(steps.len(), 5);
    assert_eq!(steps[4].finish, Some(FinishReason::Length));
    assert!(steps[..4].iter().all(|step| step.finish.is_none()));

    let none = GenerateOptions { max_tokens: Some(0), ..GenerateOptions::default() };
    let steps = generate(&mut engine, "Once upon a time", none);
    assert_eq!((steps.len(), steps[0].token), (1, None));

    let stop_tokens = engine.stop_tokens().to_vec();
    assert_eq!(stop_tokens, [8159, 8161], "both end tokens are known");
    let prompt = "<|im_start|>user\nWhat is 2 plus 3?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let ending = GenerateOptions { stop_tokens, ..GenerateOptions::default() };
    let steps = generate(&mut engine, prompt, ending);
    assert_eq!(steps.last().and_then(|step| step.finish), Some(FinishReason::Stop));
    assert!(text(&steps).contains('5'), "{}", text(&steps));
    assert!(!text(&steps).contains("<|im_end|>"), "the end is not shown");
}

#[test]
fn the_best_token_is_what_a_greedy_generation_says() {
    // The prompt is longer than a chunk.
    let mut engine = demo(EngineOptions { prompt_chunk: Some(2), ..streaming() });
    let prompt = tokens(&engine, "Once upon a time there was a");
    let mut session = engine.session().expect("a session");
    let (mut best, usage) = engine.best_after(&mut session, &prompt).expect("it goes well");
    assert_eq!((usage.tokens, session.tokens().len()), (prompt.len(), prompt.len()));
    let mut ours = vec![best];
    for _ in 1..5 {
        (best, _) = engine.best_after(&mut session, &[best]).expect("it goes well");
        ours.push(best);
    }
    // Not what the pass before has left.
    let nothing = engine.best_after(&mut session, &[]);
    assert!(matches!(nothing, Err(Error::EmptyPrompt)), "{nothing:?}");
    drop(session);
    let five = GenerateOptions { max_tokens: Some(5), ..GenerateOptions::default() };
    let said = generate(&mut engine, "Once upon a time there was a", five);
    assert_eq!(said.iter().filter_map(|step| step.token).collect::<Vec<_>>(), ours);
}

#[test]
fn logprobs_are_those_of_the_model() {
    let mut engine = demo(streaming());
    let options =
        GenerateOptions { max_tokens: Some(6), logprobs: Some(4), ..GenerateOptions::default() };
    for step in generate(&mut engine, "Once upon a time", options) {
        let (logprob, top) = step.logprobs.expect("they were asked for");
        assert_eq!(top.len(), 4);
        assert_eq!(Some(top[0].token), step.token, "greedy takes the most probable");
        assert_eq!(top[0].logprob, logprob);
        assert!(top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        assert!(top.iter().map(|entry| f64::from(entry.logprob).exp()).sum::<f64>() <= 1.0 + 1e-6);
    }
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let mut engine = demo(streaming());
    let sampled = |engine: &mut Engine, seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let options =
            GenerateOptions { sampling, max_tokens: Some(24), ..GenerateOptions::default() };
        text(&generate(engine, "Once upon a time", options))
    };
    let first = sampled(&mut engine, 1);
    assert_eq!(sampled(&mut engine, 1), first);
    assert_ne!(sampled(&mut engine, 2), first);
}

#[test]
fn cancelling_ends_after_the_current_pass() {
    let mut engine = demo(streaming());
    let cancel = Arc::new(AtomicBool::new(false));
    let options =
        GenerateOptions { cancel: Some(Arc::clone(&cancel)), ..GenerateOptions::default() };
    let prompt = tokens(&engine, "Once upon a time");
    let mut session = engine.session().expect("a session");
    let mut generation = engine.generate(&mut session, &prompt, options).expect("it is sound");
    assert!(generation.next().is_some_and(|step| step.is_ok_and(|step| step.finish.is_none())));
    cancel.store(true, Ordering::Relaxed);
    let last = generation.next().expect("a last step").expect("it goes well");
    assert_eq!((last.token, last.finish), (None, Some(FinishReason::Cancelled)));
    assert!(generation.next().is_none());
}

#[test]
fn what_cannot_be_generated_is_refused_before_work() {
    let mut engine = demo(EngineOptions { context: Some(16), ..streaming() });
    let mut session = engine.session().expect("a session");
    let refuse = |engine: &mut Engine, session: &mut _, prompt: &[u32]| {
        let options = GenerateOptions::default();
        engine.generate(session, prompt, options).err().expect("it is refused")
    };
    assert!(matches!(refuse(&mut engine, &mut session, &[]), Error::EmptyPrompt));
    let unknown = refuse(&mut engine, &mut session, &[8192]);
    assert!(matches!(unknown, Error::UnknownToken { token: 8192, vocab_size: 8192 }));
    let long = refuse(&mut engine, &mut session, &[1; 17]);
    assert!(matches!(long, Error::ContextFull { needed: 17, context: 16 }));

    // The context is used to its last place: 16 computed tokens give the 17th.
    let options = GenerateOptions::default();
    let steps = engine.generate(&mut session, &[1; 10], options).expect("it is sound");
    assert_eq!(steps.count(), 7);
}

#[test]
fn what_tokens_are_chosen_from_and_what_callers_need_are_in_the_plan() {
    let plan = |sessions, bytes| {
        let beside = Beside { bytes, bytes_per_token: 3 };
        let options =
            EngineOptions { memory: Some(1 << 30), sessions, beside, ..EngineOptions::default() };
        let engine = Engine::open(&repository("models/demo"), &options).expect("it opens");
        (engine.plan().clone(), engine.config().vocab_size as u64)
    };
    let (one, vocab_size) = plan(1, 0);
    assert_eq!((one.beside, one.sampling), (3 * vocab_size, 20 * vocab_size));
    let (two, _) = plan(2, 1000);
    assert_eq!((two.beside, two.sampling), (3 * vocab_size + 1000, 40 * vocab_size));

    let beside = Beside { bytes: u64::MAX, bytes_per_token: u64::MAX };
    let options = EngineOptions { memory: Some(1 << 30), beside, ..EngineOptions::default() };
    let error = Engine::open(&repository("models/demo"), &options).err();
    assert!(matches!(error, Some(Error::Budget { needed: u64::MAX, .. })));
}

#[test]
fn a_budget_that_is_too_small_shows_the_sum() {
    let options = EngineOptions { memory: Some(1 << 20), ..EngineOptions::default() };
    let error = Engine::open(&repository("models/demo"), &options).err().expect("it is refused");
    let message = error.to_string();
    for words in ["1.0 MiB", "trunk", "states", "routed experts", "hint"] {
        assert!(message.contains(words), "{words} is in: {message}");
    }
    let long = EngineOptions { context: Some(1 << 20), ..EngineOptions::default() };
    let error = Engine::open(&repository("models/demo"), &long).err().expect("it is refused");
    assert!(matches!(error, Error::ContextLimit { limit: 4096, .. }));
}
