//! What has begun comes to its end before the limit of tokens, whatever the model would rather say.

use chat::{ChatModel, ChatRequest, Reply, ToolChoice};
use serde_json::{Value, json};

use crate::replies::{MODELS, request};

const VOCABULARY: usize = 8192;

/// What was said under a limit of tokens.
#[derive(Debug)]
pub struct Said {
    pub text: String,
    pub n_tokens: usize,
    /// Whether it came to its end.
    pub is_whole: bool,
    /// Whether the limit had a part in it.
    pub is_hurried: bool,
}

/// A model that likes tokens by chance, and those least that end something: what `wish` draws.
pub fn speak(
    model: &ChatModel,
    request: &ChatRequest,
    lead: &[u32],
    limit: usize,
    wish: &mut dyn FnMut(u32) -> f32,
) -> Said {
    let tokenizer = &MODELS.tokenizer;
    let mut prompt = model.prompt(tokenizer, request).expect("a prompt");
    let constraint = prompt.constraint.as_mut().expect("a constraint");
    let stop = tokenizer.token_id("<|im_end|>").expect("a token");
    let mut said = lead.to_vec();
    let (mut is_whole, mut is_hurried) = (false, false);
    for &token in lead {
        constraint.forced(&mut Vec::new()).expect("it holds");
        constraint.commit(token).expect("it was allowed");
    }
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
pub fn rambling(seed: u64) -> impl FnMut(u32) -> f32 {
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
                let said = speak(model, &request, &[], limit, &mut rambling(seed));
                assert!(said.is_whole && said.is_hurried, "{name}, {tool}, {limit}: {said:?}");
                assert!(said.n_tokens <= limit, "{name}, {tool}, {limit}: {said:?}");
                let reply = read(model, &request, &said.text);
                assert_eq!(reply.malformed, [""; 0], "{name}, {tool}, {limit}: {said:?}");
                assert!(reply.calls.iter().all(|call| call.name == tool), "{reply:?}");
            }
        }
    }
}
