//! What each API says, word for word.

use serde_json::{Value, json};

use crate::support::{Served, assert_snapshot};

const QUESTION: &str = "What is 34 plus 58?";

fn changed(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("changes are an object") {
        body[name] = value.clone();
    }
    body
}

fn openai() -> Value {
    json!({
        "model": "demo",
        "messages": [{ "role": "user", "content": QUESTION }],
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    })
}

#[test]
fn chat_completions() {
    let served = Served::new();
    let path = "/v1/chat/completions";
    assert_snapshot("chat_completions.stream.txt", &served.post(path, &openai()).body);
    let short = json!({
        "reasoning_effort": "none", "logprobs": true, "top_logprobs": 2, "n": 2, "max_tokens": 4,
    });
    let mut body = changed(openai(), short);
    // Two answers come in an order of their own; each by itself is the same every time.
    body["n"] = 1.into();
    assert_snapshot("chat_completions.logprobs.txt", &served.post(path, &body).body);
    // Thoughts have no probabilities, nor what ends them.
    let thinking = json!({ "logprobs": true, "max_tokens": 200 });
    let thinking = served.post(path, &changed(openai(), thinking)).body;
    assert_snapshot("chat_completions.thinking_logprobs.txt", &thinking);
    let whole =
        json!({ "stream": false, "stream_options": null, "n": 2, "reasoning_effort": "none" });
    let whole = served.post(path, &changed(openai(), whole)).ok();
    assert_snapshot("chat_completions.json", &format!("{whole:#}"));
}

#[test]
fn completions() {
    let served = Served::new();
    let body = json!({
        "model": "demo", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8,
        "stream": true, "echo": true, "stop": [" zebra"],
    });
    assert_snapshot("completions.stream.txt", &served.post("/v1/completions", &body).body);
    let whole = changed(body, json!({ "stream": false, "echo": false, "logprobs": 1 }));
    let whole = served.post("/v1/completions", &whole).ok();
    assert_snapshot("completions.json", &format!("{whole:#}"));
}

#[test]
fn responses() {
    let served = Served::new();
    let body = json!({ "model": "demo", "input": QUESTION, "temperature": 0, "stream": true });
    assert_snapshot("responses.stream.txt", &served.post("/v1/responses", &body).body);
    let whole = json!({ "stream": false, "max_output_tokens": 6, "instructions": "Be brief." });
    let whole = served.post("/v1/responses", &changed(body, whole)).ok();
    assert_snapshot("responses.json", &format!("{whole:#}"));
}

#[test]
fn messages() {
    let served = Served::new();
    let body = json!({
        "model": "demo",
        "max_tokens": 200,
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": QUESTION }] }],
        "thinking": { "type": "enabled", "budget_tokens": 150 },
        "temperature": 0,
        "stream": true,
    });
    assert_snapshot("messages.stream.txt", &served.post("/v1/messages", &body).body);
    let whole = json!({ "stream": false, "thinking": null, "stop_sequences": ["92"] });
    let whole = served.post("/v1/messages", &changed(body.clone(), whole)).ok();
    assert_snapshot("messages.json", &format!("{whole:#}"));

    let count =
        json!({ "model": "demo", "messages": body["messages"], "thinking": body["thinking"] });
    let counted = served.post("/v1/messages/count_tokens", &count).ok();
    let whole = served.post("/v1/messages", &changed(body, json!({ "stream": false }))).ok();
    assert_eq!(counted["input_tokens"], whole["usage"]["input_tokens"]);
}

#[test]
fn thinking_ends_within_its_budget() {
    let served = Served::new();
    let body = json!({
        "model": "demo",
        "max_tokens": 200,
        "messages": [{ "role": "user", "content": QUESTION }],
        "thinking": { "type": "enabled", "budget_tokens": 5 },
        "temperature": 0,
    });
    let whole = served.post("/v1/messages", &body).ok();
    assert_snapshot("messages.budget.json", &format!("{whole:#}"));
}

