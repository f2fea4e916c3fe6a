//! What `/v1/responses` is asked.

use chat::{ChatRequest, Message};
use serde_json::{Value, json};

use crate::api::{openai, tools};
use crate::app::{App, plain};
use crate::ask::{Ask, Input};
use crate::error::ApiError;
use crate::fields::Fields;

/// A request that was read.
pub(super) struct Read {
    pub(super) ask: Ask,
    /// What the response repeats of it.
    pub(super) told: Value,
    pub(super) is_stream: bool,
}

/// Reads a request.
pub(super) fn read(mut fields: Fields, app: &App) -> Result<Read, ApiError> {
    app.check_model(&fields.need::<String>("model")?)?;
    let instructions = fields.opt::<String>("instructions")?;
    let mut messages: Vec<Message> =
        instructions.as_deref().map(Message::system).into_iter().collect();
    read_input(&mut fields, &mut messages)?;
    let mut told = json!({
        "model": app.model_name(),
        "instructions": instructions,
        "previous_response_id": null,
        "store": false,
        "truncation": "disabled",
        "metadata": fields.peek("metadata").cloned().unwrap_or_else(|| json!({})),
        "tools": fields.peek("tools").cloned().unwrap_or_else(|| json!([])),
        "tool_choice": fields.peek("tool_choice").cloned().unwrap_or_else(|| "auto".into()),
        "text": fields.peek("text").cloned()
            .unwrap_or_else(|| json!({ "format": { "type": "text" } })),
        "reasoning": fields.peek("reasoning").cloned()
            .unwrap_or_else(|| json!({ "effort": null, "summary": null })),
    });
    let tools = read_tools(&mut fields)?;
    let tool_choice = tools::read_tool_choice(&mut fields)?;
    tools::check_choice(&tool_choice, &tools)?;
    let parallel_tool_calls = fields.opt("parallel_tool_calls")?.unwrap_or(true);
    let mut format = chat::ResponseFormat::Text;
    if let Some(mut text) = fields.object("text")? {
        format = tools::read_format(&mut text, "format")?;
        text.refuse("verbosity", &[json!("medium")], "say it in the instructions")?;
        text.finish()?;
    }
    let mut enable_thinking = None;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        enable_thinking = openai::read_effort(&mut reasoning, "effort")?;
        reasoning.refuse("summary", &[], "thoughts are told whole")?;
        reasoning.refuse("generate_summary", &[], "thoughts are told whole")?;
        reasoning.finish()?;
    }
    let request = ChatRequest {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        format,
        enable_thinking,
        ..ChatRequest::default()
    };
    let mut ask = Ask::new(app, Input::Chat(Box::new(request)));
    ask.read_sampling(&mut fields, "repetition_penalty")?;
    ask.read_max_tokens(&mut fields, "max_output_tokens")?;
    for (name, value) in [
        ("parallel_tool_calls", parallel_tool_calls.into()),
        ("max_output_tokens", ask.max_tokens.into()),
        ("temperature", plain(ask.sampling.temperature)),
        ("top_p", plain(ask.sampling.top_p)),
    ] {
        told[name] = value;
    }
    let is_stream = fields.opt("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        options.refuse("include_obfuscation", &[json!(false)], "answers are not padded")?;
        options.finish()?;
    }
    refuse(&mut fields)?;
    fields.finish()?;
    Ok(Read { ask, told, is_stream })
}

/// Parameters with a meaning that this server has no way to give them.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    fields.accept(&openai::FOR_OTHERS);
    fields.refuse("store", &[json!(false)], "responses are not kept")?;
    fields.refuse("previous_response_id", &[], "responses are not kept; send the conversation")?;
    fields.refuse("conversation", &[], "conversations are not kept; send its items")?;
    fields.refuse("background", &[json!(false)], "responses are not kept")?;
    // Thoughts are told in the open, so that there is nothing encrypted to include.
    let include = [json!([]), json!(["reasoning.encrypted_content"])];
    fields.refuse("include", &include, "the response holds all there is")?;
    fields.refuse("truncation", &[json!("disabled")], "conversations are read whole")?;
    fields.refuse("service_tier", &[json!("auto"), json!("default")], "there is one service")?;
    fields.refuse("prompt", &[], "the server keeps no prompts")?;
    fields.refuse("max_tool_calls", &[], "the server calls no tools itself")?;
    fields.refuse("top_logprobs", &[json!(0)], "use /v1/chat/completions")
}

