//! What is refused, and how it is told.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::support::{Served, assert_snapshot};

#[test]
fn nothing_goes_unnoticed() {
    let served = Served::new();
    let message = json!([{ "role": "user", "content": "Hi" }]);
    let chat = |more: Value| {
        let mut body = json!({ "model": "demo", "messages": message });
        for (name, value) in more.as_object().expect("changes are an object") {
            body[name] = value.clone();
        }
        body
    };
    let tool = json!({ "type": "function", "function": { "name": "find", "parameters": {} } });
    let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]);
    let requests = [
        ("/v1/chat/completions", json!({ "messages": message })),
        ("/v1/chat/completions", json!({ "model": "gpt-5", "messages": message })),
        ("/v1/chat/completions", json!({ "model": "demo" })),
        ("/v1/chat/completions", json!({ "model": "demo", "messages": [] })),
        ("/v1/chat/completions", json!({ "model": "demo", "messages": image })),
        ("/v1/chat/completions", chat(json!({ "messages": [{ "role": "king", "content": "" }] }))),
        ("/v1/chat/completions", chat(json!({ "messages": [{ "role": "user", "text": "" }] }))),
        ("/v1/chat/completions", chat(json!({ "temprature": 1 }))),
        ("/v1/chat/completions", chat(json!({ "temperature": -1 }))),
        ("/v1/chat/completions", chat(json!({ "temperature": "warm" }))),
        ("/v1/chat/completions", chat(json!({ "top_p": 0 }))),
        ("/v1/chat/completions", chat(json!({ "logit_bias": { "5": 100 } }))),
        ("/v1/chat/completions", chat(json!({ "n": 0 }))),
        ("/v1/chat/completions", chat(json!({ "max_tokens": 0 }))),
        ("/v1/chat/completions", chat(json!({ "max_completion_tokens": 1_000_000 }))),
        ("/v1/chat/completions", chat(json!({ "top_logprobs": 2 }))),
        ("/v1/chat/completions", chat(json!({ "stream_options": { "include_usage": true } }))),
        ("/v1/chat/completions", chat(json!({ "stop": [""] }))),
        ("/v1/chat/completions", chat(json!({ "tool_choice": "required" }))),
        (
            "/v1/chat/completions",
            chat(json!({ "tools": [tool], "tool_choice":
            { "type": "function", "function": { "name": "lose" } } })),
        ),
        ("/v1/chat/completions", chat(json!({ "tools": [{ "type": "web_search" }] }))),
        ("/v1/chat/completions", chat(json!({ "response_format": { "type": "xml" } }))),
        (
            "/v1/chat/completions",
            chat(json!({ "response_format": { "type": "regex", "pattern": "(" } })),
        ),
        ("/v1/chat/completions", chat(json!({ "reasoning_effort": "medium" }))),
        (
            "/v1/chat/completions",
            chat(json!({ "chat_template_kwargs": { "tools": [{ "name": "find" }] } })),
        ),
        ("/v1/completions", json!({ "model": "demo", "prompt": ["a", "b"] })),
        ("/v1/completions", json!({ "model": "demo", "prompt": [1_000_000] })),
        ("/v1/completions", json!({ "model": "demo", "prompt": "" })),
        ("/v1/completions", json!({ "model": "demo", "prompt": "a", "suffix": "b" })),
        ("/v1/responses", json!({ "model": "demo", "input": "a", "previous_response_id": "b" })),
        ("/v1/responses", json!({ "model": "demo", "input": [{ "type": "item_reference" }] })),
        ("/v1/responses", json!({ "model": "demo", "input": "a", "store": true })),
        ("/v1/messages", json!({ "model": "demo", "messages": message })),
        (
            "/v1/messages",
            json!({ "model": "demo", "max_tokens": 9, "messages":
            [{ "role": "assistant", "content": "Once" }] }),
        ),
        (
            "/v1/messages",
            json!({ "model": "demo", "max_tokens": 9, "messages": message,
            "thinking": { "type": "enabled", "budget_tokens": 9 } }),
        ),
        ("/v1/messages", json!({ "model": "claude", "max_tokens": 9, "messages": message })),
        ("/api/chat", json!({ "model": "llama3", "messages": message })),
        (
            "/api/chat",
            json!({ "model": "demo", "messages": message, "options": { "mirostat": 2 } }),
        ),
        (
            "/api/chat",
            json!({ "model": "demo", "messages": message, "options": { "num_ctx": 99_999 } }),
        ),
        ("/api/generate", json!({ "model": "demo", "prompt": "a", "images": ["b"] })),
        ("/detokenize", json!({ "tokens": [1_000_000] })),
        ("/nowhere", json!({})),
        ("/v1/models", json!({})),
    ];
    let mut text = String::new();
    for (path, body) in requests {
        let answer = served.post(path, &body);
        assert!((400..500).contains(&answer.status), "{path} {body}: {answer:?}");
        writeln!(text, "POST {path} {body}\n  {} {}", answer.status, answer.body)
            .expect("texts grow");
    }
    for body in ["", "{", "[]", "{\"a\":1}x", "{\"a\":1e999}"] {
        let answer = served.send("POST", "/v1/messages", &[], body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        writeln!(text, "POST /v1/messages {body}\n  {}", answer.body).expect("texts grow");
    }
    assert_snapshot("errors.txt", &text);
}

#[test]
fn long_prompts_and_long_bodies_are_refused() {
    let served = Served::with(|_, options| options.body_bytes = 100_000);
    let prompt = json!({ "model": "demo", "prompt": "word ".repeat(4000) });
    let answer = served.post("/v1/completions", &prompt);
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (400, &"context_length_exceeded".into())
    );
    let prompt = json!({ "model": "demo", "prompt": "word ".repeat(40_000) });
    let answer = served.post("/v1/completions", &prompt);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (413, &"body_too_large".into()));
}

#[test]
fn deep_nesting_is_refused() {
    let served = Served::new();
    let body =
        format!("{{\"model\":\"demo\",\"metadata\":{}{}", "[".repeat(50_000), "]".repeat(50_000));
    assert_eq!(served.send("POST", "/v1/completions", &[], &body).status, 400);
}
