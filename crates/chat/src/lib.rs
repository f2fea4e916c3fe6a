//! Messages to the tokens of a prompt, through the model's own chat template, and what comes back to
//! messages.
//!
//! A template is a program that comes with the checkpoint, so it is run with bounds, and in a way that
//! gives the same text as the original's renderer, Python's Jinja2. Messages may hold anything: a
//! control token written in one stays text ([`encode`]).
//!
//! ```no_run
//! use chat::{ChatModel, ChatRequest, Message, Reply};
//! use engine::{Engine, EngineOptions, GenerateOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = "models/qwen3.5-35b-a3b".as_ref();
//! let mut engine = Engine::open(directory, &EngineOptions::default())?;
//! let tokenizer = engine.tokenizer()?.clone();
//! let model = ChatModel::open(directory, engine.chat_template(), &tokenizer)?
//!     .with_stop_tokens(engine.stop_tokens());
//! let mut request = ChatRequest {
//!     messages: vec![Message::user("What is the weather in Oslo?")],
//!     tools: vec![serde_json::from_str(r#"{"name": "get_weather"}"#)?],
//!     ..ChatRequest::default()
//! };
//! let mut prompt = model.prompt(&tokenizer, &request)?;
//! let options = GenerateOptions {
//!     stop_tokens: engine.stop_tokens().to_vec(),
//!     show_special: true,
//!     ..GenerateOptions::default()
//! };
//! let mut session = engine.session()?;
//! let mut reply = Reply::default();
//! let constraint = prompt.constraint;
//! for step in engine.generate_constrained(&mut session, &prompt.tokens, options, constraint)? {
//!     let step = step?;
//!     for event in prompt.parser.push(&step.text) {
//!         reply.add(&event);
//!     }
//! }
//! prompt.parser.finish().iter().for_each(|event| reply.add(event));
//! request.messages.push(reply.to_message());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod arguments;
mod call_json;
mod call_xml;
mod closing;
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

pub use arguments::read_json;
pub use error::Error;
pub use format::CallFormat;
pub use message::Message;
pub use model::{ChatModel, ChatRequest, Prompt, ResponseFormat, ToolChoice};
pub use parser::ReplyParser;
pub use reply::{Reply, ReplyEvent, ToolCall};
pub use template::{ChatTemplate, RESERVED_VARIABLES, RenderOptions};
pub use vocabulary::GRAMMAR_MEMORY;

use serde_json::Value;
use tokenizer::Tokenizer;

/// The tokens of a conversation. Control tokens come from the template alone: their text in a message,
/// a tool, a tool's result or a variable is encoded as text.
pub fn encode(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Vec<u32>, Error> {
    Ok(tokenizer.encode_prompt(&render(template, tokenizer, messages, options)?)?)
}

/// The text of a conversation, in which what came from messages, tools and variables is marked as untrusted.
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
