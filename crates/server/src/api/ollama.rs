//! The paths under `/api/`, as Ollama has them.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chat::{ChatRequest, Message, ResponseFormat, ToolChoice};
use serde_json::{Value, json};

use super::timestamp::timestamp;
use super::{Family, openai, tools};
use crate::app::App;
use crate::ask::{Ask, Input};
use crate::engine_thread::Reservation;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::reply::{Call, Delta, End, Finish};
use crate::router::{Asked, Queued, json_response};
use crate::stream::{self, Frames, Framing, Wire};

/// Settings of the machine, which are given when the server starts and change no answer.
const MACHINE: [&str; 8] =
    ["num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "use_mmap", "use_mlock"];

/// `POST /api/chat`.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Queued { mut fields, reservation }: Queued,
) -> Result<Response, ApiError> {
    check_model(&mut fields, &app)?;
    let list = fields.list("messages")?.unwrap_or_default();
    let messages = list.into_iter().map(|(at, value)| read_message(Fields::of(value, &at)?));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let request = ChatRequest {
        messages,
        tools: tools::read_tools(&mut fields)?,
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: true,
        format: read_format(&mut fields)?,
        enable_thinking: read_think(&mut fields)?,
        ..ChatRequest::default()
    };
    let is_empty = request.messages.is_empty();
    let ask = Ask::new(&app, Input::Chat(Box::new(request)));
    answer(app, reservation, ask, fields, is_empty, Kind::Chat).await
}

/// `POST /api/generate`.
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    Queued { mut fields, reservation }: Queued,
) -> Result<Response, ApiError> {
    check_model(&mut fields, &app)?;
    let prompt = fields.opt::<String>("prompt")?.unwrap_or_default();
    let system = fields.opt::<String>("system")?.unwrap_or_default();
    let is_raw = fields.opt("raw")?.unwrap_or(false);
    fields.refuse("suffix", &[json!("")], "texts are continued at their end")?;
    fields.refuse("images", &[json!([])], "the model reads text")?;
    fields.refuse("template", &[json!("")], "the model has its own; use raw without it")?;
    fields.refuse("context", &[json!([])], "use /api/chat to go on with a conversation")?;
    let format = read_format(&mut fields)?;
    let enable_thinking = read_think(&mut fields)?;
    let is_empty = prompt.is_empty();
    let input = if is_raw {
        if !system.is_empty() || enable_thinking.is_some() || format != ResponseFormat::Text {
            let why = "with system, think or format, which a text without a template has not";
            return Err(ApiError::unsupported("raw", why));
        }
        Input::Text(prompt)
    } else {
        let system = (!system.is_empty()).then(|| Message::system(&system));
        Input::Chat(Box::new(ChatRequest {
            messages: system.into_iter().chain([Message::user(&prompt)]).collect(),
            tools: Vec::new(),
            tool_choice: ToolChoice::None,
            parallel_tool_calls: false,
            format,
            enable_thinking,
            ..ChatRequest::default()
        }))
    };
    let ask = Ask::new(&app, input);
    answer(app, reservation, ask, fields, is_empty, Kind::Generate).await
}

/// What both have in common. A request for nothing asks to have the model loaded, which it is.
async fn answer(
    app: Arc<App>,
    reservation: Reservation,
    mut ask: Ask,
    mut fields: Fields,
    is_empty: bool,
    kind: Kind,
) -> Result<Response, ApiError> {
    if let Some(mut options) = fields.object("options")? {
        read_options(&mut ask, &mut options, &app)?;
        options.finish()?;
    }
    let is_stream = fields.opt("stream")?.unwrap_or(true);
    // The model stays as long as the server does.
    fields.accept(&["keep_alive"]);
    fields.finish()?;
    let wire = Lines {
        kind,
        model: app.model_name().to_owned(),
        begun: Instant::now(),
        call: None,
        end: None,
    };
    if is_empty {
        let mut value = wire.object(&[]);
        value["done"] = true.into();
        value["done_reason"] = "load".into();
        return Ok(json_response(StatusCode::OK, &value));
    }
    let replies = ask.submit(&app, reservation).await?;
    if is_stream {
        return Ok(stream::respond(replies, wire));
    }
    let whole = replies.collect().await?.pop().unwrap_or_default();
    let mut parts = vec![("content", Value::from(whole.content))];
    if !whole.reasoning.is_empty() {
        parts.push(("thinking", whole.reasoning.into()));
    }
    // A call that the limit has cut has no arguments; in pieces it is not told either.
    let is_whole = |call: &&Call| chat::read_json(&call.arguments).is_ok();
    let calls: Vec<Value> = whole.calls.iter().filter(is_whole).map(call).collect();
    if !calls.is_empty() {
        parts.push(("tool_calls", calls.into()));
    }
    let mut value = wire.object(&parts);
    if let Some(end) = &whole.end {
        wire.finish(end, &mut value);
    }
    Ok(json_response(StatusCode::OK, &value))
}

