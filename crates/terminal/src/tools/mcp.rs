//! Servers of the Model Context Protocol, started as programs and spoken to by lines of JSON on their pipes.
//!
//! What talking with tools needs of the protocol is four messages, so they are written here: the official library
//! brings a hundred crates and an asynchronous runtime along.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

use crate::config::McpConfig;
use crate::text::one_line;

/// The version of the protocol that is asked for; a server may answer with another.
const PROTOCOL: &str = "2025-06-18";
/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(50);
/// How long a server may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);
/// A longer message than any server sends.
const MAX_LINE: u64 = 16 << 20;
/// Messages that wait for being read, in each direction.
const MAX_WAITING: usize = 64;
/// Tools that a server may have.
const MAX_TOOLS: usize = 512;

/// A running server.
pub struct McpServer {
    name: String,
    child: Child,
    /// Lines for a thread that writes them, as a server that does not read would hold up who does.
    lines: Option<SyncSender<Vec<u8>>>,
    messages: Receiver<Value>,
    next_id: u64,
    tools: Vec<McpTool>,
}

/// A tool of a server.
#[derive(Clone, Debug)]
pub struct McpTool {
    /// How the model calls it: the server's name before its own.
    pub name: String,
    /// Its own name.
    own_name: String,
    /// What the model is offered, in the form of the OpenAI API.
    pub definition: Value,
}

impl McpServer {
    /// Starts a server and asks for its tools.
    pub fn start(name: &str, config: &McpConfig) -> anyhow::Result<Self> {
        Self::start_inner(name, config).with_context(|| format!("the MCP server {name}"))
    }