/// A text, or the items of a conversation.
fn read_input(fields: &mut Fields, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    if let Some(Value::String(text)) = fields.peek("input") {
        messages.push(Message::user(text));
        fields.accept(&["input"]);
        return Ok(());
    }
    let items = fields.list("input")?.ok_or_else(|| fields.missing("input"))?;
    if items.is_empty() {
        return Err(ApiError::invalid("input", "must not be empty"));
    }
    for (at, value) in items {
        read_item(Fields::of(value, &at)?, &at, messages)?;
    }
    Ok(())
}

fn read_item(mut item: Fields, at: &str, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    item.accept(&["id", "status", "phase"]);
    let kind = item.opt::<String>("type")?.unwrap_or_else(|| "message".to_owned());
    match kind.as_str() {
        "message" => {
            let role: String = item.need("role")?;
            let role = match role.as_str() {
                "developer" | "system" => "system",
                "user" | "assistant" => &role,
                _ => {
                    let why = "must be system, developer, user or assistant";
                    return Err(ApiError::invalid(item.path("role"), why));
                }
            };
            let content = openai::read_content(&mut item, "content")?;
            let content = content.ok_or_else(|| item.missing("content"))?;
            match unanswered(messages).filter(|_| role == "assistant") {
                Some(last) => last.content = content.into(),
                None => messages.push(Message::new(role, &content)),
            }
        }
        "reasoning" => {
            item.accept(&["summary", "encrypted_content"]);
            let thoughts = item.list("content")?.unwrap_or_default().into_iter();
            let thoughts = thoughts.map(|(at, part)| {
                let mut part = Fields::of(part, &at)?;
                part.accept(&["type"]);
                let text: String = part.need("text")?;
                part.finish()?;
                Ok::<_, ApiError>(text)
            });
            let thoughts = thoughts.collect::<Result<String, _>>()?;
            let mut message = Message::new("assistant", "");
            message.other.insert("reasoning_content".to_owned(), thoughts.into());
            messages.push(message);
        }
        "function_call" => {
            let (id, name): (String, String) = (item.need("call_id")?, item.need("name")?);
            let path = item.path("arguments");
            let arguments = openai::read_arguments(item.take("arguments"), path)?;
            let function = json!({ "name": name, "arguments": arguments });
            let call = json!({ "id": id, "type": "function", "function": function });
            // Calls of one turn are one message.
            if messages.last().is_none_or(|last| last.role != "assistant") {
                messages.push(Message::new("assistant", ""));
            }
            if let Some(last) = messages.last_mut() {
                let calls = last.other.entry("tool_calls").or_insert_with(|| json!([]));
                calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
            }
        }
        "function_call_output" => {
            let id: String = item.need("call_id")?;
            let output = openai::read_content(&mut item, "output")?;
            let output = output.ok_or_else(|| item.missing("output"))?;
            let mut message = Message::new("tool", &output);
            message.other.insert("tool_call_id".to_owned(), id.into());
            messages.push(message);
        }
        _ => return Err(ApiError::unsupported(at, format!("an item of type {kind:?}"))),
    }
    item.finish()
}

/// The message that thoughts have begun and that has no text yet.
fn unanswered(messages: &mut [Message]) -> Option<&mut Message> {
    messages.last_mut().filter(|last| {
        last.role == "assistant"
            && last.content.as_str() == Some("")
            && last.other.contains_key("reasoning_content")
            && !last.other.contains_key("tool_calls")
    })
}

fn read_tools(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let tools = fields.list("tools")?.unwrap_or_default().into_iter().map(|(at, value)| {
        let mut fields = Fields::of(value, &at)?;
        tools::is_function(&mut fields)?;
        let tool = tools::read_function(&mut fields, "parameters", &at)?;
        fields.finish()?;
        Ok(tool)
    });
    tools.collect()
}