/// `GET /api/tags`.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let models = app.options.model_names.iter().map(|name| {
        json!({
            "name": name,
            "model": name,
            "modified_at": timestamp(app.started),
            "size": app.model.memory[2],
            "digest": "",
            "details": details(&app),
        })
    });
    json_response(StatusCode::OK, &json!({ "models": models.collect::<Vec<_>>() }))
}

/// `POST /api/show`.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Asked(mut fields): Asked,
) -> Result<Response, ApiError> {
    check_model(&mut fields, &app)?;
    fields.accept(&["verbose"]);
    fields.finish()?;
    let mut capabilities = vec!["completion"];
    if app.chat().is_ok() {
        capabilities.extend(["tools", "thinking"]);
    }
    let family = app.model.family.to_lowercase();
    let sampling = &app.model.sampling;
    let value = json!({
        "parameters": format!(
            "temperature {}\ntop_k {}\ntop_p {}",
            sampling.temperature, sampling.top_k, sampling.top_p
        ),
        "template": "",
        "details": details(&app),
        "model_info": {
            "general.architecture": family,
            (format!("{family}.context_length")): app.model.context,
            (format!("{family}.expert_used_count")): app.model.experts_per_token,
            (format!("{family}.block_count")): app.model.experts_per_layer.len(),
        },
        "capabilities": capabilities,
        "modified_at": timestamp(app.started),
    });
    Ok(json_response(StatusCode::OK, &value))
}

/// `GET /api/version`.
pub(crate) async fn version() -> Response {
    json_response(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") }))
}

fn details(app: &App) -> Value {
    json!({
        "parent_model": "",
        "format": "",
        "family": app.model.family,
        "families": [app.model.family],
        "parameter_size": "",
        "quantization_level": "",
    })
}

/// Clients add a tag to a name that has none.
fn check_model(fields: &mut Fields, app: &App) -> Result<(), ApiError> {
    let name: String = fields.need("model")?;
    app.check_model(&name).or_else(|error| match name.strip_suffix(":latest") {
        Some(name) => app.check_model(name),
        None => Err(error),
    })
}

fn read_message(mut fields: Fields) -> Result<Message, ApiError> {
    let role: String = fields.need("role")?;
    if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
        let why = "must be system, user, assistant or tool";
        return Err(ApiError::invalid(fields.path("role"), why));
    }
    let mut message = Message::new(&role, &fields.opt::<String>("content")?.unwrap_or_default());
    if let Some(thinking) = fields.opt::<String>("thinking")? {
        message.other.insert("reasoning_content".to_owned(), thinking.into());
    }
    let calls = fields.list("tool_calls")?.unwrap_or_default().into_iter().map(|(at, value)| {
        let mut call = Fields::of(value, &at)?;
        call.accept(&["id", "type"]);
        let mut function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
        call.finish()?;
        let name: String = function.need("name")?;
        let path = function.path("arguments");
        let arguments = openai::read_arguments(function.take("arguments"), path)?;
        function.accept(&["index", "description"]);
        function.finish()?;
        Ok(json!({ "type": "function", "function": { "name": name, "arguments": arguments } }))
    });
    let calls = calls.collect::<Result<Vec<Value>, ApiError>>()?;
    if !calls.is_empty() {
        message.other.insert("tool_calls".to_owned(), calls.into());
    }
    fields.refuse("images", &[json!([])], "the model reads text")?;
    fields.accept(&["tool_name", "tool_call_id", "name"]);
    fields.finish()?;
    Ok(message)
}

fn read_format(fields: &mut Fields) -> Result<ResponseFormat, ApiError> {
    match fields.take("format") {
        None => Ok(ResponseFormat::Text),
        Some(Value::String(word)) if word.is_empty() => Ok(ResponseFormat::Text),
        Some(Value::String(word)) if word == "json" => Ok(ResponseFormat::JsonObject),
        Some(schema @ Value::Object(_)) => Ok(ResponseFormat::JsonSchema(schema)),
        Some(_) => Err(ApiError::invalid("format", "must be json or a JSON schema")),
    }
}

