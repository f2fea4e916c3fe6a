//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chat::{ChatRequest, RESERVED_VARIABLES};
use serde_json::{Map, Value, json};

use super::{Family, openai, tools};
use crate::app::{App, now_s};
use crate::ask::{Ask, Input, MAX_LOGPROBS};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::reply::{Counts, Delta, Whole};
use crate::router::{Queued, json_response};
use crate::stream::{self, Frames, Framing, Wire};

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Queued { fields, reservation }: Queued,
) -> Result<Response, ApiError> {
    let (ask, streaming) = read(fields, &app)?;
    let head = Head::new(&app);
    let has_logprobs = ask.logprobs.is_some();
    let replies = ask.submit(&app, reservation).await?;
    if let Some(Streaming { include_usage }) = streaming {
        let counts = vec![Counts::default(); replies.len()];
        let wire = Chunks { head, app, include_usage, has_logprobs, counts };
        return Ok(stream::respond(replies, wire));
    }
    let wholes = replies.collect().await?;
    let choices = wholes.iter().enumerate();
    let choices: Vec<Value> =
        choices.map(|(index, whole)| choice(index, whole, has_logprobs, &app)).collect();
    let mut value = head.object("chat.completion");
    value["choices"] = choices.into();
    value["usage"] = openai::usage(wholes.iter().map(Whole::counts));
    Ok(json_response(StatusCode::OK, &value))
}

/// How an answer is streamed.
struct Streaming {
    include_usage: bool,
}

fn read(mut fields: Fields, app: &App) -> Result<(Ask, Option<Streaming>), ApiError> {
    app.check_model(&fields.need::<String>("model")?)?;
    let messages = openai::read_messages(&mut fields)?;
    let tools = tools::read_tools(&mut fields)?;
    let tool_choice = tools::read_tool_choice(&mut fields)?;
    tools::check_choice(&tool_choice, &tools)?;
    let effort = openai::read_effort(&mut fields, "reasoning_effort")?;
    let mut variables: Map<String, Value> = fields.opt("chat_template_kwargs")?.unwrap_or_default();
    let enable_thinking = match variables.shift_remove("enable_thinking") {
        None | Some(Value::Null) => effort,
        Some(Value::Bool(enable)) => Some(enable),
        Some(_) => {
            let path = "chat_template_kwargs.enable_thinking";
            return Err(ApiError::invalid(path, "must be true or false"));
        }
    };
    if let Some(key) = RESERVED_VARIABLES.into_iter().find(|key| variables.contains_key(*key)) {
        let path = format!("chat_template_kwargs.{key}");
        return Err(ApiError::invalid(path, "is made of the request, so it cannot be given here"));
    }
    let request = ChatRequest {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: fields.opt("parallel_tool_calls")?.unwrap_or(true),
        format: tools::read_format(&mut fields, "response_format")?,
        enable_thinking,
        variables,
        ..ChatRequest::default()
    };
    let mut ask = Ask::new(app, Input::Chat(Box::new(request)));
    ask.read_sampling(&mut fields, "repetition_penalty")?;
    ask.read_stop(&mut fields, "stop")?;
    ask.read_n(&mut fields)?;
    ask.read_max_tokens(&mut fields, "max_tokens")?;
    ask.read_max_tokens(&mut fields, "max_completion_tokens")?;
    ask.logprobs = read_logprobs(&mut fields)?;
    let is_stream = fields.opt("stream")?.unwrap_or(false);
    let streaming = read_streaming(&mut fields, is_stream)?;
    refuse(&mut fields)?;
    fields.finish()?;
    Ok((ask, streaming))
}

fn read_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.opt("logprobs")?.unwrap_or(false);
    let top = fields.opt::<usize>("top_logprobs")?;
    match (wanted, top) {
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "needs logprobs: true")),
        (false, None) => Ok(None),
        (true, Some(top)) if top > MAX_LOGPROBS => {
            Err(ApiError::invalid("top_logprobs", format!("must be at most {MAX_LOGPROBS}")))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

fn read_streaming(fields: &mut Fields, is_stream: bool) -> Result<Option<Streaming>, ApiError> {
    let mut include_usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        if !is_stream {
            return Err(ApiError::invalid("stream_options", "needs stream: true"));
        }
        include_usage = options.opt("include_usage")?.unwrap_or(false);
        options.refuse("include_obfuscation", &[json!(false)], "answers are not padded")?;
        options.finish()?;
    }
    Ok(is_stream.then_some(Streaming { include_usage }))
}

