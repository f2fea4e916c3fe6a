//! Tools: calls that match their schemas, told in each API's way, and their results taken back.

use serde_json::{Value, json};

use crate::support::Served;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": { "city": { "type": "string", "maxLength": 20 }, "days": { "type": "integer" } },
        "required": ["city", "days"],
    })
}

/// The arguments of a call, which match the schema.
fn check(arguments: &Value) {
    assert!(arguments["city"].is_string(), "{arguments}");
    assert!(arguments["days"].is_i64() || arguments["days"].is_u64(), "{arguments}");
}

const QUESTION: &str = "What will the weather be in Paris in the next 3 days?";

#[test]
fn openai() {
    let served = Served::new();
    let tool = json!({
        "type": "function",
        "function": { "name": "get_weather", "description": "The weather.", "parameters": schema() },
    });
    let body = json!({
        "model": "demo",
        "messages": [{ "role": "user", "content": QUESTION }],
        "tools": [tool],
        "tool_choice": "required",
        "parallel_tool_calls": false,
        "reasoning_effort": "none",
        "temperature": 0,
    });
    let path = "/v1/chat/completions";
    let whole = served.post(path, &body).ok();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole:#}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments = call["function"]["arguments"].as_str().expect("arguments are a text");
    check(&serde_json::from_str(arguments).expect("the text is JSON"));

    let mut streaming = body.clone();
    streaming["stream"] = true.into();
    let mut streamed = String::new();
    for line in served.post(path, &streaming).body.lines() {
        let Some(data) = line.strip_prefix("data: {") else { continue };
        let chunk: Value = serde_json::from_str(&format!("{{{data}")).expect("chunks are JSON");
        let call = &chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"];
        streamed += call.as_str().unwrap_or_default();
    }
    assert_eq!(streamed, arguments);

    let mut next = body;
    let messages = next["messages"].as_array_mut().expect("there are messages");
    messages.push(choice["message"].clone());
    messages.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": "Rain." }));
    next["tool_choice"] = "auto".into();
    let next = served.post(path, &next).ok();
    assert!(next["usage"]["prompt_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64());
}

#[test]
fn anthropic() {
    let served = Served::new();
    let tool = json!({ "name": "get_weather", "input_schema": schema() });
    let mut body = json!({
        "model": "demo",
        "max_tokens": 300,
        "messages": [{ "role": "user", "content": QUESTION }],
        "tools": [tool],
        "tool_choice": { "type": "tool", "name": "get_weather" },
        "temperature": 0,
    });
    let whole = served.post("/v1/messages", &body).ok();
    assert_eq!(whole["stop_reason"], "tool_use", "{whole:#}");
    let blocks = whole["content"].as_array().expect("there are blocks");
    let call = blocks.last().expect("there is a block");
    assert_eq!((&call["type"], &call["name"]), (&"tool_use".into(), &"get_weather".into()));
    check(&call["input"]);

    let result = json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "Rain." });
    let messages = body["messages"].as_array_mut().expect("there are messages");
    messages.push(json!({ "role": "assistant", "content": blocks }));
    messages.push(json!({ "role": "user", "content": [result] }));
    body["tool_choice"] = json!({ "type": "auto" });
    assert_eq!(served.post("/v1/messages", &body).ok()["type"], "message");
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let served = Served::new();
    let ask = |format: Value| {
        let body = json!({
            "model": "demo",
            "messages": [{ "role": "user", "content": QUESTION }],
            "response_format": format,
            "reasoning_effort": "none",
            "temperature": 0,
            "max_tokens": 300,
        });
        let answer = served.post("/v1/chat/completions", &body).ok();
        let text = answer["choices"][0]["message"]["content"].as_str().map(str::to_owned);
        text.expect("there is text")
    };
    let json_schema = json!({ "name": "weather", "schema": schema() });
    let text = ask(json!({ "type": "json_schema", "json_schema": json_schema }));
    check(&serde_json::from_str(&text).expect("the answer is JSON"));
    let text = ask(json!({ "type": "choice", "choices": ["yes", "no"] }));
    assert!(text == "yes" || text == "no", "{text}");
    let text = ask(json!({ "type": "regex", "pattern": "[0-9]{3}" }));
    assert!(text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
}

/// A call that the limit of tokens shortens is whole all the same, and the limit is told.
#[test]
fn calls_end_before_the_limit() {
    let served = Served::new();
    let tool = json!({ "name": "get_weather", "parameters": schema() });
    let messages = json!([{ "role": "user", "content": QUESTION }]);
    let tools = json!([{ "type": "function", "function": tool }]);
    let mut body = json!({ "model": "demo", "messages": messages, "tools": tools,
        "tool_choice": "required", "reasoning_effort": "none", "temperature": 0 });
    let whole = served.post("/v1/chat/completions", &body).ok();
    let n_tokens = whole["usage"]["completion_tokens"].as_u64().expect("tokens are counted");
    let limit = n_tokens - 1;
    body["max_tokens"] = limit.into();
    let answer = served.post("/v1/chat/completions", &body).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer:#}");
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    check(&serde_json::from_str(call.as_str().expect("a text")).expect("it is JSON"));

    let body = json!({ "model": "demo", "input": QUESTION, "tool_choice": "required",
        "tools": [{ "type": "function", "name": "get_weather", "parameters": schema() }],
        "reasoning": { "effort": "none" }, "max_output_tokens": limit, "temperature": 0 });
    let answer = served.post("/v1/responses", &body).ok();
    assert_eq!(answer["status"], "incomplete", "{answer:#}");
    assert_eq!(answer["output"][0]["status"], "completed", "{answer:#}");

    let body = json!({ "model": "demo", "messages": messages, "max_tokens": limit,
        "tools": [{ "name": "get_weather", "input_schema": schema() }],
        "tool_choice": { "type": "any" }, "temperature": 0 });
    let answer = served.post("/v1/messages", &body).ok();
    assert_eq!(answer["stop_reason"], "max_tokens", "{answer:#}");
    check(&answer["content"][0]["input"]);
}

/// A call that the limit of tokens cuts stays a call, and is not told a second time as text.
#[test]
fn cut_calls_are_told_once() {
    let served = Served::new();
    let tool = json!({ "name": "get_weather", "parameters": schema() });
    let chat = json!({ "type": "function", "function": tool });
    let messages = json!([{ "role": "user", "content": QUESTION }]);
    let mut body = json!({ "model": "demo", "messages": messages, "tools": [chat],
        "tool_choice": "required", "reasoning_effort": "none", "temperature": 0 });
    let whole = served.post("/v1/chat/completions", &body).ok();
    let n_tokens = whole["usage"]["completion_tokens"].as_u64().expect("tokens are counted");
    // All but the end of the arguments.
    let limit = n_tokens - 12;
    body["max_tokens"] = limit.into();
    for is_stream in [true, false] {
        let ask = |path: &str, mut body: Value| {
            body["model"] = "demo".into();
            body["stream"] = is_stream.into();
            let answer = served.post(path, &body);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.body.contains("get_weather"), "{path}: {answer:?}");
            assert!(!answer.body.contains("<tool_call>"), "{path}: {answer:?}");
            answer.body
        };
        let body = ask("/v1/chat/completions", body.clone());
        assert!(body.contains("\"finish_reason\":\"length\""), "{body}");
        let mut flat = tool.clone();
        flat["type"] = "function".into();
        let body = ask(
            "/v1/responses",
            json!({ "input": QUESTION, "tools": [flat], "tool_choice": "required",
                "reasoning": { "effort": "none" }, "max_output_tokens": limit, "temperature": 0 }),
        );
        assert!(body.contains("\"status\":\"incomplete\""), "{body}");
        let body = ask(
            "/v1/messages",
            json!({ "messages": messages, "max_tokens": limit, "temperature": 0,
                "tools": [{ "name": "get_weather", "input_schema": schema() }],
                "tool_choice": { "type": "any" } }),
        );
        assert!(body.contains("\"stop_reason\":\"max_tokens\""), "{body}");
    }
}