fn read_think(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    match fields.take("think") {
        None => Ok(None),
        Some(Value::Bool(think)) => Ok(Some(think)),
        Some(Value::String(word)) if word == "high" => Ok(Some(true)),
        Some(_) => {
            Err(ApiError::unsupported("think", "thinking is true or false, nothing between"))
        }
    }
}

fn read_options(ask: &mut Ask, options: &mut Fields, app: &App) -> Result<(), ApiError> {
    ask.read_sampling(options, "repeat_penalty")?;
    ask.read_stop(options, "stop")?;
    match options.opt::<i64>("num_predict")? {
        None | Some(-1) => {}
        Some(limit @ 1..) => {
            ask.max_tokens = Some(usize::try_from(limit).unwrap_or(usize::MAX));
            ask.max_tokens_name = "options.num_predict";
        }
        Some(_) => {
            return Err(ApiError::invalid("options.num_predict", "must be -1 or at least 1"));
        }
    }
    if let Some(context) = options.opt::<usize>("num_ctx")?
        && context > app.model.context
    {
        let why = format!("the server's context is {} tokens", app.model.context);
        return Err(ApiError::unsupported("options.num_ctx", why));
    }
    // Within that bound it is the size of the memory for a conversation, which the server has already.
    options.accept(&MACHINE);
    options.refuse("mirostat", &[json!(0)], "use temperature, top_k, top_p, min_p")?;
    options.refuse("typical_p", &[json!(1), json!(1.0)], "use top_p or min_p")?;
    options.refuse("tfs_z", &[json!(1), json!(1.0)], "use top_p or min_p")?;
    options.refuse("repeat_last_n", &[json!(-1)], "penalties see the whole context")
}

/// Whether pieces are messages or texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Chat,
    Generate,
}

/// An answer in pieces, a line each. Calls are told when they are whole.
struct Lines {
    kind: Kind,
    model: String,
    begun: Instant,
    call: Option<Call>,
    end: Option<End>,
}

impl Lines {
    fn object(&self, parts: &[(&str, Value)]) -> Value {
        let mut value = json!({ "model": self.model, "created_at": timestamp(SystemTime::now()) });
        match self.kind {
            Kind::Chat => {
                value["message"] = json!({ "role": "assistant", "content": "" });
                for (name, part) in parts {
                    value["message"][*name] = part.clone();
                }
            }
            Kind::Generate => {
                value["response"] = "".into();
                for (name, part) in parts {
                    value[if *name == "content" { "response" } else { *name }] = part.clone();
                }
            }
        }
        value["done"] = false.into();
        value
    }

    fn finish(&self, end: &End, value: &mut Value) {
        let counts = &end.counts;
        value["done"] = true.into();
        let reason = if end.finish == Finish::Length { "length" } else { "stop" };
        value["done_reason"] = reason.into();
        for (name, number) in [
            ("total_duration", self.begun.elapsed().as_nanos() as u64),
            ("load_duration", 0),
            ("prompt_eval_count", counts.prompt as u64),
            ("prompt_eval_duration", counts.reading.as_nanos() as u64),
            ("eval_count", counts.generated as u64),
            ("eval_duration", counts.writing.as_nanos() as u64),
        ] {
            value[name] = number.into();
        }
    }
}

impl Wire for Lines {
    const FRAMING: Framing = Framing::Lines;

    fn begin(&mut self, _frames: &mut Frames) {}

    fn delta(&mut self, _choice: usize, delta: Delta, frames: &mut Frames) {
        match delta {
            Delta::Progress { .. } => {}
            Delta::Reasoning(text) => {
                frames.line(&self.object(&[("thinking", text.into())]));
            }
            Delta::Content(text, _) => frames.line(&self.object(&[("content", text.into())])),
            Delta::CallBegin { id, name, .. } => {
                self.call = Some(Call { id, name, arguments: String::new() });
            }
            Delta::CallArguments { json, .. } => {
                if let Some(call) = &mut self.call {
                    call.arguments += &json;
                }
            }
            Delta::CallEnd { .. } => {
                if let Some(whole) = self.call.take() {
                    frames.line(&self.object(&[("tool_calls", json!([call(&whole)]))]));
                }
            }
            Delta::CallVoid { .. } => self.call = None,
            Delta::End(end) => self.end = Some(end),
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if let Some(end) = self.end.take() {
            let mut value = self.object(&[]);
            self.finish(&end, &mut value);
            frames.line(&value);
        }
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.line(&Family::Ollama.error(error));
    }
}

fn call(call: &Call) -> Value {
    let arguments = chat::read_json(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({ "function": { "name": call.name, "arguments": arguments } })
}
