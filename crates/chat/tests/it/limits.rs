//! What has begun comes to its end before the limit of tokens, whatever the model would rather say.

use chat::{ChatModel, ChatRequest, Reply, ResponseFormat, ToolChoice};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::replies::{MODELS, request};

const VOCABULARY: usize = 8192;

/// What was said under a limit of tokens.
#[derive(Debug)]
struct Said {
    text: String,
    n_tokens: usize,
    /// Whether it came to its end.
    is_whole: bool,
    /// Whether the limit had a part in it.
    is_hurried: bool,
}

/// A model that likes tokens by chance, and those least that end something: what `wish` draws.
fn speak(
    model: &ChatModel,
    request: &ChatRequest,
    limit: usize,
    wish: &mut dyn FnMut(u32) -> f32,
) -> Said {
    let tokenizer = &MODELS.tokenizer;
    let mut prompt = model.prompt(tokenizer, request).expect("a prompt");
    let constraint = prompt.constraint.as_mut().expect("a constraint");
    let stop = tokenizer.token_id("<|im_end|>").expect("a token");
    let mut said = Vec::new();
    let (mut is_whole, mut is_hurried) = (false, false);
    while said.len() < limit && !is_whole {
        let mut forced = Vec::new();
        constraint.forced(&mut forced).expect("it holds");
        said.extend(forced);
        if constraint.is_finished() || said.len() >= limit {
            is_whole = constraint.is_finished() && said.len() <= limit;
            break;
        }
        let mut logits: Vec<f32> = (0..VOCABULARY as u32).map(&mut *wish).collect();
        constraint.mask(&mut logits).expect("it holds");
        let token = loop {
            let tokens = 0..VOCABULARY as u32;
            let best = tokens.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]));
            let best = best.expect("there are tokens");
            assert!(logits[best as usize].is_finite(), "some token may come");
            if constraint.accept(best, limit - said.len() - 1, &mut logits).expect("it holds") {
                break best;
            }
            is_hurried = true;
            logits[best as usize] = f32::NEG_INFINITY;
        };
        said.push(token);
        is_whole = token == stop;
        if !is_whole {
            constraint.commit(token).expect("it was allowed");
            is_whole = constraint.is_finished();
        }
    }
    let n_tokens = said.len();
    said.retain(|&token| token != stop);
    Said { text: tokenizer.decode(&said, false), n_tokens, is_whole, is_hurried }
}

/// Draws wishes of a model that goes on and on.
fn rambling(seed: u64) -> impl FnMut(u32) -> f32 {
    let mut state = seed | 1;
    let ends: Vec<bool> = (0..VOCABULARY as u32)
        .map(|token| {
            let bytes = MODELS.tokenizer.token_bytes(token);
            MODELS.tokenizer.is_special(token) || bytes.iter().any(|byte| b"\"}]<\n".contains(byte))
        })
        .collect();
    move |token| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let chance = (state >> 40) as f32 / (1 << 24) as f32;
        if ends[token as usize] { chance - 10.0 } else { chance }
    }
}

fn read(model: &ChatModel, request: &ChatRequest, text: &str) -> Reply {
    let mut parser = model.prompt(&MODELS.tokenizer, request).expect("a prompt").parser;
    let mut reply = Reply::default();
    for event in parser.push(text).into_iter().chain(parser.finish()) {
        reply.add(&event);
    }
    reply
}

