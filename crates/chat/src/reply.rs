//! What a model said, in parts: events while it speaks, and the message that they make.

use serde_json::{Map, Value, json};

use crate::message::Message;

/// A part of a reply, as soon as it is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEvent {
    /// More of what the model thinks.
    Reasoning(String),
    /// More of what it says.
    Content(String),
    /// A call begins.
    CallBegin {
        /// Which call of the reply.
        index: usize,
        /// A name of the call, unique within the reply.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments.
    CallArguments {
        /// Which call of the reply.
        index: usize,
        /// A piece of JSON text; the pieces of a call make one object.
        json: String,
    },
    /// A call is whole.
    CallEnd {
        /// Which call of the reply.
        index: usize,
    },
    /// What was begun as a call is none. A call that has begun and not ended is void.
    Malformed {
        /// All of it, from the mark that begins a call.
        text: String,
    },
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// A name of the call, unique within the reply.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments, as the text of a JSON object.
    pub arguments: String,
}

/// A reply, collected from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// What the model thought.
    pub reasoning: String,
    /// What it said. What was begun as a call and is none is part of it.
    pub content: String,
    /// Its calls.
    pub calls: Vec<ToolCall>,
    /// What was begun as a call and is none.
    pub malformed: Vec<String>,
    /// The call that has begun and not ended.
    open: Option<ToolCall>,
}

impl Reply {
    /// Takes the next event.
    pub fn add(&mut self, event: &ReplyEvent) {
        match event {
            ReplyEvent::Reasoning(text) => self.reasoning.push_str(text),
            ReplyEvent::Content(text) => self.content.push_str(text),
            ReplyEvent::CallBegin { id, name, .. } => {
                let (id, name) = (id.clone(), name.clone());
                self.open = Some(ToolCall { id, name, arguments: String::new() });
            }
            ReplyEvent::CallArguments { json, .. } => {
                if let Some(call) = &mut self.open {
                    call.arguments.push_str(json);
                }
            }
            ReplyEvent::CallEnd { .. } => self.calls.extend(self.open.take()),
            ReplyEvent::Malformed { text } => {
                self.open = None;
                self.content.push_str(text);
                self.malformed.push(text.clone());
            }
        }
    }

    /// The message that a template takes back. Rendered, it is what the model said, wherever the
    /// template and the model agree on space and on how values are written.
    pub fn to_message(&self) -> Message {
        let mut other = Map::new();
        // Always there, so that a template does not look for thoughts in the content.
        other.insert("reasoning_content".to_owned(), self.reasoning.clone().into());
        if !self.calls.is_empty() {
            let call = |call: &ToolCall| {
                let ToolCall { id, name, arguments } = call;
                let function = json!({ "name": name, "arguments": arguments });
                json!({ "id": id, "type": "function", "function": function })
            };
            let calls = self.calls.iter().map(call).collect::<Vec<Value>>();
            other.insert("tool_calls".to_owned(), calls.into());
        }
        Message { role: "assistant".to_owned(), content: self.content.clone().into(), other }
    }
}
