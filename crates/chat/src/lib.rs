//! Messages to the tokens of a prompt, through the model's own chat template.
//!
//! A template is a program that comes with the checkpoint, so it is run with bounds, and in a way that
//! gives the same text as the original's renderer, Python's Jinja2. Messages may hold anything: a
//! control token written in one stays text ([`encode`]).

#![forbid(unsafe_code)]

mod call_json;
mod call_xml;
mod constraint;
mod error;
mod format;
mod grammar;
mod message;
mod model;
mod parser;
mod python;
mod reply;
mod schema;
mod template;
mod tools;
mod value_grammar;
mod vocabulary;

pub use error::Error;
pub use format::CallFormat;
pub use message::Message;
pub use model::{ChatModel, ChatRequest, Prompt, ResponseFormat, ToolChoice};
pub use parser::ReplyParser;
pub use reply::{Reply, ReplyEvent, ToolCall};
pub use template::{ChatTemplate, RenderOptions};

use serde_json::Value;
use tokenizer::Tokenizer;

/// The tokens of a conversation. Control tokens come from the template alone: their text in a message,
/// a tool or a tool's result is encoded as text.
pub fn encode(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Vec<u32>, Error> {
    Ok(tokenizer.encode_prompt(&render(template, tokenizer, messages, options)?)?)
}

/// The text of a conversation, in which what came from messages and tools is marked as untrusted.
fn render(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<String, Error> {
    template.render_with(messages, options, |value| protect(tokenizer, value))
}

/// Marks every text inside a value as untrusted.
fn protect(tokenizer: &Tokenizer, value: &mut Value) {
    match value {
        Value::String(text) => *text = tokenizer.protect(text),
        Value::Array(items) => items.iter_mut().for_each(|item| protect(tokenizer, item)),
        Value::Object(map) => {
            let entries = std::mem::take(map).into_iter().map(|(key, mut value)| {
                protect(tokenizer, &mut value);
                (tokenizer.protect(&key), value)
            });
            *map = entries.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
