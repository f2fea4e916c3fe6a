//! A model behind a server that speaks the OpenAI API.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chat::ReplyEvent;
use serde_json::{Map, Value, json};

use crate::config::SamplingConfig;
use crate::partner::http::{self, Address};
use crate::partner::sse::Events;
use crate::partner::{Cost, End, Event, Outcome, Partner, Reading, Turn};
use crate::text::one_line;

/// Longest answer that is not a stream.
const MAX_JSON: u64 = 16 << 20;

/// A server.
pub struct Remote {
    url: String,
    address: Address,
    key: Option<String>,
    model: String,
    sampling: SamplingConfig,
}

impl Remote {
    /// A server by its URL; without a model's name, the first that it lists answers.
    pub fn new(
        url: &str,
        key: Option<String>,
        model: Option<&str>,
        sampling: SamplingConfig,
    ) -> anyhow::Result<Self> {
        let address = Address::parse(url)?;
        let models = models(&address, key.as_deref())?;
        let model = match model {
            Some(model) if models.iter().any(|known| known == model) => model.to_owned(),
            Some(model) => {
                bail!("{url} has no model {model:?}\nhint: it has {}", models.join(", "))
            }
            None => models.into_iter().next().with_context(|| format!("{url} lists no model"))?,
        };
        Ok(Self { url: url.to_owned(), address, key, model, sampling })
    }

    fn request(&self, turn: &Turn) -> anyhow::Result<String> {
        let mut body = Map::new();
        body.insert("model".into(), self.model.as_str().into());
        let messages = turn.messages.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        body.insert("messages".into(), Value::Array(messages));
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({ "include_usage": true }));
        if !turn.tools.is_empty() {
            body.insert("tools".into(), Value::Array(turn.tools.clone()));
        }
        if let Some(thinking) = turn.thinking {
            body.insert("chat_template_kwargs".into(), json!({ "enable_thinking": thinking }));
        }
        let SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
            max_tokens,
        } = &self.sampling;
        for (name, value) in [
            ("temperature", json!(temperature)),
            ("top_k", json!(top_k)),
            ("top_p", json!(top_p)),
            ("min_p", json!(min_p)),
            ("repetition_penalty", json!(repetition_penalty)),
            ("presence_penalty", json!(presence_penalty)),
            ("frequency_penalty", json!(frequency_penalty)),
            (
                "seed",
                json!(
                    seed.or((turn.attempt > 0).then_some(0))
                        .map(|seed| seed.wrapping_add(turn.attempt))
                ),
            ),
            ("max_tokens", json!(max_tokens)),
        ] {
            if !value.is_null() {
                body.insert(name.into(), value);
            }
        }
        Ok(serde_json::to_string(&body)?)
    }
}

impl Partner for Remote {
    fn name(&self) -> &str {
        &self.model
    }

    fn turn(
        &mut self,
        turn: &Turn,
        cancel: &Arc<AtomicBool>,
        on: &mut dyn FnMut(Event),
    ) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        let body = self.request(turn)?;
        on(Event::Reading(Reading::default()));
        let (path, key) = ("/v1/chat/completions", self.key.as_deref());
        let response = http::send(&self.address, "POST", path, key, Some(&body), cancel);
        let mut outcome = Outcome::default();
        let response = match response {
            Err(_) if cancel.load(Ordering::Relaxed) => {
                outcome.end = End::Stopped;
                return Ok(outcome);
            }
            response => response?,
        };
        if response.status != 200 {
            bail!("{}", refusal(response.status, response.body));
        }
        let mut stream =
            Stream { begin, begun: None, last: None, call: None, outcome, done: false };
        let mut events = Events::new(response.body);
        while !stream.done {
            match events.next() {
                Ok(Some(data)) => stream.take(&data, on)?,
                Ok(None) => break,
                Err(error) if http::is_given_up(&error) => {
                    stream.outcome.end = End::Stopped;
                    stream.done = true;
                }
                Err(error) => return Err(error).context("the answer of the server"),
            }
        }
        if !stream.done {
            bail!("the server broke off in the middle of its answer");
        }
        Ok(stream.finish(on))
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("model: {} at {}", self.model, self.url)]
    }
}

