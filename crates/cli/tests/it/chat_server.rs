//! `chat` against a server that says what the test wants: the wire, tools, hostile answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::{Value, json};

use crate::chat::{chat, piped};
use crate::support::TempDir;

/// A server with an answer for each request in turn; it gives the requests' bodies.
fn server(answers: Vec<String>) -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    let (sender, bodies) = mpsc::channel();
    thread::spawn(move || {
        let mut answers = answers.into_iter();
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client comes");
            let (head, body) = request(&mut stream);
            let answer = if head.starts_with("GET /v1/models ") {
                let list = json!({ "object": "list", "data": [{ "id": "parrot" }] }).to_string();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len())
            } else {
                assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
                drop(sender.send(serde_json::from_str(&body).expect("the body is JSON")));
                answers.next().expect("no more requests than answers")
            };
            // A client that has what it wants may be gone.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    (url, bodies)
}

fn request(stream: &mut TcpStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("a head comes") > 0, "{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body comes");
    (head, String::from_utf8(body).expect("the body is UTF-8"))
}

/// A stream of deltas, chunked so that nothing falls together with the chunks.
fn stream(deltas: &[Value], finish: &str) -> String {
    let mut body = String::from(": a comment\r\n\r\n");
    let last = json!({ "choices": [{ "delta": {}, "finish_reason": finish }] });
    let usage = json!({ "choices": [], "usage": {
        "prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": { "cached_tokens": 32 },
    }});
    let deltas = deltas.iter().map(|delta| json!({ "choices": [{ "delta": delta }] }));
    for chunk in deltas.chain([last, usage]) {
        body += &format!("data: {chunk}\n\n");
    }
    body += "data: [DONE]\n\n";
    let mut answer = String::from("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.chars().collect::<Vec<_>>().chunks(7) {
        let piece = String::from_iter(piece);
        answer += &format!("{:x};x=y\r\n{piece}\r\n", piece.len());
    }
    answer + "0\r\n\r\n"
}

fn call(command: &str) -> String {
    let arguments = json!({ "command": command }).to_string();
    let (begin, end) = arguments.split_at(4);
    let begin = json!({ "tool_calls": [{ "index": 0, "id": "c1", "function": { "name": "shell", "arguments": begin } }] });
    let end = json!({ "tool_calls": [{ "index": 0, "function": { "arguments": end } }] });
    stream(&[json!({ "content": "Let me look." }), begin, end], "tool_calls")
}

#[test]
fn a_server_answers_and_is_told_the_talk() {
    let data = TempDir::new();
    let deltas = [
        json!({ "reasoning_content": "hm" }),
        json!({ "content": "Hel" }),
        json!({ "content": "lo!" }),
    ];
    let (url, bodies) = server(vec![stream(&deltas, "stop"), stream(&deltas[1..], "length")]);
    let args = ["--url", &url, "--system", "Be kind.", "--temperature", "0.5", "--think", "on"];
    let output = piped(chat(&data, &args), "Hi\nAgain\n/stats\n");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.starts_with("Hello!\nHello!\n"), "{out}");
    assert!(
        out.contains("model: parrot at") && out.contains("last prompt: 40 tokens, 32 known"),
        "{out}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("limit of tokens"));
    let first = bodies.recv().expect("a request came");
    assert_eq!(first["model"], "parrot");
    assert_eq!(first["temperature"], 0.5);
    assert_eq!(first["chat_template_kwargs"], json!({ "enable_thinking": true }));
    assert_eq!(first["messages"][0], json!({ "role": "system", "content": "Be kind." }));
    let second = bodies.recv().expect("another came");
    assert_eq!(second["messages"].as_array().map(Vec::len), Some(4));
    assert_eq!(second["messages"][2]["content"], "Hello!");
    assert_eq!(second["messages"][2]["reasoning_content"], "hm");
}

#[test]
fn control_characters_of_a_model_do_not_reach_the_terminal() {
    let data = TempDir::new();
    let hostile =
        "a\u{1b}]0;owned\u{7}\u{1b}[2J `x\u{9b}5n` &#27;[2J\r\n```\u{1b}c\ny\u{8}\u{1b}c\n```\n";
    for markdown in ["always", "never"] {
        let deltas = [json!({ "reasoning_content": hostile }), json!({ "content": hostile })];
        let (url, _bodies) = server(vec![stream(&deltas, "stop")]);
        let args = ["--url", &url, "--markdown", markdown, "--show-thinking", "on"];
        let output = piped(chat(&data, &args), "Hi\n");
        assert!(output.status.success());
        let out = String::from_utf8(output.stdout).expect("it is text");
        let control = out.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(control, None, "{markdown}: {out:?}");
    }
}