    fn start_inner(name: &str, config: &McpConfig) -> anyhow::Result<Self> {
        let mut command = Command::new(&config.command);
        command.args(&config.args).envs(&config.env);
        // What it logs would run into the talk.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        crate::tools::shell::own_group(&mut command);
        let mut child = command.spawn().with_context(|| format!("starting {}", config.command))?;
        let mut stdin = child.stdin.take().context("its input")?;
        let stdout = child.stdout.take().context("its output")?;
        let (lines, waiting) = mpsc::sync_channel::<Vec<u8>>(MAX_WAITING);
        thread::spawn(move || {
            // Both ends of the talk end this.
            for line in waiting {
                if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        let (sender, messages) = mpsc::sync_channel(MAX_WAITING);
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while let Ok(1..) = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                // What is no message, such as a log that went astray, is skipped.
                if let Ok(message) = serde_json::from_slice(&line)
                    && sender.send(message).is_err()
                {
                    break;
                }
                line.clear();
            }
        });
        let name = name.to_owned();
        let lines = Some(lines);
        let mut server = Self { name, child, lines, messages, next_id: 0, tools: Vec::new() };
        let client = json!({ "name": "flash-moe", "version": env!("CARGO_PKG_VERSION") });
        let hello =
            json!({ "protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": client });
        server.request("initialize", hello, START, &mut || false)?;
        server.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))?;
        server.list()?;
        Ok(server)
    }

    fn list(&mut self) -> anyhow::Result<()> {
        let mut cursor = Value::Null;
        loop {
            let parameters = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
            let page = self.request("tools/list", parameters, START, &mut || false)?;
            let tools = page["tools"].as_array().context("its list of tools is none")?;
            for tool in tools {
                let own_name = tool["name"].as_str().context("a tool has no name")?.to_owned();
                let name = format!("{}_{}", self.name, own_name);
                let usable = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                let name: String = name.chars().map(|c| if usable(c) { c } else { '_' }).collect();
                let parameters = match tool.get("inputSchema") {
                    Some(schema) if schema.is_object() => schema.clone(),
                    _ => json!({ "type": "object", "properties": {} }),
                };
                let description = tool["description"].as_str().unwrap_or_default();
                let function =
                    json!({ "name": name, "description": description, "parameters": parameters });
                let definition = json!({ "type": "function", "function": function });
                self.tools.push(McpTool { name, own_name, definition });
            }
            if self.tools.len() > MAX_TOOLS {
                bail!("it has more than {MAX_TOOLS} tools");
            }
            cursor = page["nextCursor"].clone();
            if !cursor.is_string() || tools.is_empty() {
                return Ok(());
            }
        }
    }

    /// The server's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its tools.
    pub fn tools(&self) -> &[McpTool] {
        &self.tools
    }

    /// Calls a tool and gives what the model is told; `stop` is asked all the while whether the user wants it ended.
    pub fn call(
        &mut self,
        tool: &McpTool,
        arguments: &str,
        time: Duration,
        stop: &mut dyn FnMut() -> bool,
    ) -> anyhow::Result<String> {
        let arguments = chat::read_json(arguments).context("the arguments")?;
        let parameters = json!({ "name": tool.own_name, "arguments": arguments });
        let result = self.request("tools/call", parameters, time, stop)?;
        let mut text = String::new();
        for part in result["content"].as_array().into_iter().flatten() {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            match (part["type"].as_str(), part["text"].as_str()) {
                (_, Some(piece)) => text.push_str(piece),
                (kind, None) => {
                    text += &format!("[{} left out]", one_line(kind.unwrap_or("something")))
                }
            }
        }
        if result["isError"] == Value::Bool(true) {
            bail!("{text}");
        }
        Ok(text)
    }

    /// Has a message sent, without waiting until the server reads it.
    fn send(&mut self, message: &Value) -> anyhow::Result<()> {
        let lines = self.lines.as_ref().context("it has ended")?;
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        lines.try_send(line).map_err(|error| match error {
            TrySendError::Full(_) => anyhow!("it does not read what it is sent"),
            TrySendError::Disconnected(_) => anyhow!("it has ended"),
        })
    }

    fn request(
        &mut self,
        method: &str,
        parameters: Value,
        time: Duration,
        stop: &mut dyn FnMut() -> bool,
    ) -> anyhow::Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": parameters }))?;
        let begin = Instant::now();
        loop {
            match self.messages.recv_timeout(TICK) {
                Ok(message) if message.get("method").is_some() => self.answer(&message)?,
                Ok(message) if message["id"] == json!(id) => {
                    if let Some(error) = message.get("error") {
                        let reason = error["message"].as_str().unwrap_or("no reason given");
                        return Err(
                            anyhow!("{}", one_line(reason)).context(format!("{method} failed"))
                        );
                    }
                    return Ok(message["result"].clone());
                }
                // An answer that came too late for its request.
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("it has ended"),
            }
            let stopped = stop();
            if stopped || begin.elapsed() >= time {
                let gone = json!({ "requestId": id, "reason": "not wanted any more" });
                self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": gone }))?;
                bail!(
                    "{}",
                    match stopped {
                        true => "stopped by the user".to_owned(),
                        false => format!("no answer within {} seconds", time.as_secs()),
                    }
                );
            }
        }
    }

    /// Answers what the server asks: it may ask whether somebody is there, and nothing else.
    fn answer(&mut self, message: &Value) -> anyhow::Result<()> {
        let Some(id) = message.get("id") else { return Ok(()) };
        let answer = if message["method"] == "ping" {
            json!({ "jsonrpc": "2.0", "id": id, "result": {} })
        } else {
            let error = json!({ "code": -32601, "message": "not supported" });
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        };
        self.send(&answer)
    }
}

impl Drop for McpServer {
    fn drop(&mut self) {
        // The end of its input tells a server to end.
        self.lines = None;
        let begin = Instant::now();
        while begin.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        crate::tools::shell::kill(&mut self.child);
        // It was killed, so it ends.
        drop(self.child.wait());
    }
}

/// The beginning of a text that has at most so many bytes, with a note if something was left out.
pub fn shortened(text: &str, limit: usize) -> String {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match text.len() - end {
        0 => text.to_owned(),
        left_out => format!("{}\n[{left_out} bytes left out]", &text[..end]),
    }
}