#[test]
fn ollama() {
    let served = Served::new();
    let body = json!({
        "model": "demo:latest",
        "messages": [{ "role": "user", "content": QUESTION }],
        "options": { "temperature": 0 },
    });
    let chat = served.post("/api/chat", &body);
    assert_eq!(chat.headers["content-type"], "application/x-ndjson");
    assert_snapshot("ollama.chat.txt", &chat.body);
    let body = json!({
        "model": "demo", "prompt": QUESTION, "think": false, "stream": false,
        "options": { "temperature": 0, "num_predict": 6 },
    });
    let generated = served.post("/api/generate", &body).ok();
    assert_snapshot("ollama.generate.json", &format!("{generated:#}"));
    assert_eq!(served.post("/api/chat", &json!({ "model": "demo" })).ok()["done_reason"], "load");
    assert_eq!(served.get("/api/tags").ok()["models"][0]["name"], "demo");
    let shown = served.post("/api/show", &json!({ "model": "demo" })).ok();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    assert_eq!(served.get("/api/version").ok()["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn tokens_and_models() {
    let served = Served::new();
    let text = "Once upon a time <|im_end|>";
    let tokens = served.post("/tokenize", &json!({ "content": text })).ok()["tokens"].clone();
    let special = json!({ "content": text, "parse_special": true });
    let special = served.post("/tokenize", &special).ok()["tokens"].clone();
    assert_ne!(tokens, special, "a control token's text is text unless it is asked for");
    let back = served.post("/detokenize", &json!({ "tokens": tokens })).ok();
    assert_eq!(back["content"], text);
    let models = served.get("/v1/models").ok();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(served.get("/v1/models/demo").ok()["id"], "demo");
    assert_eq!(served.get("/v1/models/other").status, 404);
    let no_text = served.get("/v1/models/%FF");
    assert_eq!((no_text.status, &no_text.json()["error"]["param"]), (400, &"model".into()));
    let named = Served::with(|_, options| options.model_names = vec!["Qwen/X".to_owned()]);
    assert_eq!(named.get("/v1/models/Qwen/X").ok()["id"], "Qwen/X");
}

#[test]
fn raw_prompts_hold_control_tokens() {
    let served = Served::new();
    let prompt = "<|im_start|>user\nHi<|im_end|>\n";
    let special = json!({ "content": prompt, "parse_special": true });
    let tokens = served.post("/tokenize", &special).ok()["tokens"].clone();
    let n_tokens = tokens.as_array().map(Vec::len);
    let body = json!({ "model": "demo", "prompt": prompt, "max_tokens": 1 });
    let whole = served.post("/v1/completions", &body).ok();
    assert_eq!(whole["usage"]["prompt_tokens"], json!(n_tokens));
    let body = json!({ "model": "demo", "prompt": prompt, "raw": true, "stream": false,
        "options": { "num_predict": 1 } });
    let whole = served.post("/api/generate", &body).ok();
    assert_eq!(whole["prompt_eval_count"], json!(n_tokens));
}

#[test]
fn the_same_request_gets_the_same_answer_beside_others_and_from_the_prefix_cache() {
    let alone = Served::new();
    let together = Served::with(|engine, _| {
        engine.sessions = 4;
        engine.prefix_cache = Some(engine::PrefixCacheOptions {
            memory_bytes: 32 << 20,
            directory: None,
            disk_bytes: 0,
        });
    });
    let story = "word ".repeat(200);
    let bodies = [QUESTION, "Tell me a story.", "Where does the sun go at night?"].map(|question| {
        let content = format!("{story}{question}");
        let messages = json!([{ "role": "user", "content": content }]);
        json!({ "model": "demo", "messages": messages, "temperature": 1, "seed": 7, "max_tokens": 40 })
    });
    let text = |answer: Value| answer["choices"][0]["message"].clone();
    let path = "/v1/chat/completions";
    let expected = bodies.clone().map(|body| text(alone.post(path, &body).ok()));
    for _ in 0..2 {
        std::thread::scope(|scope| {
            let threads = bodies.each_ref().map(|body| {
                let together = &together;
                scope.spawn(move || together.post(path, body).ok())
            });
            for (thread, expected) in threads.into_iter().zip(&expected) {
                let answer = thread.join().expect("the request is answered");
                assert_eq!(&text(answer), expected);
            }
        });
    }
    let again = together.post(path, &bodies[0]).ok();
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached > Some(0), "{again:#}");
    assert_eq!(text(again), expected[0]);
}
