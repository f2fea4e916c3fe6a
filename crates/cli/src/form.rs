//! What the answer of `run` has to be, from the command line, and the printing of calls.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, bail};
use chat::{Reply, ReplyEvent, ResponseFormat};
use serde_json::{Value, json};

use crate::args::FormArgs;
use crate::output;

/// The form that the options ask for.
pub fn format(args: &FormArgs) -> anyhow::Result<ResponseFormat> {
    if let Some(schema) = &args.json_schema {
        let text = match schema.trim_start().starts_with(['{', '[']) {
            true => schema.clone(),
            false => read(Path::new(schema))?,
        };
        let schema = serde_json::from_str(&text).context("--json-schema is not JSON")?;
        return Ok(ResponseFormat::JsonSchema(schema));
    }
    if let Some(regex) = &args.regex {
        return Ok(ResponseFormat::Regex(regex.clone()));
    }
    if let Some(path) = &args.grammar {
        return Ok(ResponseFormat::Lark(read(path)?));
    }
    if !args.choice.is_empty() {
        return Ok(ResponseFormat::Choice(args.choice.clone()));
    }
    Ok(ResponseFormat::Text)
}

/// Whether the options hold the answer to a form.
pub fn needs_grammar(args: &FormArgs) -> bool {
    let FormArgs { tools, json_schema, regex, grammar, choice } = args;
    tools.is_some()
        || json_schema.is_some()
        || regex.is_some()
        || grammar.is_some()
        || !choice.is_empty()
}

/// The tools that the options offer.
pub fn tools(args: &FormArgs) -> anyhow::Result<Vec<Value>> {
    let Some(path) = &args.tools else { return Ok(Vec::new()) };
    match serde_json::from_str(&read(path)?).with_context(|| format!("{}", path.display()))? {
        Value::Array(tools) => Ok(tools),
        _ => bail!("{} is not a JSON list of tools", path.display()),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Prints a reply as it comes: thoughts dimmed where there is a terminal, text, and each call as a line of
/// JSON.
pub struct ReplyPrinter {
    reply: Reply,
    dims: bool,
    /// Whether a line has begun.
    in_line: bool,
    was_thought: bool,
}

impl ReplyPrinter {
    pub fn new() -> Self {
        let dims = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { reply: Reply::default(), dims, in_line: false, was_thought: false }
    }

    /// Takes events, and prints them unless the reply is wanted in another way.
    pub fn add(&mut self, events: &[ReplyEvent], print: bool) -> anyhow::Result<()> {
        for event in events {
            self.reply.add(event);
            match event {
                _ if !print => {}
                ReplyEvent::Reasoning(text) if self.dims => {
                    self.text(&format!("\x1b[2m{text}\x1b[0m"), true)?;
                }
                ReplyEvent::Reasoning(text) => self.text(text, true)?,
                ReplyEvent::Content(text) | ReplyEvent::Malformed { text } => {
                    self.text(text, false)?;
                }
                ReplyEvent::CallEnd { .. } => {
                    self.line_break()?;
                    output::json(&self.calls().pop().unwrap_or_default())?;
                }
                ReplyEvent::CallBegin { .. } | ReplyEvent::CallArguments { .. } => {}
            }
        }
        Ok(())
    }

    /// The calls so far; arguments are objects.
    pub fn calls(&self) -> Vec<Value> {
        let call = |call: &chat::ToolCall| {
            let arguments = serde_json::from_str(&call.arguments).unwrap_or(Value::Null);
            json!({ "id": call.id, "name": call.name, "arguments": arguments })
        };
        self.reply.calls.iter().map(call).collect()
    }

    /// Ends the last line.
    pub fn line_break(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.in_line) {
            output::stream("\n")?;
        }
        Ok(())
    }

    fn text(&mut self, text: &str, is_thought: bool) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.was_thought, is_thought) && !is_thought {
            self.line_break()?;
        }
        self.in_line = !text.ends_with('\n');
        output::stream(text)
    }
}