fn tools() -> Value {
    json!([
        { "type": "function", "function": { "name": "write", "parameters": {
            "type": "object", "required": ["path", "text"], "properties": {
                "path": { "type": "string" }, "text": { "type": "string" },
                "mode": { "type": "integer" },
        } } } },
        { "type": "function", "function": { "name": "search", "parameters": {
            "type": "object", "required": ["query", "filter"], "properties": {
                "query": { "type": "string", "minLength": 3 },
                "tags": { "type": "array", "items": { "type": "string" } },
                "filter": { "type": "object", "additionalProperties": false,
                    "required": ["day", "n", "kind"], "properties": {
                        "day": { "type": "string", "format": "date" },
                        "n": { "type": "integer", "minimum": 100 },
                        "kind": { "enum": ["new", "old", 7] },
                        "more": { "type": "array", "minItems": 2, "items": { "type": "number" } },
                } },
        } } } },
        { "type": "function", "function": { "name": "mail", "parameters": {
            "type": "object", "required": ["to", "id"], "properties": {
                "to": { "type": "string", "format": "email" },
                "id": { "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,}$" },
                "tree": { "$ref": "#/$defs/tree" },
            },
            "$defs": { "tree": { "type": "object", "required": ["next"],
                "properties": { "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/tree" }] } } } },
        } } },
    ])
}

#[test]
fn calls_end_before_the_limit() {
    for (name, model) in [("xml", &MODELS.xml), ("json", &MODELS.json)] {
        for tool in ["write", "search", "mail"] {
            for (seed, limit) in [(1, 150), (2, 151), (3, 200), (4, 300), (5, 301), (6, 600)] {
                let mut request = request(tools());
                request.tool_choice = ToolChoice::Named(tool.to_owned());
                let said = speak(model, &request, limit, &mut rambling(seed));
                assert!(said.is_whole && said.is_hurried, "{name}, {tool}, {limit}: {said:?}");
                assert!(said.n_tokens <= limit, "{name}, {tool}, {limit}: {said:?}");
                let reply = read(model, &request, &said.text);
                assert_eq!(reply.malformed, [""; 0], "{name}, {tool}, {limit}: {said:?}");
                assert!(reply.calls.iter().all(|call| call.name == tool), "{reply:?}");
            }
        }
    }
}

/// Whether a value matches a schema of the keywords that [`schema`] uses. It shares nothing with the grammars.
fn matches(value: &Value, schema: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return schema == &Value::Bool(true) };
    schema.iter().all(|(keyword, wanted)| {
        let number = || wanted.as_f64().expect("a number");
        let length = |n: Option<usize>, holds: fn(f64, f64) -> bool| {
            n.is_none_or(|n| holds(n as f64, number()))
        };
        let n_chars = value.as_str().map(|text| text.chars().count());
        let n_items = value.as_array().map(Vec::len);
        match keyword.as_str() {
            "type" => match wanted.as_str().expect("one type") {
                "string" => value.is_string(),
                "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
                "number" => value.is_number(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("the validator knows no type {other}"),
            },
            "enum" => wanted.as_array().expect("a list").contains(value),
            "const" => wanted == value,
            "minLength" => length(n_chars, |n, min| n >= min),
            "maxLength" => length(n_chars, |n, max| n <= max),
            "minItems" => length(n_items, |n, min| n >= min),
            "maxItems" => length(n_items, |n, max| n <= max),
            "minimum" => value.as_f64().is_none_or(|value| value >= number()),
            "maximum" => value.as_f64().is_none_or(|value| value <= number()),
            "pattern" => value.as_str().is_none_or(|text| match wanted.as_str() {
                Some("^[a-c]+$") => {
                    !text.is_empty() && text.bytes().all(|byte| b"abc".contains(&byte))
                }
                Some("^[0-9]{3}-x$") => {
                    text.len() == 5
                        && text.ends_with("-x")
                        && text[..3].bytes().all(|byte| byte.is_ascii_digit())
                }
                _ => panic!("the validator knows no pattern {wanted}"),
            }),
            "items" => {
                value.as_array().is_none_or(|items| items.iter().all(|it| matches(it, wanted)))
            }
            "required" => value.as_object().is_none_or(|map| {
                let names = wanted.as_array().expect("a list").iter();
                names.filter_map(Value::as_str).all(|name| map.contains_key(name))
            }),
            "properties" => value.as_object().is_none_or(|map| {
                map.iter().all(|(name, value)| {
                    wanted.get(name).is_none_or(|schema| matches(value, schema))
                })
            }),
            "additionalProperties" => value
                .as_object()
                .is_none_or(|map| map.keys().all(|name| schema["properties"].get(name).is_some())),
            "anyOf" => {
                wanted.as_array().expect("a list").iter().any(|schema| matches(value, schema))
            }
            other => panic!("the validator knows no keyword {other}"),
        }
    })
}

fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({ "type": "string" })),
        (0..4_usize, 0..6_usize).prop_map(
            |(min, more)| json!({ "type": "string", "minLength": min, "maxLength": min + more })
        ),
        prop_oneof![Just("^[a-c]+$"), Just("^[0-9]{3}-x$")]
            .prop_map(|pattern| json!({ "type": "string", "pattern": pattern })),
        (-200..200_i32, 0..300_i32).prop_map(
            |(min, more)| json!({ "type": "integer", "minimum": min, "maximum": min + more })
        ),
        // Numbers without bounds may have more digits than a reader takes.
        Just(json!({ "type": "number", "minimum": -5, "maximum": 5.5 })),
        Just(json!({ "type": "boolean" })),
        Just(json!({ "type": "null" })),
        Just(json!({ "enum": ["red", "dark red", 7, null] })),
        Just(json!({ "const": "only \"this\"\n" })),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0..3_usize, 0..3_usize).prop_map(|(items, min, more)| {
                json!({ "type": "array", "items": items, "minItems": min, "maxItems": min + more })
            }),
            inner.clone().prop_map(|items| json!({ "type": "array", "items": items })),
            prop::collection::vec((inner.clone(), any::<bool>()), 0..4).prop_map(|members| {
                let (mut properties, mut required) = (Map::new(), Vec::new());
                for ((schema, needed), name) in members.into_iter().zip(["a", "b c", "d\"e"]) {
                    properties.insert(name.to_owned(), schema);
                    required.extend(needed.then_some(name));
                }
                json!({ "type": "object", "properties": properties, "required": required,
                    "additionalProperties": false })
            }),
            prop::collection::vec(inner, 1..3).prop_map(|options| json!({ "anyOf": options })),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    /// Whatever is said under a schema ends before the limit, as JSON that matches it.
    #[test]
    fn what_is_said_matches_any_schema(schema in schema(), seed in any::<u64>(), limit in 300..400_usize) {
        let form = ChatRequest {
            format: ResponseFormat::JsonSchema(schema.clone()),
            tools: Vec::new(),
            ..request(json!([]))
        };
        let said = speak(&MODELS.xml, &form, limit, &mut rambling(seed));
        prop_assert!(said.is_whole && said.n_tokens <= limit, "{schema}: {said:?}");
        let value: Value = serde_json::from_str(&said.text).expect("it is JSON");
        prop_assert!(matches(&value, &schema), "{schema}: {value}");

        for model in [&MODELS.xml, &MODELS.json] {
            let mut call = request(json!([{ "name": "f", "parameters": { "type": "object",
                "properties": { "x": schema }, "required": ["x"] } }]));
            call.tool_choice = ToolChoice::Required;
            // Some combinations are refused where values stand outside of JSON.
            if model.prompt(&MODELS.tokenizer, &call).is_err() {
                continue;
            }
            let said = speak(model, &call, limit, &mut rambling(seed));
            prop_assert!(said.is_whole && said.n_tokens <= limit, "{schema}: {said:?}");
            let reply = read(model, &call, &said.text);
            prop_assert!(!reply.calls.is_empty() && reply.malformed.is_empty(), "{schema}: {said:?}");
            for call in &reply.calls {
                let arguments: Value = serde_json::from_str(&call.arguments).expect("it is JSON");
                prop_assert!(matches(&arguments["x"], &schema), "{schema}: {said:?}");
            }
        }
    }
}
