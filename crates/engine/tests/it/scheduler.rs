//! Many requests at once: the same tokens as alone, in turn, and none hurts another.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{
    Engine, EngineOptions, Error, Event, FinishReason, GenerateOptions, PrefixCacheOptions,
    Request, RequestId, Sampling, Scheduler,
};

use crate::constraint::script;
use crate::{demo, held_out, streaming, tiny_copy};

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What a test asks for, as often as it likes.
#[derive(Clone)]
struct Case {
    prompt: Vec<u32>,
    options: GenerateOptions,
    is_constrained: bool,
}

impl Case {
    fn request(&self) -> Request {
        let run = [500, 501, 502, 503, 504];
        let constraint = self.is_constrained.then(|| script(&[300, 310, 320, 330], &run, 4).0);
        Request { prompt: self.prompt.clone(), options: self.options.clone(), constraint }
    }

    fn alone(&self, engine: &mut Engine) -> (Vec<u32>, String) {
        let Request { prompt, options, constraint } = self.request();
        let mut session = engine.session().expect("a session");
        let steps = engine.generate_constrained(&mut session, &prompt, options, constraint);
        let mut said = (Vec::new(), String::new());
        for step in steps.expect("it is sound") {
            let step = step.expect("it goes well");
            said.0.extend(step.token);
            said.1.push_str(&step.text);
        }
        said
    }
}

fn cases(engine: &Engine, random: &mut Random) -> Vec<Case> {
    let cases = (0..14).map(|index| {
        let n_tokens = [9, 40, 64, 65, 130, 200, 400][index % 7];
        // Some begin alike.
        let begin = [0, 0, 1000][random.below(3)];
        let mut prompt = held_out(engine, begin, n_tokens);
        prompt[n_tokens - 1] = random.below(4000) as u32;
        let temperature = [0.0, 1.0][index % 2];
        let sampling = Sampling {
            temperature,
            seed: index as u64,
            // Without a penalty a choice at temperature 0 needs no more than the best token.
            repetition_penalty: if index % 3 == 1 { 1.0 } else { 1.1 },
            ..Sampling::default()
        };
        let max_tokens = Some(1 + random.below(40));
        let options = GenerateOptions { sampling, max_tokens, ..GenerateOptions::default() };
        Case { prompt, options, is_constrained: index % 3 == 0 }
    });
    cases.collect()
}

/// Runs cases in random order and with random pauses; some are cancelled.
fn run(scheduler: &mut Scheduler, cases: &[Case], expected: &[(Vec<u32>, String)], seed: u64) {
    let mut random = Random(seed);
    let mut order: Vec<usize> = (0..cases.len()).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index + 1));
    }
    let mut running: HashMap<RequestId, (usize, Vec<u32>, String)> = HashMap::new();
    // Passes from one cancelled request to the next.
    let n_calm = 3000 / scheduler.engine().prompt_chunk().min(100);
    let mut n_whole = 0;
    while !(order.is_empty() && running.is_empty()) {
        while scheduler.running() < scheduler.capacity() && random.below(3) > 0 {
            let Some(case) = order.pop() else { break };
            let id = scheduler.start(cases[case].request()).expect("it is sound");
            running.insert(id, (case, Vec::new(), String::new()));
        }
        let mut ended = Vec::new();
        scheduler.step(&mut |id, event| {
            let (case, said, text) = running.get_mut(&id).expect("it is running");
            let step = match event.expect("it goes well") {
                Event::Progress { done, total, cached } => {
                    assert!(cached <= done && done <= total, "{cached} {done} {total}");
                    assert_eq!(total, cases[*case].prompt.len());
                    return;
                }
                Event::Step(step) => step,
            };
            said.extend(step.token);
            text.push_str(&step.text);
            if step.finish.is_some() {
                ended.push(id);
            }
        });
        for id in ended {
            let (case, said, text) = running.remove(&id).expect("it was running");
            assert!((said, text) == expected[case], "case {case} with seed {seed}");
            n_whole += 1;
        }
        if random.below(n_calm) == 0
            && let Some(&id) = running.keys().min()
        {
            scheduler.cancel(id);
            let (case, said, text) = running.remove(&id).expect("it was running");
            assert!(expected[case].0.starts_with(&said), "case {case} with seed {seed}");
            assert!(expected[case].1.starts_with(&text), "case {case} with seed {seed}");
        }
        assert_eq!(scheduler.running(), running.len());
    }
    assert!(n_whole >= cases.len() / 2, "most are not cancelled: {n_whole}");
}

