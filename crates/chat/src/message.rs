//! Messages of a conversation, as the APIs that people's tools speak have them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A message. What a template may ask for beyond role and content, such as `reasoning_content` or
/// `tool_calls`, is kept as it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// A text, a list of parts, or null.
    #[serde(default)]
    pub content: Value,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: text.into(), other: Map::new() }
    }

    /// What the user says.
    pub fn user(text: &str) -> Self {
        Self::new("user", text)
    }

    /// What the model is told to be.
    pub fn system(text: &str) -> Self {
        Self::new("system", text)
    }

    /// The message as templates see it: arguments of tool calls are objects, also where an API has
    /// them as a text of JSON.
    pub(crate) fn to_value(&self) -> serde_json::Result<Value> {
        let mut value = serde_json::to_value(self)?;
        let calls = value.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let call = match call.get_mut("function") {
                Some(function) => function,
                None => call,
            };
            if let Some(Value::String(json)) = call.get("arguments") {
                let arguments = if json.trim().is_empty() { "{}" } else { json };
                call["arguments"] = crate::read_json(arguments)?;
            }
        }
        Ok(value)
    }
}
