//! Who may ask, and what they reach.

use std::net::SocketAddr;

use serde_json::json;
use server::Error;

use crate::support::{Served, bind, engine_options, server_options};

#[test]
fn a_server_that_others_reach_asks_for_a_key() {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let open = server::ServerOptions { address: everywhere, ..server_options() };
    let refused = bind(&engine_options(), open.clone()).err().expect("it is open to everybody");
    assert!(matches!(refused, Error::Open(address) if address == everywhere), "{refused}");
    assert!(refused.to_string().contains("--api-key"), "{refused}");
    let insecure = server::ServerOptions { insecure: true, ..open.clone() };
    assert!(bind(&engine_options(), insecure).is_ok());
    let keyed = server::ServerOptions { api_keys: vec!["k".to_owned()], ..open };
    assert!(bind(&engine_options(), keyed).is_ok());
}

#[test]
fn keys_are_asked_for_everywhere_but_on_the_doorstep() {
    let served = Served::with(|_, options| options.api_keys = vec!["one".into(), "two".into()]);
    for path in ["/", "/page/main.js", "/health", "/openapi.json"] {
        assert_eq!(served.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/engine", "/engine/events", "/api/tags", "/nowhere"] {
        let answer = served.get(path);
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        let wrong = [("authorization", "Bearer three")];
        assert_eq!(served.send("GET", path, &wrong, "").status, 401, "{path}");
    }
    for header in [("authorization", "Bearer two"), ("x-api-key", "one")] {
        assert_eq!(served.send("GET", "/v1/models", &[header], "").status, 200, "{header:?}");
    }
}

#[test]
fn names_that_point_here_by_deceit_are_refused() {
    let served = Served::with(|_, options| options.hosts = vec!["box.lan".into()]);
    let ask = |host: &str| served.send("GET", "/health", &[("host", host)], "").status;
    assert_eq!(ask("evil.example"), 403);
    assert_eq!(ask("evil.example:8080"), 403);
    assert_eq!(ask("localhost:1234"), 200);
    assert_eq!(ask("box.lan"), 200);
}

#[test]
fn pages_from_elsewhere_are_refused_unless_they_are_named() {
    let served =
        Served::with(|_, options| options.cors_origins = vec!["https://app.example".into()]);
    let ask = |method: &str, origin: &str| {
        let headers = [("origin", origin), ("access-control-request-headers", "x-api-key")];
        served.send(method, "/v1/models", &headers, "")
    };
    let named = ask("GET", "https://app.example");
    assert_eq!(named.status, 200);
    assert_eq!(named.headers["access-control-allow-origin"], "https://app.example");
    let preflight = ask("OPTIONS", "https://app.example");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.headers["access-control-allow-headers"], "x-api-key");
    for origin in ["https://evil.example", "null"] {
        for method in ["GET", "OPTIONS", "POST"] {
            let refused = ask(method, origin);
            assert_eq!(refused.status, 403, "{method} {origin}");
            assert!(!refused.headers.contains_key("access-control-allow-origin"));
        }
    }
    let own = format!("http://{}", served.address);
    let own = ask("GET", &own);
    assert_eq!(own.status, 200);
    assert!(!own.headers.contains_key("access-control-allow-origin"));
}

#[test]
fn no_path_reaches_the_file_system() {
    let served = Served::new();
    for path in [
        "/page/../Cargo.toml",
        "/page/..%2f..%2fCargo.toml",
        "/page/%2e%2e/lib.rs",
        "/page//etc/passwd",
        "/etc/passwd",
        "/page/main.js/",
        "/v1/models/..%2f..%2fetc%2fpasswd",
    ] {
        let answer = served.get(path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
    }
    let template = json!({
        "model": "demo",
        "messages": [{ "role": "user", "content": "{% include '/etc/passwd' %}" }],
        "max_tokens": 1,
    });
    assert_eq!(served.post("/v1/chat/completions", &template).status, 200);
}