#[test]
fn requests_get_the_same_tokens_in_any_company() {
    let mut alone = demo(streaming());
    let cases = cases(&alone, &mut Random(7));
    let expected: Vec<_> = cases.iter().map(|case| case.alone(&mut alone)).collect();
    assert!(expected.iter().any(|(said, _)| said.len() > 20));
    let cache = PrefixCacheOptions { memory_bytes: 12 << 20, directory: None, disk_bytes: 0 };
    for (sessions, prompt_chunk, prefix_cache) in
        [(4, Some(100), None), (3, None, Some(cache.clone())), (5, Some(5), Some(cache))]
    {
        let options = EngineOptions { sessions, prompt_chunk, prefix_cache, ..streaming() };
        let mut scheduler = Scheduler::new(demo(options));
        assert_eq!(scheduler.capacity(), sessions);
        for seed in 0..2 {
            run(&mut scheduler, &cases, &expected, seed);
        }
        let stats = scheduler.stats();
        assert_eq!((stats.running, stats.failed, stats.started), (0, 0, 28));
        assert!(stats.rows > stats.passes, "requests share passes");
        assert!(stats.cancelled > 0, "some are cancelled");
        if let Some(cache) = stats.prefix_cache {
            assert!(cache.hits > 0 && cache.memory_bytes <= 12 << 20, "{cache:?}");
            assert_eq!(cache.cached_tokens, stats.cached_tokens);
        }
    }
}

/// Alone, a greedy request needs no logits; asked for probabilities, it has them.
#[test]
fn greedy_tokens_are_the_same_with_and_without_their_probabilities() {
    let mut engine = demo(streaming());
    let prompt = held_out(&engine, 0, 40);
    let mut said_with = |logprobs| {
        let options =
            GenerateOptions { max_tokens: Some(24), logprobs, ..GenerateOptions::default() };
        let mut session = engine.session().expect("a session");
        let steps = engine.generate(&mut session, &prompt, options).expect("it is sound");
        let said: Vec<_> = steps.map(|step| step.expect("it goes well").token).collect();
        (said, engine.logits().is_empty())
    };
    let ((said, none), (same, some)) = (said_with(None), said_with(Some(2)));
    assert_eq!((none, some), (true, false), "with logits or without");
    assert!(said == same && said.len() == 24, "{said:?} {same:?}");
}

/// Which requests said something in a pass, and how far each prompt is.
#[derive(Default)]
struct Pass {
    said: Vec<RequestId>,
    read: HashMap<RequestId, usize>,
}

fn pass(scheduler: &mut Scheduler) -> Pass {
    let mut pass = Pass::default();
    scheduler.step(&mut |id, event| match event.expect("it goes well") {
        Event::Progress { done, .. } => drop(pass.read.insert(id, done)),
        Event::Step(_) => pass.said.push(id),
    });
    pass
}

fn plain(prompt: Vec<u32>) -> Request {
    Request { prompt, options: GenerateOptions::default(), constraint: None }
}

#[test]
fn prompts_are_read_in_turn_and_nobody_who_decodes_waits_for_them() {
    let options = EngineOptions { sessions: 3, prompt_chunk: Some(64), ..streaming() };
    let mut scheduler = Scheduler::new(demo(options));
    let [long, other] = [600, 200].map(|n| held_out(scheduler.engine(), 0, n));
    let long = scheduler.start(plain(long)).expect("it is sound");
    assert_eq!(pass(&mut scheduler).read, [(long, 64)].into(), "alone it has the whole pass");
    let other = scheduler.start(plain(other)).expect("it is sound");
    let short = scheduler.start(plain(vec![5, 6, 7])).expect("it is sound");
    assert_eq!(pass(&mut scheduler).read, [(other, 64)].into());
    let next = pass(&mut scheduler);
    assert_eq!(next.read, [(short, 3), (long, 125)].into(), "in turn");
    assert_eq!(next.said, [short]);
    let mut n_passes = 0;
    while !scheduler.stats().reading.eq(&0) {
        let pass = pass(&mut scheduler);
        assert!(pass.said.contains(&short), "a token a pass");
        assert!(pass.read.values().count() <= 2);
        n_passes += 1;
    }
    // 475 and 136 tokens by 63, 62 at a time.
    assert!((10..=11).contains(&n_passes), "{n_passes} passes");
}

