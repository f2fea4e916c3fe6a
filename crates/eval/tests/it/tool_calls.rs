//! Tool calls of the demo model, free and held to the schemas of its tools, at four and at two bits.
//!
//! `FLASH_MOE_ALL_PROMPTS=1` runs all prompts in all ways and prints what became of them;
//! `FLASH_MOE_REPLIES=FILE` keeps the calls for other validators.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use chat::{ChatModel, Message};
use engine::{Engine, EngineOptions};
use eval::{Case, Said, Way, run_case};
use serde_json::{Value, json};

use crate::{held_out, repository, two_bit};

/// What became of replies.
#[derive(Default, Debug)]
struct Score {
    n: usize,
    /// The model called nothing.
    silent: usize,
    well_formed: usize,
    valid: usize,
    exact: usize,
    /// The next prompt has the very text that was said, and the very tokens.
    same_text: usize,
    same_tokens: usize,
    /// The same, when it is told which tokens were said.
    replayed: usize,
    tokens: usize,
    passes: usize,
}

fn open(path: &Path) -> Engine {
    let options = EngineOptions { memory: Some(1 << 30), ..EngineOptions::default() };
    Engine::open(path, &options).expect("the demo model opens")
}

fn score(
    engine: &mut Engine,
    model: &ChatModel,
    (index, case): (usize, &Case),
    way: Way,
    score: &mut Score,
    kept: &mut String,
) {
    let tokenizer = engine.tokenizer().expect("it has one").clone();
    let said = run_case(engine, model, case, way, Some(false)).expect("it goes well");
    let unit = case.judge(index, way, &said);
    let Said { mut request, reply, tokens, n_prompt, n_passes, .. } = said;
    score.n += 1;
    score.tokens += tokens.len() - n_prompt;
    score.passes += n_passes;
    score.silent += usize::from(reply.calls.is_empty() && reply.malformed.is_empty());
    score.well_formed += usize::from(unit.well_formed);
    score.valid += usize::from(unit.valid.expect("all keywords are checked"));
    score.exact += usize::from(unit.exact.expect("the file says what should come"));
    let call = |call: &chat::ToolCall| json!({ "name": call.name, "arguments": call.arguments });
    let calls: Vec<Value> = reply.calls.iter().map(call).collect();
    let line = json!({ "hold": format!("{way:?}"), "parsed": unit.well_formed, "calls": calls,
        "tools": case.tools, "content": reply.content });
    writeln!(kept, "{line}").expect("a String takes all");

    // The tools' results follow; all before them has to be what was computed.
    request.messages.push(reply.to_message());
    request.messages.push(Message::new("tool", "done"));
    let next = model.prompt(&tokenizer, &request).expect("a prompt").tokens;
    score.same_tokens += usize::from(next.starts_with(&tokens));
    let text = |tokens: &[u32]| tokenizer.decode(tokens, false);
    request.said.push(tokens[n_prompt..].to_vec());
    let told = model.prompt(&tokenizer, &request).expect("a prompt").tokens;
    score.replayed += usize::from(told.starts_with(&tokens));
    assert_eq!(tokenizer.decode(&told, false), tokenizer.decode(&next, false));
    score.same_text += usize::from(text(&next).starts_with(&text(&tokens)));
}

