//! `POST /v1/completions`: a text is continued as it is.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Family, openai};
use crate::app::{App, now_s};
use crate::ask::{Ask, Input, MAX_LOGPROBS};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::reply::{Counts, Delta, TextToken, Whole};
use crate::router::{Queued, json_response};
use crate::stream::{self, Frames, Framing, Wire};

/// The API's own default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Continues a text.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Queued { fields, reservation }: Queued,
) -> Result<Response, ApiError> {
    let Read { ask, is_stream, include_usage } = read(fields, &app)?;
    let head = Head {
        id: format!("cmpl-{}", app.next_id()),
        created: now_s(),
        model: app.model_name().to_owned(),
        system_fingerprint: app.system_fingerprint(),
        echo: match (&ask.input, ask.echo) {
            (Input::Text(text), true) => text.clone(),
            (Input::Tokens(tokens), true) => app.tokenizer.decode(tokens, false),
            _ => String::new(),
        },
        has_logprobs: ask.logprobs.is_some(),
    };
    let replies = ask.submit(&app, reservation).await?;
    if is_stream {
        let counts = vec![Counts::default(); replies.len()];
        let offsets = vec![head.echo.chars().count(); replies.len()];
        return Ok(stream::respond(replies, Chunks { head, app, include_usage, counts, offsets }));
    }
    let wholes = replies.collect().await?;
    let choices = wholes.iter().enumerate().map(|(index, whole)| {
        let text = format!("{}{}", head.echo, whole.content);
        let offset = head.echo.chars().count();
        let finish = openai::finish_reason(&whole.finish());
        head.choice(index, &text, &whole.tokens, offset, Some(finish), &app)
    });
    let mut value = head.object(choices.collect());
    value["usage"] = openai::usage(wholes.iter().map(Whole::counts));
    Ok(json_response(StatusCode::OK, &value))
}

struct Read {
    ask: Ask,
    is_stream: bool,
    include_usage: bool,
}

fn read(mut fields: Fields, app: &App) -> Result<Read, ApiError> {
    app.check_model(&fields.need::<String>("model")?)?;
    let prompt = fields.take("prompt").ok_or_else(|| fields.missing("prompt"))?;
    let mut ask = Ask::new(app, read_prompt(prompt, app)?);
    ask.read_sampling(&mut fields, "repetition_penalty")?;
    ask.read_stop(&mut fields, "stop")?;
    ask.read_n(&mut fields)?;
    ask.read_max_tokens(&mut fields, "max_tokens")?;
    ask.max_tokens = ask.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    ask.echo = fields.opt("echo")?.unwrap_or(false);
    ask.logprobs = fields.opt("logprobs")?;
    if ask.logprobs.is_some_and(|top| top > MAX_LOGPROBS) {
        return Err(ApiError::invalid("logprobs", format!("must be at most {MAX_LOGPROBS}")));
    }
    if ask.echo && ask.logprobs.is_some() {
        return Err(ApiError::unsupported("echo", "with logprobs, the prompt has none"));
    }
    let is_stream = fields.opt("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        if !is_stream {
            return Err(ApiError::invalid("stream_options", "needs stream: true"));
        }
        include_usage = options.opt("include_usage")?.unwrap_or(false);
        options.finish()?;
    }
    fields.accept(&openai::FOR_OTHERS);
    fields.refuse("suffix", &[json!("")], "texts are continued at their end")?;
    fields.refuse("best_of", &[json!(1)], "answers are not ranked; use n")?;
    fields.refuse("logit_bias", &[json!({})], "the model's own probabilities stand")?;
    fields.finish()?;
    Ok(Read { ask, is_stream, include_usage })
}