#[test]
fn a_long_run_that_follows_by_itself_leaves_room_for_prompts() {
    let options = EngineOptions { sessions: 2, prompt_chunk: Some(64), ..streaming() };
    let mut scheduler = Scheduler::new(demo(options));
    let constraint = Some(script(&[300], &[500; 400], 2).0);
    let forced = Request { constraint, ..plain(vec![5, 6, 7]) };
    let forced = scheduler.start(forced).expect("it is sound");
    assert_eq!(pass(&mut scheduler).said, [forced]);
    let prompt = held_out(scheduler.engine(), 0, 100);
    let reading = scheduler.start(plain(prompt)).expect("it is sound");
    let read = [0; 3].map(|_| pass(&mut scheduler).read[&reading]);
    assert_eq!(read, [32, 64, 96], "half of what is left by the one row");
}

#[test]
fn what_cannot_be_started_holds_nothing() {
    let cache = PrefixCacheOptions { memory_bytes: 12 << 20, directory: None, disk_bytes: 0 };
    let prefix_cache = Some(cache);
    let options = EngineOptions { sessions: 1, context: Some(64), prefix_cache, ..streaming() };
    let mut scheduler = Scheduler::new(demo(options));
    for _ in 0..3 {
        assert!(matches!(scheduler.start(plain(vec![])), Err(Error::EmptyPrompt)));
        assert!(matches!(scheduler.start(plain(vec![8192])), Err(Error::UnknownToken { .. })));
        assert!(matches!(scheduler.start(plain(vec![1; 65])), Err(Error::ContextFull { .. })));
    }
    let cache = scheduler.stats().prefix_cache.expect("there is one");
    assert_eq!(cache.lookups, 0, "nothing is read for them");
    let id = scheduler.start(plain(vec![1; 64])).expect("there is room");
    assert!(matches!(scheduler.start(plain(vec![1])), Err(Error::TooManySessions { limit: 1 })));
    assert_eq!(pass(&mut scheduler).said, [id], "the context is full");
    assert_eq!(scheduler.running(), 0);

    // A flag ends a request with a last step, before its prompt is read as well as later.
    for n_passes in [0, 2] {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut request = plain(vec![1; 8]);
        request.options.cancel = Some(Arc::clone(&cancel));
        let id = scheduler.start(request).expect("there is room");
        (0..n_passes).for_each(|_| assert_eq!(pass(&mut scheduler).said, [id]));
        cancel.store(true, Ordering::Relaxed);
        let mut last = None;
        scheduler.step(&mut |_, event| last = event.ok());
        let Some(Event::Step(step)) = last else { panic!("a last step") };
        assert_eq!((step.token, step.finish), (None, Some(FinishReason::Cancelled)));
        assert_eq!(scheduler.running(), 0);
    }
    assert_eq!(scheduler.stats().cancelled, 2);
    let passes = scheduler.stats().passes;
    assert!(pass(&mut scheduler).said.is_empty());
    assert_eq!(scheduler.stats().passes, passes, "nothing to do");
}

