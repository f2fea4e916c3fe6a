//! What OpenAI's endpoints have in common.

use chat::Message;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::reply::{Call, Counts, Finish, TextToken};

/// Parameters that are meant for others than the model: who asks, where it is billed, how it is found.
pub(crate) const FOR_OTHERS: [&str; 5] =
    ["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// Why an answer ended.
pub(crate) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) => "stop",
        Finish::Length => "length",
        Finish::Calls => "tool_calls",
    }
}

/// Tokens of one or several answers to one prompt.
pub(crate) fn usage(counts: impl Iterator<Item = Counts>) -> Value {
    let mut sum = Counts::default();
    for one in counts {
        sum.prompt = one.prompt;
        sum.cached = sum.cached.max(one.cached);
        sum.generated += one.generated;
        sum.reasoning += one.reasoning;
    }
    json!({
        "prompt_tokens": sum.prompt,
        "completion_tokens": sum.generated,
        "total_tokens": sum.prompt + sum.generated,
        "prompt_tokens_details": { "cached_tokens": sum.cached },
        "completion_tokens_details": { "reasoning_tokens": sum.reasoning },
    })
}

/// Tokens with their probabilities, as chat completions have them.
pub(crate) fn logprobs(tokens: &[TextToken], app: &App) -> Vec<Value> {
    let one = |token: u32, logprob: f32| {
        json!({
            "token": app.tokenizer.decode(&[token], false),
            "logprob": logprob,
            "bytes": app.tokenizer.token_bytes(token),
        })
    };
    let all = tokens.iter().map(|token| {
        let mut entry = one(token.token, token.logprob);
        let top = token.top.iter().map(|top| one(top.token, top.logprob));
        entry["top_logprobs"] = Value::Array(top.collect());
        entry
    });
    all.collect()
}

/// A call, as chat completions have it.
pub(crate) fn call(call: &Call) -> Value {
    let Call { id, name, arguments } = call;
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

/// Messages of chat completions.
pub(crate) fn read_messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "must not be empty"));
    }
    list.into_iter().map(|(at, value)| read_message(Fields::of(value, &at)?)).collect()
}

fn read_message(mut fields: Fields) -> Result<Message, ApiError> {
    let role: String = fields.need("role")?;
    let role_path = fields.path("role");
    let role = match role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        "function" => {
            return Err(ApiError::unsupported(role_path, "use the role tool with tool_call_id"));
        }
        _ => {
            let why = "must be system, developer, user, assistant or tool";
            return Err(ApiError::invalid(role_path, why));
        }
    };
    let content = read_content(&mut fields, "content")?;
    if content.is_none() && role != "assistant" {
        return Err(fields.missing("content"));
    }
    let mut message = Message::new(role, content.as_deref().unwrap_or_default());
    // Templates have no place for the name of who speaks; tools are known by their calls.
    fields.accept(&["name"]);
    match role {
        "assistant" => {
            let reasoning = fields.opt::<String>("reasoning_content")?;
            if let Some(reasoning) = reasoning {
                message.other.insert("reasoning_content".to_owned(), reasoning.into());
            }
            let calls = fields.list("tool_calls")?.unwrap_or_default();
            let calls = calls.into_iter().map(|(at, call)| read_call(Fields::of(call, &at)?));
            let calls = calls.collect::<Result<Vec<_>, _>>()?;
            if !calls.is_empty() {
                message.other.insert("tool_calls".to_owned(), calls.into());
            }
            fields.accept(&["refusal"]);
            fields.refuse("annotations", &[json!([])], "answers have none")?;
            fields.refuse("audio", &[], "the model does not hear")?;
            fields.refuse("function_call", &[], "use tool_calls")?;
        }
        "tool" => {
            let id: String = fields.need("tool_call_id")?;
            message.other.insert("tool_call_id".to_owned(), id.into());
        }
        _ => {}
    }
    fields.finish()?;
    Ok(message)
}

fn read_call(mut fields: Fields) -> Result<Value, ApiError> {
    let mut call = Map::new();
    call.insert("id".to_owned(), fields.opt::<String>("id")?.unwrap_or_default().into());
    super::tools::is_function(&mut fields)?;
    call.insert("type".to_owned(), "function".into());
    fields.accept(&["index"]);
    let mut function = fields.object("function")?.ok_or_else(|| fields.missing("function"))?;
    fields.finish()?;
    let name: String = function.need("name")?;
    let path = function.path("arguments");
    let arguments = read_arguments(function.take("arguments"), path)?;
    function.accept(&["index"]);
    function.finish()?;
    call.insert("function".to_owned(), json!({ "name": name, "arguments": arguments }));
    Ok(Value::Object(call))
}

/// Arguments of a call: an object, or its JSON text.
pub(crate) fn read_arguments(value: Option<Value>, path: String) -> Result<Value, ApiError> {
    let why = "must be a JSON object, or the text of one";
    let value = match value {
        None => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => {
            chat::read_json(&text).map_err(|_| ApiError::invalid(&*path, why))?
        }
        Some(value) => value,
    };
    if value.is_object() { Ok(value) } else { Err(ApiError::invalid(path, why)) }
}

/// A text, or a list of parts that are texts.
pub(crate) fn read_content(fields: &mut Fields, name: &str) -> Result<Option<String>, ApiError> {
    let path = fields.path(name);
    match fields.take(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate().map(|(index, part)| {
                let at = format!("{path}[{index}]");
                let mut part = Fields::of(part, &at)?;
                let kind: String = part.need("type")?;
                match kind.as_str() {
                    "text" | "input_text" | "output_text" => {
                        let text: String = part.need("text")?;
                        part.accept(&["annotations", "logprobs", "cache_control"]);
                        part.finish()?;
                        Ok(text)
                    }
                    _ => {
                        let why = format!("the model reads text, not {kind:?}");
                        Err(ApiError::unsupported(at, why))
                    }
                }
            });
            parts.collect::<Result<String, _>>().map(Some)
        }
        Some(_) => Err(ApiError::invalid(path, "must be a text or a list of parts")),
    }
}

/// OpenAI's `reasoning_effort`: thinking is on or off, and has no degrees.
pub(crate) fn read_effort(fields: &mut Fields, name: &str) -> Result<Option<bool>, ApiError> {
    let path = fields.path(name);
    match fields.opt::<String>(name)?.as_deref() {
        None => Ok(None),
        Some("none") => Ok(Some(false)),
        Some("high") => Ok(Some(true)),
        Some(_) => Err(ApiError::unsupported(path, "thinking is none or high, nothing between")),
    }
}
