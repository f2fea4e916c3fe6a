//! `POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic has them.

mod events;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chat::{ChatRequest, Message, ResponseFormat, ToolChoice};
use serde_json::{Value, json};

use super::{openai, tools};
use crate::api::messages::events::Events;
use crate::app::App;
use crate::ask::{Ask, Input};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::reply::{Counts, Finish, Whole};
use crate::router::{Asked, Queued, json_response};
use crate::stream;

/// Thoughts are not signed here; clients want something to send back.
const SIGNATURE: &str = "unsigned";

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Queued { mut fields, reservation }: Queued,
) -> Result<Response, ApiError> {
    let request = read_request(&mut fields, &app)?;
    let mut ask = Ask::new(&app, Input::Chat(Box::new(request)));
    ask.read_max_tokens(&mut fields, "max_tokens")?;
    if ask.max_tokens.is_none() {
        return Err(fields.missing("max_tokens"));
    }
    let thinking_budget = read_budget(&mut fields, ask.max_tokens)?;
    ask.thinking_budget = thinking_budget;
    read_sampling(&mut ask, &mut fields)?;
    ask.read_stop(&mut fields, "stop_sequences")?;
    let is_stream = fields.opt("stream")?.unwrap_or(false);
    fields.accept(&["metadata", "cache_control"]);
    let tiers = [json!("auto"), json!("standard_only")];
    fields.refuse("service_tier", &tiers, "there is one service")?;
    fields.refuse("mcp_servers", &[json!([])], "the server calls no others")?;
    fields.refuse("container", &[], "there is none")?;
    fields.refuse("context_management", &[], "conversations are read as they come")?;
    fields.finish()?;

    let head = Head { id: format!("msg_{}", app.next_id()), model: app.model_name().to_owned() };
    let replies = ask.submit(&app, reservation).await?;
    if is_stream {
        let wire = Events::new(head, replies.n_prompt());
        return Ok(stream::respond(replies, wire));
    }
    let whole = replies.collect().await?.pop().unwrap_or_default();
    let mut value = head.object();
    value["content"] = content(&whole);
    let (reason, sequence) = stop_reason(&whole.finish());
    value["stop_reason"] = reason.into();
    value["stop_sequence"] = sequence;
    value["usage"] = usage(&whole.counts());
    Ok(json_response(StatusCode::OK, &value))
}

/// Counts the tokens of a conversation.
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    Asked(mut fields): Asked,
) -> Result<Response, ApiError> {
    let request = read_request(&mut fields, &app)?;
    read_budget(&mut fields, None)?;
    fields.accept(&["cache_control"]);
    fields.finish()?;
    let counting = Arc::clone(&app);
    let work = move || {
        let prompt = counting.chat()?.prompt(&counting.tokenizer, &request)?;
        Ok::<_, ApiError>(prompt.tokens.len())
    };
    let n_tokens = app.off_thread(work).await??;
    Ok(json_response(StatusCode::OK, &json!({ "input_tokens": n_tokens })))
}

fn read_request(fields: &mut Fields, app: &App) -> Result<ChatRequest, ApiError> {
    app.check_model(&fields.need::<String>("model")?)?;
    let mut messages = Vec::new();
    if let Some(system) = openai::read_content(fields, "system")? {
        messages.push(Message::system(&system));
    }
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "must not be empty"));
    }
    for (at, value) in list {
        read_message(Fields::of(value, &at)?, &mut messages)?;
    }
    if messages.last().is_some_and(|last| last.role == "assistant") {
        let why = "an answer cannot be given its beginning; the last message must be the user's";
        return Err(ApiError::unsupported("messages", why));
    }
    let tools = read_tools(fields)?;
    let (tool_choice, parallel_tool_calls) = read_tool_choice(fields)?;
    tools::check_choice(&tool_choice, &tools)?;
    Ok(ChatRequest {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        format: read_format(fields)?,
        enable_thinking: Some(read_thinking(fields)?),
        ..ChatRequest::default()
    })
}

fn read_sampling(ask: &mut Ask, fields: &mut Fields) -> Result<(), ApiError> {
    let sampling = &mut ask.sampling;
    sampling.temperature = fields.opt("temperature")?.unwrap_or(sampling.temperature);
    sampling.top_p = fields.opt("top_p")?.unwrap_or(sampling.top_p);
    sampling.top_k = fields.opt("top_k")?.unwrap_or(sampling.top_k);
    sampling.validate().map_err(ApiError::from)
}

/// Whether the model is to think. As in the original, it does when it is told to.
fn read_thinking(fields: &mut Fields) -> Result<bool, ApiError> {
    match fields.peek("thinking").and_then(|thinking| thinking["type"].as_str()) {
        None => Ok(false),
        Some("disabled") => Ok(false),
        Some("enabled" | "adaptive") => Ok(true),
        Some(_) => Err(ApiError::invalid("thinking.type", "must be enabled, adaptive or disabled")),
    }
}

/// Most tokens of thinking.
fn read_budget(fields: &mut Fields, limit: Option<usize>) -> Result<Option<usize>, ApiError> {
    let Some(mut thinking) = fields.object("thinking")? else { return Ok(None) };
    let kind: String = thinking.need("type")?;
    let budget = thinking.opt::<usize>("budget_tokens")?;
    thinking.finish()?;
    let path = "thinking.budget_tokens";
    match budget {
        Some(_) if kind == "disabled" => {
            Err(ApiError::invalid(path, "needs thinking.type enabled"))
        }
        Some(0) => Err(ApiError::invalid(path, "must be at least 1")),
        Some(budget) if limit.is_some_and(|limit| budget >= limit) => {
            Err(ApiError::invalid(path, "must be less than max_tokens"))
        }
        budget => Ok(budget),
    }
}

