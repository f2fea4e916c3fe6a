//! Tool calls of the demo model, free and held to the schemas of its tools, at four and at two bits.
//!
//! `FLASH_MOE_ALL_PROMPTS=1` runs all prompts in all ways and prints what became of them, also for the model
//! as it was trained where `FLASH_MOE_DEMO_BF16` tells its directory; `FLASH_MOE_REPLIES=FILE` keeps the calls
//! for other validators.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use chat::{ChatModel, ChatRequest, Message, Reply, ToolCall, ToolChoice};
use engine::{Engine, EngineOptions, FinishReason, GenerateOptions};
use serde_json::{Map, Value, json};

use crate::{demo_directory, fixture, two_bit};

/// A held-out request with the calls that it should lead to.
struct Case {
    messages: Vec<Message>,
    tools: Vec<Value>,
    calls: Value,
    known: bool,
}

fn cases() -> Vec<Case> {
    let lines = fs::read_to_string(fixture("demo-eval/tool_calls.jsonl")).expect("it is there");
    let case = |line: &str| {
        let mut case: Value = serde_json::from_str(line).expect("a line of JSON");
        Case {
            messages: serde_json::from_value(case["messages"].take()).expect("messages"),
            tools: serde_json::from_value(case["tools"].take()).expect("tools"),
            calls: case["calls"].take(),
            known: case["group"] == "known tools",
        }
    };
    lines.lines().map(case).collect()
}

/// How a reply is held to the tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// Not at all.
    Free,
    /// From the mark of a call on.
    Auto,
    /// From its beginning.
    Required,
}

/// At two bits the model runs in circles now and then, and a call is brought to its end before the limit of
/// tokens. So many make a short run; else the context is the limit of held calls, as where nobody sets one.
const MAX_TOKENS: usize = 600;

fn all_prompts() -> bool {
    std::env::var_os("FLASH_MOE_ALL_PROMPTS").is_some()
}

