//! The page, and what it is fed with.

use serde_json::{Value, json};

use crate::support::Served;

#[test]
fn the_page_is_whole_and_lets_nothing_in_from_elsewhere() {
    let served = Served::new();
    let page = served.get("/");
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let policy = &page.headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(!page.body.contains("style=\"") && !page.body.contains("<script>"));
    // Every file that any of the files names is there, and none is elsewhere.
    let mut files = vec!["/".to_owned()];
    let mut index = 0;
    while index < files.len() {
        let answer = served.get(&files[index]);
        assert_eq!(answer.status, 200, "{}", files[index]);
        for part in answer.body.split('"') {
            let local = part.strip_prefix("./").map(|name| format!("/page/{name}"));
            let named = local.or_else(|| part.starts_with("/page/").then(|| part.to_owned()));
            files.extend(named.filter(|name| !files.contains(name)));
            let is_elsewhere = part.starts_with("//") || part.starts_with("https:");
            assert!(!is_elsewhere || part.contains(' '), "{part}");
        }
        index += 1;
    }
    assert_eq!(files.len(), 7, "{files:?}");
}

#[test]
fn the_events_tell_what_the_engine_does() {
    let served = Served::new();
    let mut events = served.open("GET", "/engine/events", &[], "");
    assert_eq!(events.head().headers["content-type"], "text/event-stream");
    let data = |text: String| -> Value {
        let json = text.split("data: ").nth(1).and_then(|rest| rest.lines().next());
        serde_json::from_str(json.expect("the event has data")).expect("the data is JSON")
    };
    events.wait_for("event: engine");
    let about = data(events.wait_for("data: "));
    assert_eq!(about["experts_per_layer"], json!([64, 64, 64, 64, 64, 64, 64, 64]));
    let body = json!({ "model": "demo", "prompt": "Once upon a time", "max_tokens": 8 });
    served.post("/v1/completions", &body).ok();
    loop {
        events.wait_for("event: state");
        let state = data(events.wait_for("data: "));
        if state["tokens_generated"] == 8 && state["running"] == 0 {
            let layers = state["resident"].as_array().expect("there are layers");
            let resident: u32 = layers
                .iter()
                .flat_map(|layer| layer.as_str().expect("a text of digits").chars())
                .map(|digit| digit.to_digit(16).expect("a digit").count_ones())
                .sum();
            assert!(resident > 8, "{state:#}");
            assert!(state["expert_misses"].as_u64() > Some(0));
            return;
        }
    }
}

#[test]
fn the_description_of_the_apis_names_every_path() {
    let served = Served::new();
    let described = served.get("/openapi.json").ok();
    for (path, methods) in described["paths"].as_object().expect("there are paths") {
        let path = path.replace("{model}", "demo");
        let methods: Vec<&String> =
            methods.as_object().expect("there are methods").keys().collect();
        assert_eq!(methods.len(), 1, "{path}");
        if path == "/engine/events" {
            continue;
        }
        let answer = served.send(&methods[0].to_uppercase(), &path, &[], "");
        assert!(answer.status != 404 && answer.status != 405, "{path}: {answer:?}");
    }
}