/// One message of the original can be several of a template's: results of tools are messages there.
fn read_message(mut fields: Fields, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let role: String = fields.need("role")?;
    if role != "user" && role != "assistant" {
        return Err(ApiError::invalid(fields.path("role"), "must be user or assistant"));
    }
    let path = fields.path("content");
    let content = fields.take("content").ok_or_else(|| fields.missing("content"))?;
    fields.finish()?;
    let blocks = match content {
        Value::String(text) => {
            messages.push(Message::new(&role, &text));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        _ => return Err(ApiError::invalid(path, "must be a text or a list of blocks")),
    };
    let mut message = Message::new(&role, "");
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for (index, block) in blocks.into_iter().enumerate() {
        let at = format!("{path}[{index}]");
        let mut block = Fields::of(block, &at)?;
        block.accept(&["cache_control", "citations"]);
        let kind: String = block.need("type")?;
        match (kind.as_str(), role.as_str()) {
            ("text", _) => text += &block.need::<String>("text")?,
            ("thinking", "assistant") => {
                reasoning += &block.need::<String>("thinking")?;
                block.accept(&["signature"]);
            }
            ("tool_use", "assistant") => {
                let (id, name): (String, String) = (block.need("id")?, block.need("name")?);
                let path = block.path("input");
                let input = openai::read_arguments(block.take("input"), path)?;
                let function = json!({ "name": name, "arguments": input });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            ("tool_result", "user") => {
                let id: String = block.need("tool_use_id")?;
                // What went wrong is in the content; templates have no place for the flag.
                block.accept(&["is_error"]);
                let content = openai::read_content(&mut block, "content")?.unwrap_or_default();
                if !text.is_empty() {
                    messages.push(Message::user(&std::mem::take(&mut text)));
                }
                let mut result = Message::new("tool", &content);
                result.other.insert("tool_call_id".to_owned(), id.into());
                messages.push(result);
            }
            _ => {
                let why = format!("a message of the {role} with a block of {kind:?}");
                return Err(ApiError::unsupported(at, why));
            }
        }
        block.finish()?;
    }
    let is_empty = text.is_empty() && reasoning.is_empty() && calls.is_empty();
    if role == "user" && is_empty && messages.last().is_some_and(|last| last.role == "tool") {
        return Ok(());
    }
    message.content = text.into();
    if !reasoning.is_empty() {
        message.other.insert("reasoning_content".to_owned(), reasoning.into());
    }
    if !calls.is_empty() {
        message.other.insert("tool_calls".to_owned(), calls.into());
    }
    messages.push(message);
    Ok(())
}

fn read_tools(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let tools = fields.list("tools")?.unwrap_or_default().into_iter().map(|(at, value)| {
        let mut fields = Fields::of(value, &at)?;
        match fields.opt::<String>("type")?.as_deref() {
            None | Some("custom") => {}
            Some(kind) => {
                let why = format!("the server has no tool {kind:?} of its own");
                return Err(ApiError::unsupported(fields.path("type"), why));
            }
        }
        fields.accept(&["cache_control", "eager_input_streaming"]);
        let tool = tools::read_function(&mut fields, "input_schema", &at)?;
        fields.finish()?;
        Ok(tool)
    });
    tools.collect()
}

/// The choice, and whether there may be several calls.
fn read_tool_choice(fields: &mut Fields) -> Result<(ToolChoice, bool), ApiError> {
    let Some(mut choice) = fields.object("tool_choice")? else {
        return Ok((ToolChoice::Auto, true));
    };
    let kind: String = choice.need("type")?;
    let is_single = choice.opt("disable_parallel_tool_use")?.unwrap_or(false);
    let read = match kind.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(choice.need("name")?),
        _ => {
            let why = "must be auto, any, tool or none";
            return Err(ApiError::invalid("tool_choice.type", why));
        }
    };
    choice.finish()?;
    Ok((read, !is_single))
}

fn read_format(fields: &mut Fields) -> Result<ResponseFormat, ApiError> {
    let Some(mut config) = fields.object("output_config")? else {
        return Ok(ResponseFormat::Text);
    };
    config.refuse("effort", &[], "the model has no degrees of effort")?;
    let format = tools::read_format(&mut config, "format")?;
    config.finish()?;
    Ok(format)
}

fn stop_reason(finish: &Finish) -> (&'static str, Value) {
    match finish {
        Finish::Stop => ("end_turn", Value::Null),
        Finish::StopString(text) => ("stop_sequence", text.clone().into()),
        Finish::Length => ("max_tokens", Value::Null),
        Finish::Calls => ("tool_use", Value::Null),
    }
}

fn usage(counts: &Counts) -> Value {
    json!({
        "input_tokens": counts.prompt - counts.cached.min(counts.prompt),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.generated,
    })
}

fn content(whole: &Whole) -> Value {
    let mut blocks = Vec::new();
    if !whole.reasoning.is_empty() {
        let thinking = &whole.reasoning;
        blocks.push(json!({ "type": "thinking", "thinking": thinking, "signature": SIGNATURE }));
    }
    if !whole.content.is_empty() {
        blocks.push(json!({ "type": "text", "text": whole.content }));
    }
    for call in &whole.calls {
        // An answer that reached its limit may have half of a call.
        let input = chat::read_json(&call.arguments).unwrap_or_else(|_| json!({}));
        let (id, name) = (&call.id, &call.name);
        blocks.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
    }
    Value::Array(blocks)
}

struct Head {
    id: String,
    model: String,
}

impl Head {
    fn object(&self) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {},
        })
    }
}
