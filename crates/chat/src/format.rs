//! The form in which a model says its thoughts and its calls, found out from its own template: a small
//! conversation with a thought and a call is rendered, and what comes out tells.

use serde_json::json;
use tokenizer::Tokenizer;

use crate::message::Message;
use crate::template::{ChatTemplate, RenderOptions};

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";
pub(crate) const CALL: &str = "<tool_call>";
pub(crate) const CALL_END: &str = "</tool_call>";
/// What templates put between a thought and the rest of the reply.
pub(crate) const AFTER_THINKING: &str = "\n\n";

/// How calls are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<function=NAME>` with a `<parameter=KEY>` for each argument, as Qwen3.5 does.
    Xml,
    /// A JSON object with `name` and `arguments`, as Hermes and Qwen3 do.
    Json,
    /// The template knows no calls, or in a form that is not known here.
    None,
}

/// What a template tells of replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplyFormat {
    pub(crate) calls: CallFormat,
    /// Whether thoughts are written between `<think>` and `</think>`.
    pub(crate) thinks: bool,
    /// Tokens that end a reply.
    pub(crate) stop_tokens: Vec<u32>,
    /// What stands before a reply, if a control token tells it from what messages hold.
    pub(crate) header: Option<String>,
}

impl ReplyFormat {
    pub(crate) fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Self {
        let call = json!({ "id": "call_0", "type": "function", "function": {
            "name": "probe_tool", "arguments": { "key": "value" },
        }});
        let tool = json!({ "type": "function", "function": {
            "name": "probe_tool", "description": "", "parameters": {
                "type": "object", "properties": { "key": { "type": "string" } },
            },
        }});
        let reply = |reasoning: Option<&str>, text: &str, calls: bool| {
            let mut message = Message::new("assistant", text);
            if let Some(reasoning) = reasoning {
                message.other.insert("reasoning_content".to_owned(), reasoning.into());
            }
            if calls {
                message.other.insert("tool_calls".to_owned(), json!([call]));
            }
            let options = RenderOptions {
                tools: if calls { vec![tool.clone()] } else { Vec::new() },
                ..RenderOptions::default()
            };
            // A template that cannot render such a conversation does not know the form.
            template.render(&[Message::user("Hello"), message], &options).unwrap_or_default()
        };
        let called = reply(None, "", true);
        let xml = "<tool_call>\n<function=probe_tool>\n<parameter=key>\nvalue\n</parameter>\n\
                   </function>\n</tool_call>";
        let json = "<tool_call>\n{\"name\": \"probe_tool\", \"arguments\": {\"key\": \"value\"}}\n\
                    </tool_call>";
        let calls = if called.contains(xml) {
            CallFormat::Xml
        } else if called.contains(json) {
            CallFormat::Json
        } else {
            CallFormat::None
        };
        let thought = reply(Some("a thought"), "A reply.", false);
        let thinks = thought.contains("<think>\na thought\n</think>\n\nA reply.");
        let after = thought.rsplit_once("A reply.").map_or("", |(_, after)| after);
        let stop_tokens = stop_tokens(tokenizer, after);
        let plain = reply(None, "A reply.", false);
        let header = header(tokenizer, &plain, &stop_tokens);
        Self { calls, thinks, stop_tokens, header }
    }
}

/// What a template puts between the end of the turn before and a reply, without an empty thought.
fn header(tokenizer: &Tokenizer, rendered: &str, stop_tokens: &[u32]) -> Option<String> {
    let before = rendered.split_once("A reply.")?.0.split_once("Hello")?.1;
    let before = before.split_once(THINK).map_or(before, |(header, _)| header);
    let turn_end = tokenizer.decode(stop_tokens.get(..1)?, false);
    let header = before.rsplit_once(&turn_end)?.1.trim_start();
    let tokens = tokenizer.encode_trusted(header).ok()?;
    tokens.iter().any(|&token| tokenizer.is_special(token)).then(|| header.to_owned())
}

/// The control token that the template puts after a reply, and the general end of a text.
fn stop_tokens(tokenizer: &Tokenizer, after: &str) -> Vec<u32> {
    let first = tokenizer.encode_trusted(after).ok().and_then(|tokens| tokens.first().copied());
    let turn = first.filter(|&token| tokenizer.is_special(token));
    let mut tokens: Vec<u32> =
        turn.into_iter().chain(tokenizer.token_id("<|endoftext|>")).collect();
    tokens.dedup();
    tokens
}