/// Parameters with a meaning that this server has no way to give them.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    fields.accept(&openai::FOR_OTHERS);
    fields.refuse("store", &[json!(false)], "answers are not kept")?;
    fields.refuse("service_tier", &[json!("auto"), json!("default")], "there is one service")?;
    fields.refuse("modalities", &[json!(["text"])], "the model writes text")?;
    fields.refuse("audio", &[], "the model writes text")?;
    fields.refuse("logit_bias", &[json!({})], "use response_format to say what may come")?;
    fields.refuse("prediction", &[], "answers are not predicted")?;
    fields.refuse("verbosity", &[json!("medium")], "say it in the system message")?;
    fields.refuse("web_search_options", &[], "the server searches nothing")?;
    fields.refuse("functions", &[json!([])], "use tools")?;
    fields.refuse("function_call", &[], "use tool_choice")
}

/// What all parts of an answer begin with.
struct Head {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
}

impl Head {
    fn new(app: &App) -> Self {
        let id = format!("chatcmpl-{}", app.next_id());
        let model = app.model_name().to_owned();
        Self { id, created: now_s(), model, system_fingerprint: app.system_fingerprint() }
    }

    fn object(&self, kind: &str) -> Value {
        let Self { id, created, model, system_fingerprint } = self;
        let mut object = json!({ "id": id, "object": kind, "created": created, "model": model });
        if let Some(fingerprint) = system_fingerprint {
            object["system_fingerprint"] = fingerprint.as_str().into();
        }
        object
    }
}

fn choice(index: usize, whole: &Whole, has_logprobs: bool, app: &App) -> Value {
    let mut message = Map::new();
    message.insert("role".to_owned(), "assistant".into());
    let content = match whole.content.is_empty() && !whole.calls.is_empty() {
        true => Value::Null,
        false => whole.content.clone().into(),
    };
    message.insert("content".to_owned(), content);
    message.insert("refusal".to_owned(), Value::Null);
    if !whole.reasoning.is_empty() {
        message.insert("reasoning_content".to_owned(), whole.reasoning.clone().into());
    }
    if !whole.calls.is_empty() {
        let calls: Vec<Value> = whole.calls.iter().map(openai::call).collect();
        message.insert("tool_calls".to_owned(), calls.into());
    }
    let logprobs = has_logprobs
        .then(|| json!({ "content": openai::logprobs(&whole.tokens, app), "refusal": null }));
    json!({
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": openai::finish_reason(&whole.finish()),
    })
}

/// An answer in pieces.
struct Chunks {
    head: Head,
    app: Arc<App>,
    include_usage: bool,
    has_logprobs: bool,
    counts: Vec<Counts>,
}

impl Chunks {
    fn chunk(&self, choices: Value, frames: &mut Frames) {
        let mut chunk = self.head.object("chat.completion.chunk");
        chunk["choices"] = choices;
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        frames.data(&chunk);
    }

    fn choice(&self, index: usize, delta: Value, finish: Option<&str>, frames: &mut Frames) {
        let choice =
            json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish });
        self.chunk(json!([choice]), frames);
    }
}

impl Wire for Chunks {
    const FRAMING: Framing = Framing::Events;

    fn begin(&mut self, frames: &mut Frames) {
        for index in 0..self.counts.len() {
            self.choice(index, json!({ "role": "assistant", "content": "" }), None, frames);
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, frames: &mut Frames) {
        match delta {
            Delta::Progress { .. } | Delta::CallEnd { .. } | Delta::CallVoid { .. } => {}
            Delta::Reasoning(text) => {
                self.choice(index, json!({ "reasoning_content": text }), None, frames);
            }
            Delta::Content(text, tokens) => {
                let logprobs = self.has_logprobs.then(
                    || json!({ "content": openai::logprobs(&tokens, &self.app), "refusal": null }),
                );
                let choice = json!({
                    "index": index,
                    "delta": { "content": text },
                    "logprobs": logprobs,
                    "finish_reason": null,
                });
                self.chunk(json!([choice]), frames);
            }
            Delta::CallBegin { index: call, id, name } => {
                let function = json!({ "name": name, "arguments": "" });
                let call =
                    json!({ "index": call, "id": id, "type": "function", "function": function });
                self.choice(index, json!({ "tool_calls": [call] }), None, frames);
            }
            Delta::CallArguments { index: call, json } => {
                let call = json!({ "index": call, "function": { "arguments": json } });
                self.choice(index, json!({ "tool_calls": [call] }), None, frames);
            }
            Delta::End(end) => {
                self.counts[index] = end.counts;
                let finish = openai::finish_reason(&end.finish);
                self.choice(index, json!({}), Some(finish), frames);
            }
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.include_usage {
            let mut chunk = self.head.object("chat.completion.chunk");
            chunk["choices"] = json!([]);
            chunk["usage"] = openai::usage(self.counts.iter().copied());
            frames.data(&chunk);
        }
        frames.text("[DONE]");
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.data(&Family::OpenAi.error(error));
    }
}