/// What became of replies.
#[derive(Default, Debug)]
struct Score {
    n: usize,
    /// The model called nothing.
    silent: usize,
    /// Whole calls and nothing malformed, to their end.
    parsed: usize,
    /// Those of them that the limit of tokens has brought to their end.
    hurried: usize,
    offered: usize,
    matching: usize,
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

/// A reply, with all tokens up to its end.
struct Said {
    reply: Reply,
    tokens: Vec<u32>,
    n_prompt: usize,
    n_tokens: usize,
    n_passes: usize,
    finish: FinishReason,
}

fn run(engine: &mut Engine, model: &ChatModel, request: &ChatRequest) -> Said {
    let is_limited = !request.constrain_tools || !all_prompts();
    let max_tokens = is_limited.then_some(MAX_TOKENS);
    let tokenizer = engine.tokenizer().expect("it has one").clone();
    let mut prompt = model.prompt(&tokenizer, request).expect("a prompt");
    let options = GenerateOptions {
        max_tokens,
        stop_tokens: engine.stop_tokens().to_vec(),
        show_special: true,
        ..GenerateOptions::default()
    };
    let mut session = engine.session().expect("a session");
    let (mut reply, mut tokens) = (Reply::default(), prompt.tokens.clone());
    let (mut n_tokens, mut n_passes, mut finish) = (0, 0, FinishReason::Cancelled);
    let steps = engine
        .generate_constrained(&mut session, &prompt.tokens, options, prompt.constraint.take())
        .expect("it is sound");
    for step in steps {
        let step = step.expect("it goes well");
        n_tokens += 1;
        n_passes += usize::from(step.usage.tokens > 0);
        for event in prompt.parser.push(&step.text) {
            reply.add(&event);
        }
        tokens.extend(step.token);
        finish = step.finish.unwrap_or(finish);
    }
    prompt.parser.finish().iter().for_each(|event| reply.add(event));
    let n_prompt = prompt.tokens.len();
    Said { reply, tokens, n_prompt, n_tokens, n_passes, finish }
}

fn score(engine: &mut Engine, case: &Case, hold: Hold, score: &mut Score, kept: &mut String) {
    let tokenizer = engine.tokenizer().expect("it has one").clone();
    let model = ChatModel::open(&demo_directory(), None, &tokenizer).expect("a template");
    let mut request = ChatRequest {
        messages: case.messages.clone(),
        tools: case.tools.clone(),
        enable_thinking: Some(false),
        constrain_tools: hold != Hold::Free,
        tool_choice: match hold {
            Hold::Free | Hold::Auto => ToolChoice::Auto,
            Hold::Required => ToolChoice::Required,
        },
        ..ChatRequest::default()
    };
    let Said { reply, tokens, n_prompt, n_tokens, n_passes, finish } =
        run(engine, &model, &request);
    score.n += 1;
    score.tokens += n_tokens;
    score.passes += n_passes;
    score.silent += usize::from(reply.calls.is_empty() && reply.malformed.is_empty());
    // A free reply that the limit has cut is no whole one, whatever it has called before.
    let is_whole = hold != Hold::Free || finish == FinishReason::Stop;
    let parsed = !reply.calls.is_empty() && reply.malformed.is_empty() && is_whole;
    score.hurried += usize::from(parsed && finish == FinishReason::Length);
    let tool = |call: &ToolCall| {
        case.tools.iter().map(|tool| &tool["function"]).find(|tool| tool["name"] == call.name)
    };
    let offered = parsed && reply.calls.iter().all(|call| tool(call).is_some());
    let matching = offered
        && reply.calls.iter().all(|call| {
            let arguments = serde_json::from_str(&call.arguments).expect("it is JSON");
            tool(call).is_some_and(|tool| matches(&arguments, &tool["parameters"]))
        });
    score.parsed += usize::from(parsed);
    score.offered += usize::from(offered);
    score.matching += usize::from(matching);
    score.exact += usize::from(parsed && are_the_calls(&reply.calls, &case.calls));
    let call = |call: &ToolCall| json!({ "name": call.name, "arguments": call.arguments });
    let calls: Vec<Value> = reply.calls.iter().map(call).collect();
    let line = json!({ "hold": format!("{hold:?}"), "parsed": parsed, "calls": calls,
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

/// The calls that were expected, in order; values count as their texts, as the model writes them.
fn are_the_calls(calls: &[ToolCall], expected: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    };
    let texts = |arguments: &Map<String, Value>| {
        let mut texts: Vec<_> =
            arguments.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        texts.sort();
        texts
    };
    let expected = expected.as_array().expect("a list of calls");
    calls.len() == expected.len()
        && calls.iter().zip(expected).all(|(call, expected)| {
            let arguments: Map<String, Value> =
                serde_json::from_str(&call.arguments).expect("it is JSON");
            call.name == expected["name"]
                && texts(&arguments) == texts(expected["arguments"].as_object().expect("a map"))
        })
}

/// Whether a value matches a schema of those keywords that the prompts' tools use. It shares nothing with
/// the grammars.
fn matches(value: &Value, schema: &Value) -> bool {
    for (keyword, wanted) in schema.as_object().expect("a schema is an object") {
        let holds = match keyword.as_str() {
            "description" => true,
            "type" => match wanted.as_str().expect("one type") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64(),
                "number" => value.is_number(),
                other => panic!("the validator knows no type {other}"),
            },
            "enum" => wanted.as_array().expect("a list").contains(value),
            "items" => {
                value.as_array().is_none_or(|items| items.iter().all(|item| matches(item, wanted)))
            }
            "required" => wanted
                .as_array()
                .expect("a list")
                .iter()
                .all(|key| value.get(key.as_str().expect("a name")).is_some()),
            "properties" => value.as_object().is_none_or(|map| {
                map.iter().all(|(key, value)| {
                    wanted.get(key).is_some_and(|schema| matches(value, schema))
                })
            }),
            other => panic!("the validator knows no keyword {other}"),
        };
        if !holds {
            return false;
        }
    }
    true
}

#[test]
fn held_calls_always_match_their_schemas() {
    let all = all_prompts();
    let cases = cases();
    assert_eq!(cases.len(), 200);
    let two_bit = two_bit::write(&demo_directory(), "tool-calls");
    let mut kept = String::new();
    let mut models = vec![("4 bits", demo_directory()), ("experts at 2 bits", two_bit.0.clone())];
    if let Some(path) = std::env::var_os("FLASH_MOE_DEMO_BF16").filter(|_| all) {
        models.insert(0, ("16 bits", path.into()));
    }
    for (name, path) in models {
        let mut engine = open(&path);
        for hold in [Hold::Free, Hold::Auto, Hold::Required] {
            let mut scores = [Score::default(), Score::default()];
            for (index, case) in cases.iter().enumerate() {
                // In a short run, ten cases go one way and ten others the other.
                let due = match hold {
                    Hold::Free => false,
                    Hold::Auto => index % 10 == 0,
                    Hold::Required => index % 10 == 5,
                };
                if all || due {
                    score(&mut engine, case, hold, &mut scores[usize::from(case.known)], &mut kept);
                }
            }
            for (group, score) in ["unseen", "known"].iter().zip(&scores) {
                println!("{name}, {hold:?}, {group} tools: {score:?}");
                if hold == Hold::Free {
                    continue;
                }
                let silent = if hold == Hold::Auto { score.silent } else { 0 };
                let valid = [score.parsed, score.offered, score.matching];
                assert_eq!(valid, [score.n - silent; 3], "{name}, {hold:?}, {group}: {score:?}");
                assert_eq!(score.replayed, score.n, "{name}, {hold:?}, {group}: {score:?}");
                assert_eq!(score.same_text, score.n, "{name}, {hold:?}, {group}: {score:?}");
                assert!(score.passes < score.tokens, "forced runs cost no pass: {score:?}");
            }
        }
    }
    if let Some(path) = std::env::var_os("FLASH_MOE_REPLIES") {
        fs::write(path, kept).expect("it can be written");
    }
}
