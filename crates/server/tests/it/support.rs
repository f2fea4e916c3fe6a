//! A server of the demo model, and a client of few lines.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat::ChatModel;
use engine::{Engine, EngineOptions, Scheduler};
use serde_json::Value;
use server::{Error, Server, ServerOptions};

/// Longer than any answer of the demo model takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that runs until it is dropped.
pub struct Served {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Served {
    /// A server with default options on a free port.
    pub fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// A server with other options.
    pub fn with(change: impl FnOnce(&mut EngineOptions, &mut ServerOptions)) -> Self {
        let (mut engine, mut options) = (engine_options(), server_options());
        change(&mut engine, &mut options);
        let server = bind(&engine, options).expect("the server can be had");
        let address = server.address();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            server.run(async move {
                drop(stopped.await);
            })
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Ends the server and tells how it ended.
    pub fn end(mut self) -> Result<(), Error> {
        self.begin_end();
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("the server does not panic")
    }

    /// Tells the server to end, and does not wait.
    pub fn begin_end(&mut self) {
        drop(self.stop.take());
    }

    /// A request without a body.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    /// A request with a body of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], &body.to_string())
    }

    /// Any request, answered whole.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.open(method, path, headers, body).finish()
    }

    /// Any request, whose answer is read as it comes.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Open {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("the time is sound");
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|header| header.0 == "host") {
            request += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        (&stream).write_all(request.as_bytes()).expect("the server reads");
        Open { reader: BufReader::new(stream) }
    }

    /// Waits until the server's metrics are as they should be.
    pub fn wait_for(&self, what: &str, test: impl Fn(&BTreeMap<String, f64>) -> bool) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if test(&self.metrics()) {
                return;
            }
            std::thread::yield_now();
        }
        panic!("{what} did not happen: {:#?}", self.metrics());
    }

    /// All metrics without labels.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.get("/metrics").body;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.strip_prefix("flash_moe_")?.to_owned(), value.parse().ok()?))
        });
        pairs.collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.begin_end();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What the engine of a test needs, and no more.
pub fn engine_options() -> EngineOptions {
    EngineOptions {
        expert_cache: Some(6 << 20),
        context: Some(2048),
        sessions: 2,
        reader: engine::ReaderKind::Threads,
        ..EngineOptions::default()
    }
}

/// A server on a free port that says nothing.
pub fn server_options() -> ServerOptions {
    ServerOptions {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        model_names: vec!["demo".to_owned()],
        grace: Duration::from_secs(30),
        log: false,
        ..ServerOptions::default()
    }
}

/// A server that does not answer yet.
pub fn bind(engine: &EngineOptions, options: ServerOptions) -> Result<Server, Error> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let engine = Engine::open(&directory, engine).expect("the demo model opens");
    let tokenizer = engine.tokenizer().expect("the demo model has a tokenizer");
    let chat = ChatModel::open(&directory, None, tokenizer).expect("the demo model has a template");
    Server::bind(Scheduler::new(engine), Some(chat), options)
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {self:?}"),
        }
    }

    /// The body of an answer that went well.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }
}

/// An answer under way. Dropping it closes the connection.
pub struct Open {
    reader: BufReader<TcpStream>,
}

impl Open {
    /// Status and headers.
    pub fn head(&mut self) -> Answer {
        let mut line = self.line();
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("a status line, not {line:?}"));
        let mut headers = BTreeMap::new();
        loop {
            line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Answer { status, headers, body: String::new() }
    }

    /// Reads until a text has come.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let line = self.line();
            assert!(!line.is_empty(), "the answer ended without {text:?}: {seen}");
            seen += &line;
        }
        seen
    }

    /// Reads all of it.
    pub fn finish(mut self) -> Answer {
        let mut answer = self.head();
        let mut bytes = Vec::new();
        if answer.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let line = self.line();
                let length = usize::from_str_radix(line.trim(), 16)
                    .unwrap_or_else(|_| panic!("a length of a chunk, not {line:?}"));
                let mut chunk = vec![0; length + 2];
                self.reader.read_exact(&mut chunk).expect("the chunk is whole");
                bytes.extend_from_slice(&chunk[..length]);
                if length == 0 {
                    break;
                }
            }
        } else {
            self.reader.read_to_end(&mut bytes).expect("the answer is whole");
        }
        answer.body = String::from_utf8(bytes).expect("answers are UTF-8");
        answer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("the server goes on");
        line
    }
}

/// A request for an answer of seconds: at this temperature any token is as likely as any other, so that one
/// that ends the answer is not to be expected.
pub fn long_answer() -> Value {
    serde_json::json!({
        "model": "demo", "prompt": "Once upon a time", "max_tokens": 1900, "stream": true,
        "temperature": 100, "top_k": 0, "top_p": 1, "seed": 1,
    })
}

/// Runs something elsewhere, and gives its result in time or fails.
pub fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(PATIENCE).expect("it ends in time")
}

/// Compares with a file of `tests/it/snapshots`; with UPDATE_SNAPSHOTS set, writes it.
#[track_caller]
pub fn assert_snapshot(name: &str, text: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots").join(name);
    let text = normalised(text);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).expect("the snapshot can be written");
        return;
    }
    let expected = fs::read_to_string(&path).expect("the snapshot is there");
    if expected != text {
        let differing = expected.lines().zip(text.lines()).find(|(a, b)| a != b);
        panic!(
            "{name} differs, first in {differing:#?}\nhint: if that is right, run the test with \
             UPDATE_SNAPSHOTS=1 and look at the difference\n{text}"
        );
    }
}

/// Without what is another every time: ids, times, durations, and comments, which tell progress; and
/// probabilities only as exactly as all machines have them.
fn normalised(text: &str) -> String {
    let mut lines = Vec::new();
    let mut is_comment = false;
    for line in text.lines() {
        if line.starts_with(": ") {
            is_comment = true;
        } else if !(is_comment && line.is_empty()) {
            is_comment = false;
            lines.push(normalised_line(line));
        } else {
            is_comment = false;
        }
    }
    lines.join("\n") + "\n"
}

fn normalised_line(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let n_hex = rest.chars().take_while(char::is_ascii_hexdigit).count();
        let time = ["\"created\":", "\"created_at\":", "_duration\":"];
        if let Some(name) = time.iter().find(|name| rest.starts_with(**name)) {
            out += name;
            out += "0";
            rest = &rest[name.len()..];
            rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
        } else if let Some((number, length)) = long_decimal(rest) {
            out += &format!("{number:.2}");
            rest = &rest[length..];
        } else if n_hex >= 24 {
            out += "ID";
            rest = &rest[24..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// A number with many decimals that a text begins with, and its length.
fn long_decimal(text: &str) -> Option<(f64, usize)> {
    if !text.starts_with(['-', '0']) {
        return None;
    }
    let is_part = |c: char| c.is_ascii_digit() || ['-', '.', 'e'].contains(&c);
    let length = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let number = text[..length].parse().ok()?;
    (length >= 8 && text[..length].contains('.')).then_some((number, length))
}