#[test]
fn a_command_runs_only_with_consent() {
    let data = TempDir::new();
    let marker = data.path().join("marker");
    let touch = format!("touch {}", marker.display());
    let done = || stream(&[json!({ "content": "Done." })], "stop");
    // Nobody can be asked, so nothing runs, and the model is told.
    let (url, bodies) = server(vec![call(&touch), done()]);
    let output = piped(chat(&data, &["--url", &url, "--shell", "--yes", "ls *"]), "Touch it.\n");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("Done.\n"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not run"));
    assert!(!marker.exists());
    let first = bodies.recv().expect("a request came");
    assert_eq!(first["tools"][0]["function"]["name"], "shell");
    let second = bodies.recv().expect("another came");
    let messages = second["messages"].as_array().expect("there are messages");
    assert_eq!(messages.len(), 3);
    assert_eq!(
        messages[1]["tool_calls"][0]["function"]["arguments"],
        json!({ "command": touch }).to_string()
    );
    assert_eq!(messages[2]["role"], "tool");
    assert_eq!(messages[2]["tool_call_id"], messages[1]["tool_calls"][0]["id"]);
    assert!(messages[2]["content"].as_str().is_some_and(|text| text.contains("not allowed")));
    // A pattern lets it through, but nothing that only begins like it.
    let (url, bodies) = server(vec![call("echo one; touch x"), call("echo two words"), done()]);
    let output = piped(chat(&data, &["--url", &url, "--shell", "--yes", "echo *"]), "Go.\n");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("$ echo two words\n  two words\n"), "{out}");
    let last = bodies.iter().nth(2).expect("three requests came");
    assert_eq!(last["messages"][4]["content"], "two words\n");
    // Without the option there is no shell.
    let (url, bodies) = server(vec![call("echo hi"), done()]);
    let output = piped(chat(&data, &["--url", &url, "--yes", "*"]), "Go.\n");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("  hi"));
    assert!(bodies.recv().expect("a request came").get("tools").is_none());
}

#[test]
fn calls_without_end_end() {
    let data = TempDir::new();
    let config = data.path().join("c.toml");
    std::fs::write(&config, "[tools]\nshell = true\nyes = [\"true\"]\nrounds = 3\n")
        .expect("it can be written");
    let (url, bodies) = server((0..3).map(|_| call("true")).collect());
    let args = ["--url", &url, "--config", config.to_str().expect("it is UTF-8")];
    let output = piped(chat(&data, &args), "Go.\n");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 times in a row"));
    assert_eq!(bodies.try_iter().count(), 3);
}

#[test]
fn what_a_server_does_wrong_is_told() {
    let data = TempDir::new();
    let refusal = r#"{"error":{"message":"no such parameter: \u001b[2Jx"}}"#;
    let status = format!("HTTP/1.1 400 Bad\r\nContent-Length: {}\r\n\r\n{refusal}", refusal.len());
    for (answer, words) in [
        (status, "status 400: no such parameter: \u{241b}[2Jx"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata".into(), "broke off"),
        ("HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[]}\n\n".into(), "broke off"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(), "chunks"),
        ("HTTP/1.1 200 OK\r\n\r\ndata: nonsense\n\n".into(), "event of the server"),
        (
            "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"message\":\"overheated\"}}\n\n".into(),
            "overheated",
        ),
        ("SMTP\r\n\r\n".into(), "not HTTP"),
        (String::new(), "broke off"),
    ] {
        let (url, _bodies) = server(vec![answer]);
        let output = piped(chat(&data, &["--url", &url]), "Hi\n");
        let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(message.contains(words), "{words}:\n{message}");
    }
    let (url, _bodies) = server(Vec::new());
    let output = piped(chat(&data, &["owl", "--url", &url]), "Hi\n");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("owl") && message.contains("parrot"), "{message}");
}

/// Sends Ctrl-C's signal to a child.
#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("there is a kill command").success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_pipes_talk_and_keeps_what_was_said() {
    use std::process::Stdio;
    let data = TempDir::new();
    // A server that begins and never goes on.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client comes");
            let (head, _) = request(&mut stream);
            let delta = json!({ "choices": [{ "delta": { "content": "Begun\n" } }] });
            let answer = if head.starts_with("GET") {
                "HTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"id\":\"parrot\"}]}".to_owned()
            } else {
                format!("HTTP/1.1 200 OK\r\n\r\ndata: {delta}\n\n")
            };
            stream.write_all(answer.as_bytes()).expect("the client reads");
            if head.starts_with("POST") {
                open.push(stream);
            }
        }
    });
    let mut command = chat(&data, &["--url", &url]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    stdin.write_all(b"Hi\nMore\n").expect("the program reads");
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    stdout.read_line(&mut first).expect("a reply begins");
    assert_eq!(first, "Begun\n");
    interrupt(&child);
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stopped by the user"));
    let resumed = piped(chat(&data, &["--url", &url, "--resume"]), "/stats\n");
    let out = String::from_utf8_lossy(&resumed.stdout).into_owned();
    assert!(out.contains("talk: 2 messages"), "{out}");
    // While it waits for a line, the signal ends it.
    let mut command = chat(&data, &["--url", &url]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    stdin.write_all(b"/think\n").expect("the program reads");
    let mut stdout = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    stdout.read_line(&mut first).expect("a command is answered");
    interrupt(&child);
    assert_eq!(child.wait().expect("the program ends").code(), Some(130));
}