/// The names of a server's models.
fn models(address: &Address, key: Option<&str>) -> anyhow::Result<Vec<String>> {
    let response = http::send(address, "GET", "/v1/models", key, None, &Arc::default())?;
    if response.status != 200 {
        bail!("{}", refusal(response.status, response.body));
    }
    let mut text = String::new();
    response
        .body
        .take(MAX_JSON)
        .read_to_string(&mut text)
        .context("the server's list of models")?;
    let list: Value = serde_json::from_str(&text).context("the server's list of models")?;
    let names = list["data"].as_array().into_iter().flatten();
    Ok(names.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
}

/// What a server said instead of an answer.
fn refusal(status: u16, body: impl Read) -> String {
    let mut text = String::new();
    // A message that breaks off is better than none.
    drop(body.take(64 << 10).read_to_string(&mut text));
    let json: Option<Value> = serde_json::from_str(&text).ok();
    let message = json.as_ref().and_then(|json| json["error"]["message"].as_str());
    let message = one_line(message.unwrap_or(text.trim()));
    format!("the server refuses with status {status}: {message}")
}

/// An answer as it comes.
struct Stream {
    begin: Instant,
    /// When its first part came, and its last.
    begun: Option<Instant>,
    last: Option<Instant>,
    /// The call that has begun and not ended.
    call: Option<usize>,
    outcome: Outcome,
    done: bool,
}

impl Stream {
    fn take(&mut self, data: &str, on: &mut dyn FnMut(Event)) -> anyhow::Result<()> {
        if data.trim() == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).context("an event of the server")?;
        if let Some(message) = chunk["error"]["message"].as_str() {
            bail!("the server failed: {}", one_line(message));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage(usage);
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        let text = |name: &str| delta[name].as_str().filter(|text| !text.is_empty());
        if let Some(text) = text("reasoning_content") {
            self.event(ReplyEvent::Reasoning(text.to_owned()), on);
        }
        if let Some(text) = text("content") {
            self.event(ReplyEvent::Content(text.to_owned()), on);
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(call, on);
        }
        match choice["finish_reason"].as_str() {
            Some("length") => self.outcome.end = End::Limit,
            Some(_) => self.outcome.end = End::Whole,
            None => {}
        }
        Ok(())
    }

    fn call(&mut self, call: &Value, on: &mut dyn FnMut(Event)) {
        let index =
            call["index"].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(0);
        if self.call != Some(index) {
            // Calls come one after the other.
            self.end_call(on);
            let id = call["id"].as_str().unwrap_or("call").to_owned();
            let name = call["function"]["name"].as_str().unwrap_or_default().to_owned();
            self.call = Some(index);
            self.event(ReplyEvent::CallBegin { index, id, name }, on);
        }
        if let Some(json) = call["function"]["arguments"].as_str().filter(|json| !json.is_empty()) {
            self.event(ReplyEvent::CallArguments { index, json: json.to_owned() }, on);
        }
    }

    fn end_call(&mut self, on: &mut dyn FnMut(Event)) {
        if let Some(index) = self.call.take() {
            self.event(ReplyEvent::CallEnd { index }, on);
        }
    }

    fn event(&mut self, event: ReplyEvent, on: &mut dyn FnMut(Event)) {
        let now = Instant::now();
        self.begun.get_or_insert(now);
        self.last = Some(now);
        self.outcome.reply.add(&event);
        on(Event::Reply(event));
    }

    fn usage(&mut self, usage: &Value) {
        let number =
            |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let cost = &mut self.outcome.cost;
        cost.prompt_tokens = number(&usage["prompt_tokens"]);
        cost.reused_tokens = number(&usage["prompt_tokens_details"]["cached_tokens"]);
        cost.tokens = number(&usage["completion_tokens"]);
    }

    fn finish(mut self, on: &mut dyn FnMut(Event)) -> Outcome {
        if self.outcome.end != End::Stopped {
            self.end_call(on);
        }
        let begun = self.begun.unwrap_or(self.begin);
        self.outcome.cost = Cost {
            prompt_time: begun - self.begin,
            // An answer that comes in one piece has no speed.
            time: self.last.map_or(Duration::ZERO, |last| last - begun),
            ..self.outcome.cost
        };
        self.outcome
    }
}