/// A text or tokens; a list of one text is that text.
fn read_prompt(value: Value, app: &App) -> Result<Input, ApiError> {
    match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(mut list) => match list.first() {
            Some(Value::Number(_)) => read_tokens(Value::Array(list), "prompt", app),
            Some(Value::String(_) | Value::Array(_)) if list.len() > 1 => {
                Err(ApiError::unsupported("prompt", "one prompt a request"))
            }
            Some(Value::String(_) | Value::Array(_)) => read_prompt(list.remove(0), app),
            _ => Err(ApiError::invalid("prompt", "must be a text or a list of tokens")),
        },
        _ => Err(ApiError::invalid("prompt", "must be a text or a list of tokens")),
    }
}

fn read_tokens(value: Value, path: &str, app: &App) -> Result<Input, ApiError> {
    let tokens: Vec<u32> = serde_json::from_value(value)
        .map_err(|_| ApiError::invalid(path, "must be a list of token numbers"))?;
    super::tokens::check(&tokens, path, app)?;
    Ok(Input::Tokens(tokens))
}

struct Head {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    echo: String,
    has_logprobs: bool,
}

impl Head {
    fn object(&self, choices: Value) -> Value {
        let Self { id, created, model, system_fingerprint, .. } = self;
        let mut object = json!({
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": choices,
        });
        if let Some(fingerprint) = system_fingerprint {
            object["system_fingerprint"] = fingerprint.as_str().into();
        }
        object
    }

    fn choice(
        &self,
        index: usize,
        text: &str,
        tokens: &[TextToken],
        offset: usize,
        finish: Option<&str>,
        app: &App,
    ) -> Value {
        let logprobs = self.has_logprobs.then(|| logprobs(tokens, offset, app));
        json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish })
    }
}

/// Tokens with their probabilities, in lists side by side.
fn logprobs(tokens: &[TextToken], mut offset: usize, app: &App) -> Value {
    let text = |token: u32| app.tokenizer.decode(&[token], false);
    let mut offsets = Vec::new();
    for token in tokens {
        offsets.push(offset);
        offset += text(token.token).chars().count();
    }
    let tops = tokens.iter().map(|token| {
        let top = token.top.iter().map(|top| (text(top.token), Value::from(top.logprob)));
        Value::Object(top.collect::<Map<_, _>>())
    });
    json!({
        "tokens": tokens.iter().map(|token| text(token.token)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tops.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// An answer in pieces.
struct Chunks {
    head: Head,
    app: Arc<App>,
    include_usage: bool,
    counts: Vec<Counts>,
    /// Characters of each answer so far.
    offsets: Vec<usize>,
}

impl Chunks {
    fn chunk(
        &mut self,
        index: usize,
        (text, tokens): (&str, &[TextToken]),
        finish: Option<&str>,
        frames: &mut Frames,
    ) {
        let offset = self.offsets[index];
        self.offsets[index] += text.chars().count();
        let choice = self.head.choice(index, text, tokens, offset, finish, &self.app);
        frames.data(&self.head.object(json!([choice])));
    }
}

impl Wire for Chunks {
    const FRAMING: Framing = Framing::Events;

    fn begin(&mut self, frames: &mut Frames) {
        let echo = self.head.echo.clone();
        if echo.is_empty() {
            return;
        }
        for index in 0..self.counts.len() {
            let choice = self.head.choice(index, &echo, &[], 0, None, &self.app);
            frames.data(&self.head.object(json!([choice])));
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, frames: &mut Frames) {
        match delta {
            Delta::Content(text, tokens) => self.chunk(index, (&text, &tokens), None, frames),
            Delta::End(end) => {
                self.counts[index] = end.counts;
                let finish = openai::finish_reason(&end.finish);
                self.chunk(index, ("", &[]), Some(finish), frames);
            }
            // A text that is continued as it is has neither thoughts nor calls.
            _ => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.include_usage {
            let mut chunk = self.head.object(json!([]));
            chunk["usage"] = openai::usage(self.counts.iter().copied());
            frames.data(&chunk);
        }
        frames.text("[DONE]");
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.data(&Family::OpenAi.error(error));
    }
}
