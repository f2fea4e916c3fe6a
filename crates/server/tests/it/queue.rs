//! How many may wait.

use serde_json::json;

use crate::support::{Served, long_answer};

#[test]
fn the_queue_is_bounded_and_says_so_in_each_apis_way() {
    let served = Served::with(|engine, options| {
        engine.sessions = 1;
        options.queue = 1;
    });
    let long = long_answer();
    let mut first = served.open("POST", "/v1/completions", &[], &long.to_string());
    first.wait_for("\"text\":");
    let second = served.open("POST", "/v1/completions", &[], &long.to_string());
    served.wait_for("the queue", |metrics| metrics["waiting"] == 1.0);

    let third = served.post("/v1/completions", &long);
    assert_eq!((third.status, &third.json()["error"]["code"]), (503, &"queue_full".into()));
    assert_eq!(third.headers["retry-after"], "1");
    let message = json!([{ "role": "user", "content": "Hi" }]);
    let body = json!({ "model": "demo", "messages": message, "max_tokens": 9 });
    let third = served.post("/v1/messages", &body);
    assert_eq!((third.status, &third.json()["error"]["type"]), (529, &"overloaded_error".into()));
    let third = served.post("/api/chat", &json!({ "model": "demo", "messages": message }));
    assert_eq!((third.status, &third.json()["code"]), (503, &"queue_full".into()));

    drop(first);
    drop(second);
    served.wait_for("an idle server", |metrics| {
        metrics["running"] == 0.0 && metrics["waiting"] == 0.0
    });
    let two = json!({ "model": "demo", "prompt": "Once", "max_tokens": 1, "n": 2 });
    assert_eq!(served.post("/v1/completions", &two).status, 503, "two do not fit where one does");
}
