//! Answers that are not the model's own say so.

use engine::Lossy;
use serde_json::json;

use crate::support::Served;

#[test]
fn lossy_answers_say_so_and_others_do_not() {
    let ask = |lossy: Lossy| {
        let served = Served::with(|engine, _| engine.lossy = lossy);
        let messages = json!([{ "role": "user", "content": "Hello" }]);
        let chat = json!({ "model": "demo", "messages": messages, "max_tokens": 2 });
        let text = json!({ "model": "demo", "prompt": "Hello", "max_tokens": 2 });
        let streamed =
            json!({ "model": "demo", "messages": messages, "max_tokens": 2, "stream": true });
        [("chat/completions", chat), ("completions", text), ("chat/completions", streamed)]
            .map(|(path, body)| served.post(&format!("/v1/{path}"), &body))
    };
    let lossy = Lossy { experts_per_token: Some(4), cache_bias: 0.5, ..Lossy::default() };
    let words = "experts-per-token=4, cache-bias=0.5";
    let answers = ask(lossy);
    for answer in &answers {
        assert_eq!(answer.headers["x-flash-moe-lossy"], words);
    }
    let fingerprint = format!("lossy: {words}");
    assert_eq!(answers[0].ok()["system_fingerprint"], *fingerprint);
    assert_eq!(answers[1].ok()["system_fingerprint"], *fingerprint);
    assert!(answers[2].body.contains(&format!("\"system_fingerprint\":\"{fingerprint}\"")));
    for answer in ask(Lossy::default()) {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.headers.contains_key("x-flash-moe-lossy"), "{answer:?}");
        assert!(!answer.body.contains("lossy"), "{answer:?}");
    }
}
