//! Clients that go away, requests that take too long, servers that end.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Served, in_time, long_answer};

fn long(more: Value) -> String {
    let mut body = long_answer();
    for (name, value) in more.as_object().expect("changes are an object") {
        body[name] = value.clone();
    }
    body.to_string()
}

#[test]
fn who_goes_away_frees_the_place() {
    let served = Served::with(|engine, _| engine.sessions = 1);
    for is_stream in [true, false] {
        let body = long(json!({ "stream": is_stream }));
        let mut open = served.open("POST", "/v1/completions", &[], &body);
        if is_stream {
            open.wait_for("\"text\":");
        } else {
            served.wait_for("the beginning", |metrics| metrics["running"] == 1.0);
        }
        let generated = served.metrics()["requests_cancelled_total"];
        drop(open);
        served.wait_for("the end", |metrics| {
            metrics["running"] == 0.0 && metrics["requests_cancelled_total"] == generated + 1.0
        });
    }
    let brief = json!({ "model": "demo", "prompt": "Once", "max_tokens": 2 });
    assert_eq!(served.post("/v1/completions", &brief).status, 200);
}

#[test]
fn who_goes_away_while_waiting_leaves_the_queue() {
    let served = Served::with(|engine, _| engine.sessions = 1);
    let mut first = served.open("POST", "/v1/completions", &[], &long(json!({})));
    first.wait_for("\"text\":");
    let second = served.open("POST", "/v1/completions", &[], &long(json!({})));
    served.wait_for("the queue", |metrics| metrics["waiting"] == 1.0);
    drop(second);
    served.wait_for("an empty queue", |metrics| metrics["waiting"] == 0.0);
    assert_eq!(served.metrics()["running"], 1.0);
}

#[test]
fn what_takes_too_long_ends() {
    let served = Served::with(|engine, options| {
        engine.sessions = 1;
        options.deadline = Duration::from_millis(300);
    });
    let whole = served.send("POST", "/v1/completions", &[], &long(json!({ "stream": false })));
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (504, &"deadline_exceeded".into()));
    let stream = served.send("POST", "/v1/completions", &[], &long(json!({})));
    assert_eq!(stream.status, 200);
    assert!(stream.body.contains("\"deadline_exceeded\""), "{stream:?}");
    assert!(!stream.body.contains("[DONE]"));
    served.wait_for("the end", |metrics| metrics["running"] == 0.0);
}

#[test]
fn who_does_not_send_a_request_loses_the_connection() {
    let served = Served::with(|_, options| options.head_time = Duration::from_millis(500));
    // Nothing, a part, and a second request that does not come.
    for begin in
        ["", "GET /health HTTP/1.1\r\nhost: loc", "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"]
    {
        let mut slow = TcpStream::connect(served.address).expect("the server listens");
        slow.write_all(begin.as_bytes()).expect("the server reads");
        let seen = in_time(move || std::io::read_to_string(slow).expect("the server ends it"));
        assert_eq!(seen.contains("200 OK"), begin.ends_with("\r\n\r\n"), "{seen}");
    }
}

#[test]
fn an_answer_may_take_longer_than_its_request() {
    let head_time = Duration::from_millis(100);
    let served = Served::with(|_, options| options.head_time = head_time);
    let begin = Instant::now();
    let body = long(json!({ "max_tokens": 600 }));
    let answer = served.send("POST", "/v1/completions", &[], &body);
    assert!(answer.body.contains("[DONE]"), "{answer:?}");
    assert!(begin.elapsed() > head_time, "an answer too short to tell");
}

#[test]
fn health_is_told_while_the_engine_computes() {
    let served = Served::with(|engine, _| engine.sessions = 1);
    let mut open = served.open("POST", "/v1/completions", &[], &long(json!({})));
    open.wait_for("\"text\":");
    let health = served.get("/health").ok();
    assert_eq!(health, json!({ "status": "ok", "running": 1, "waiting": 0 }));
}

#[test]
fn a_shutdown_lets_answers_end_and_takes_nothing_new() {
    let mut served = Served::with(|engine, _| engine.sessions = 1);
    let body = long(json!({ "max_tokens": 30 }));
    let mut open = served.open("POST", "/v1/completions", &[], &body);
    open.wait_for("\"text\":");
    served.begin_end();
    assert!(open.wait_for("[DONE]").contains("\"finish_reason\":\"length\""));
    in_time(move || served.end()).expect("the server ends well");
}

#[test]
fn a_shutdown_does_not_wait_for_ever() {
    let mut served = Served::with(|engine, options| {
        engine.sessions = 1;
        options.grace = Duration::from_millis(50);
    });
    let mut open = served.open("POST", "/v1/completions", &[], &long(json!({})));
    open.wait_for("\"text\":");
    served.begin_end();
    open.wait_for("\"shutting_down\"");
    in_time(move || served.end()).expect("the server ends well");
}

#[test]
fn a_shutdown_does_not_wait_for_clients_that_do_nothing() {
    let mut served = Served::with(|_, options| options.grace = Duration::ZERO);
    let mut half = TcpStream::connect(served.address).expect("the server listens");
    half.write_all(b"GET /health HTTP/1.1\r\nhost: loc").expect("the server reads");
    // Answers that nobody reads fill what the system holds for a connection, and then the server waits.
    let mut unread = TcpStream::connect(served.address).expect("the server listens");
    unread.set_write_timeout(Some(Duration::from_millis(500))).expect("the time is sound");
    let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000);
    while unread.write_all(request.as_bytes()).is_ok() {}
    served.begin_end();
    in_time(move || served.end()).expect("the server ends well");
}