#[test]
fn a_failed_read_fails_the_requests_of_its_pass_and_not_the_scheduler() {
    let directory = tiny_copy("scheduler");
    let options = EngineOptions { expert_cache: Some(1), sessions: 3, ..EngineOptions::default() };
    let mut scheduler = Scheduler::new(Engine::open(&directory, &options).expect("it opens"));
    let prompts = [vec![1, 2, 3], vec![4, 5], vec![6]];
    let ids = prompts.map(|prompt| scheduler.start(plain(prompt)).expect("it is sound"));
    assert_eq!(pass(&mut scheduler).said, ids);

    let model = directory.join("model.safetensors");
    let whole = std::fs::read(&model).expect("it can be read");
    let file = std::fs::OpenOptions::new().write(true).open(&model).expect("it can be opened");
    file.set_len(8192).expect("it can be cut");
    let mut failed = Vec::new();
    scheduler.step(&mut |id, event| {
        let error = event.expect_err("experts are gone");
        let cause = std::error::Error::source(&error).expect("there is a reason").to_string();
        assert!(matches!(error, Error::Pass(_)));
        assert!(cause.contains("model.safetensors"), "{error}: {cause}");
        failed.push(id);
    });
    assert_eq!(failed, ids);
    assert_eq!((scheduler.running(), scheduler.stats().failed), (0, 3));

    std::fs::write(&model, whole).expect("it can be mended");
    let id = scheduler.start(plain(vec![1, 2, 3])).expect("there is room");
    assert_eq!(pass(&mut scheduler).said, [id], "the scheduler lives on");
    std::fs::remove_dir_all(&directory).expect("it can be removed");
}

#[test]
fn a_failed_constraint_fails_its_request_alone() {
    let mut scheduler = Scheduler::new(demo(EngineOptions { sessions: 2, ..streaming() }));
    let sound = scheduler.start(plain(vec![5, 6, 7])).expect("it is sound");
    let constraint = Some(script(&[], &[], 1).0);
    let broken = Request { constraint, ..plain(vec![5, 6]) };
    let broken = scheduler.start(broken).expect("it is sound");
    let mut outcomes = HashMap::new();
    scheduler.step(&mut |id, event| {
        if !matches!(event, Ok(Event::Progress { .. })) {
            outcomes.insert(id, event.map(drop));
        }
    });
    assert!(matches!(outcomes[&broken], Err(Error::Constraint(_))));
    assert!(outcomes[&sound].is_ok());
    assert_eq!(pass(&mut scheduler).said, [sound]);
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    // The embedding of one token is damaged.
    let directory = tiny_copy("not-finite");
    let path = directory.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("it can be read");
    let (len, rest) = bytes.split_first_chunk().expect("a length");
    let header_bytes = u64::from_le_bytes(*len) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&rest[..header_bytes]).expect("a header");
    let tensors = header.as_object().expect("tensors by name");
    let (_, embedding) =
        tensors.iter().find(|(name, _)| name.contains("embed_tokens")).expect("it has one");
    let begin = 8 + header_bytes + embedding["data_offsets"][0].as_u64().expect("it") as usize;
    let row_bytes = 2 * embedding["shape"][1].as_u64().expect("a width") as usize;
    assert_eq!(embedding["dtype"], "BF16");
    bytes[begin + 7 * row_bytes..][..row_bytes].fill(0xff);
    std::fs::write(&path, bytes).expect("it can be written");

    let options = EngineOptions { sessions: 2, ..EngineOptions::default() };
    let mut engine = Engine::open(&directory, &options).expect("it opens");
    let case = Case {
        prompt: vec![1, 2, 3],
        options: GenerateOptions { max_tokens: Some(4), ..GenerateOptions::default() },
        is_constrained: false,
    };
    let expected = case.alone(&mut engine).0;
    let mut scheduler = Scheduler::new(engine);
    let damaged = scheduler.start(plain(vec![4, 7])).expect("it is sound");
    let sound = scheduler.start(case.request()).expect("it is sound");
    let (mut said, mut failed) = (Vec::new(), Vec::new());
    while scheduler.running() > 0 {
        scheduler.step(&mut |id, event| match event {
            Ok(Event::Progress { .. }) => {}
            Ok(Event::Step(step)) => {
                assert_eq!(id, sound);
                said.extend(step.token);
            }
            Err(error) => failed.push((id, error.to_string())),
        });
    }
    assert_eq!(said, expected);
    let [(id, message)] = &failed[..] else { panic!("one fails: {failed:?}") };
    assert_eq!(*id, damaged);
    assert!(message.contains("after 2 tokens are not finite"), "{message}");
    std::fs::remove_dir_all(&directory).expect("it can be removed");
}