#[test]
fn held_calls_always_match_their_schemas() {
    let all = std::env::var_os("FLASH_MOE_ALL_PROMPTS").is_some();
    let cases = Case::read_all(&held_out("tool_calls.jsonl")).expect("it is sound");
    assert_eq!(cases.len(), 200);
    let demo = repository("models/demo");
    let two_bit = two_bit::write(&demo, "tool-calls");
    let mut kept = String::new();
    for (name, path) in [("4 bits", &demo), ("experts at 2 bits", &two_bit.0)] {
        let mut engine = open(path);
        let tokenizer = engine.shared_tokenizer().expect("it has one");
        let model = ChatModel::open(&demo, None, &tokenizer).expect("a template");
        for way in [Way::Free, Way::Auto, Way::Constrained] {
            let mut scores = [Score::default(), Score::default()];
            for (index, case) in cases.iter().enumerate() {
                // In a short run, ten cases go one way and ten others the other.
                let due = match way {
                    Way::Free => false,
                    Way::Auto => index % 10 == 0,
                    Way::Constrained => index % 10 == 5,
                };
                if all || due {
                    let of_group = &mut scores[usize::from(case.group == "known tools")];
                    score(&mut engine, &model, (index, case), way, of_group, &mut kept);
                }
            }
            for (group, score) in ["unseen", "known"].iter().zip(&scores) {
                println!("{name}, {way:?}, {group} tools: {score:?}");
                if way == Way::Free {
                    continue;
                }
                let silent = if way == Way::Auto { score.silent } else { 0 };
                let valid = [score.well_formed, score.valid];
                assert_eq!(valid, [score.n - silent; 2], "{name}, {way:?}, {group}: {score:?}");
                assert_eq!(score.replayed, score.n, "{name}, {way:?}, {group}: {score:?}");
                assert_eq!(score.same_text, score.n, "{name}, {way:?}, {group}: {score:?}");
                assert!(score.passes < score.tokens, "forced runs cost no pass: {score:?}");
            }
        }
    }
    if let Some(path) = std::env::var_os("FLASH_MOE_REPLIES") {
        fs::write(path, kept).expect("it can be written");
    }
}

#[test]
fn json_is_judged_by_its_schema_and_its_value() {
    let demo = repository("models/demo");
    let mut engine = open(&demo);
    let tokenizer = engine.shared_tokenizer().expect("it has one");
    let model = ChatModel::open(&demo, None, &tokenizer).expect("a template");
    let cases = Case::read_all(&held_out("json.jsonl")).expect("it is sound");
    assert_eq!(cases.len(), 44);
    let right = &cases[0];
    let wrong = Case { answer: Some(json!({ "city": "Oslo", "pet": "spider" })), ..right.clone() };
    for way in [Way::Free, Way::Constrained] {
        let said = run_case(&mut engine, &model, right, way, Some(false)).expect("it goes well");
        let unit = right.judge(0, way, &said);
        assert!(unit.json && unit.well_formed, "{way:?}: {}", said.reply.content);
        assert_eq!((unit.valid, unit.exact), (Some(true), Some(true)), "{}", said.reply.content);
        assert_eq!(wrong.judge(0, way, &said).exact, Some(false));
    }
}

#[test]
fn sums_are_judged_by_the_number_at_the_end() {
    let demo = repository("models/demo");
    let mut engine = open(&demo);
    let tokenizer = engine.shared_tokenizer().expect("it has one");
    let model = ChatModel::open(&demo, None, &tokenizer).expect("a template");
    let cases = Case::read_all(&held_out("sums.jsonl")).expect("it is sound");
    assert_eq!(cases.len(), 200);
    let sums = || cases.iter().step_by(10);
    assert!(sums().all(|case| case.ways() == [Way::Free] && case.group == "sums"));
    let units = sums().enumerate().map(|(index, case)| {
        let said =
            run_case(&mut engine, &model, case, Way::Free, Some(false)).expect("it goes well");
        let unit = case.judge(index, Way::Free, &said);
        assert!(unit.number && !unit.json && unit.well_formed, "{}", said.reply.content);
        let other = Case { answer: Some(json!(1.5)), ..case.clone() };
        assert_eq!(other.judge(index, Way::Free, &said).exact, Some(false));
        unit.exact
    });
    let n_exact = units.filter(|exact| *exact == Some(true)).count();
    assert!(n_exact >= 18, "{n_exact} of 20; 97 % of all as trained");
}

#[test]
fn requests_that_want_nothing_or_two_things_are_refused() {
    let refused = |line: &str| {
        let path = crate::scratch("requests.jsonl");
        fs::write(&path, line).expect("it can be written");
        Case::read_all(&path).expect_err("it is refused").to_string()
    };
    let wants_one = "has to have either \"tools\", or \"response_format\"";
    for line in [
        r#"{"user": "Hello"}"#,
        r#"{"user": "What is 2 + 3?", "answer": "five"}"#,
        r#"{"user": "x", "tools": [{"name": "f"}], "response_format": {"type": "json_object"}}"#,
    ] {
        let message = refused(line);
        assert!(message.contains(wants_one) && message.contains("line 1"), "{message}");
    }
    assert!(refused(r#"{"answer": "5"}"#).contains("either \"messages\" or \"user\""));
}
