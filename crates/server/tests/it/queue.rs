//! How many may wait.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;

use crate::support::{Served, in_time, long_answer};

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
    let answer = served.post("/v1/completions", &two);
    let error = &answer.json()["error"];
    let expected = (400, &"invalid_value".into(), &"n".into());
    assert_eq!((answer.status, &error["code"], &error["param"]), expected, "it never fits");
}

#[test]
fn a_request_has_its_place_before_its_body_comes() {
    let served = Served::with(|_, options| options.queue = 1);
    let address = served.address;
    let open = move || {
        let mut slow = TcpStream::connect(address).expect("the server listens");
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
        slow.write_all(head.as_bytes()).expect("the server reads");
        slow.set_nonblocking(true).expect("a socket");
        slow
    };
    let brief = json!({ "model": "demo", "prompt": "Once", "max_tokens": 1 });
    in_time(move || {
        let mut slow = open();
        while served.post("/v1/completions", &brief).status != 503 {
            // It may have come while a brief one had the place, and was answered then.
            if slow.peek(&mut [0]).is_ok() {
                slow = open();
            }
        }
        drop(slow);
        while served.post("/v1/completions", &brief).status != 200 {}
    });
}

#[test]
fn who_fills_the_queue_locks_no_other_client_out() {
    let served = Served::with(|engine, options| {
        engine.sessions = 1;
        options.queue = 3;
        options.api_keys = vec!["many".to_owned(), "one".to_owned()];
    });
    let long = long_answer().to_string();
    let many = [("authorization", "Bearer many")];
    let one = [("authorization", "Bearer one")];
    let mut first = served.open("POST", "/v1/completions", &many, &long);
    first.wait_for("\"text\":");
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(served.open("POST", "/v1/completions", &many, &long));
        // Its place is taken when the head of its answer comes.
        waiting.last_mut().expect("it is there").head();
    }
    assert_eq!(served.send("POST", "/v1/completions", &many, &long).status, 503);
    let mut other = served.open("POST", "/v1/completions", &one, &long);
    assert_eq!(other.head().status, 200);
    let newest = waiting.last_mut().expect("it is there");
    newest.wait_for("\"queue_full\"");
}
