//! Sessions: one or many, in any batches, the same numbers.

use engine::{Engine, EngineOptions, Error, Part};

use crate::{demo, streaming, tiny_copy, tokens};

const FIRST: &str = "Once upon a time, there was a little girl who had a red ball.";
const SECOND: &str = "The cat sat on the mat and looked at the moon. It was cold.";

/// Logits of every token of a text in a session of its own.
fn alone(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let mut session = engine.session().expect("a session");
    let mut logits = Vec::new();
    let all =
        engine.evaluate(&mut session, tokens, |_| true, |_, row| logits.extend_from_slice(row));
    all.expect("it goes well");
    logits
}

#[test]
fn sequences_of_a_mixed_batch_give_what_they_give_alone() {
    let mut engine = demo(EngineOptions { sessions: 3, ..streaming() });
    let (first, second) = (tokens(&engine, FIRST), tokens(&engine, SECOND));
    let (first_alone, second_alone) = (alone(&mut engine, &first), alone(&mut engine, &second));
    let vocab = engine.config().vocab_size;

    let mut sessions = [engine.session().expect("one"), engine.session().expect("two")];
    let [a, b] = &mut sessions;
    engine.evaluate(a, &first[..6], |_| false, |_, _| ()).expect("it goes well");
    // One decodes a token while the other reads its prompt, then both decode, then the other way.
    let passes: [(&[u32], &[u32]); 3] = [
        (&first[6..7], &second[..9]),
        (&first[7..8], &second[9..10]),
        (&first[8..12], &second[10..11]),
    ];
    let (mut at_a, mut at_b) = (6, 0);
    for (tokens_a, tokens_b) in passes {
        let last_a = tokens_a.len() - 1;
        let last_b = tokens_b.len() - 1;
        let (wants_a, wants_b) = (move |i| i == last_a, move |i| i == last_b);
        let mut parts = [
            Part { session: a, tokens: tokens_a, wants_logits: &wants_a },
            Part { session: b, tokens: tokens_b, wants_logits: &wants_b },
        ];
        engine.forward(&mut parts).expect("it goes well");
        (at_a, at_b) = (at_a + tokens_a.len(), at_b + tokens_b.len());
        let logits = engine.logits();
        assert!(logits[..vocab] == first_alone[(at_a - 1) * vocab..at_a * vocab]);
        assert!(logits[vocab..] == second_alone[(at_b - 1) * vocab..at_b * vocab]);
    }
    assert_eq!((a.tokens(), b.tokens()), (&first[..12], &second[..11]));
}

#[test]
fn there_are_as_many_sessions_as_memory_was_kept_for() {
    let mut engine = demo(EngineOptions { sessions: 2, ..streaming() });
    let first = engine.session().expect("one");
    let _second = engine.session().expect("two");
    assert!(matches!(engine.session().err(), Some(Error::TooManySessions { limit: 2 })));
    drop(first);
    engine.session().expect("a place is free again");
}

#[test]
fn a_failed_request_ends_its_session_and_not_the_engine() {
    // The file is cut while the engine has it open.
    let directory = tiny_copy("cut");
    let options = EngineOptions { expert_cache: Some(1), sessions: 2, ..EngineOptions::default() };
    let mut engine = Engine::open(&directory, &options).expect("the copy opens");
    let mut session = engine.session().expect("a session");
    engine.evaluate(&mut session, &[1, 2, 3], |_| false, |_, _| ()).expect("it goes well");

    let model = directory.join("model.safetensors");
    let whole = std::fs::read(&model).expect("it can be read");
    let file = std::fs::OpenOptions::new().write(true).open(&model).expect("it can be opened");
    file.set_len(8192).expect("it can be cut");
    let error = engine.evaluate(&mut session, &[4, 5, 6], |_| false, |_, _| ());
    let error = error.expect_err("experts are gone");
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("model.safetensors") && cause.contains("expert"), "{error}: {cause}");
    let again = engine.evaluate(&mut session, &[4], |_| false, |_, _| ());
    assert!(matches!(again, Err(Error::SessionBroken)));

    std::fs::write(&model, whole).expect("it can be mended");
    let mut session = engine.session().expect("another session");
    engine.evaluate(&mut session, &[1, 2, 3], |_| true, |_, _| ()).expect("the engine lives on");
    std::fs::remove_dir_all(&directory).expect("it can be removed");
}
