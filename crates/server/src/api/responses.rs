//! `POST /v1/responses`.

mod events;
mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::{App, now_s};
use crate::error::ApiError;
use crate::reply::{Call, Counts, End, Finish, Whole};
use crate::router::{Queued, json_response};
use crate::stream;

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Queued { fields, reservation }: Queued,
) -> Result<Response, ApiError> {
    let request::Read { ask, told, is_stream } = request::read(fields, &app)?;
    let head = Head { id: app.next_id(), created: now_s(), told };
    let replies = ask.submit(&app, reservation).await?;
    if is_stream {
        return Ok(stream::respond(replies, events::Events::new(head)));
    }
    let whole = replies.collect().await?.pop().unwrap_or_default();
    let items = head.items(&whole);
    Ok(json_response(StatusCode::OK, &head.response(items, whole.end.as_ref())))
}

/// What all states of a response have in common.
struct Head {
    id: String,
    created: u64,
    /// What was asked for, as the response repeats it.
    told: Value,
}

impl Head {
    /// A response with these items, under way or ended.
    fn response(&self, output: Vec<Value>, end: Option<&End>) -> Value {
        let (status, details) = match end.map(|end| &end.finish) {
            None => ("in_progress", Value::Null),
            Some(Finish::Length) => ("incomplete", json!({ "reason": "max_output_tokens" })),
            Some(_) => ("completed", Value::Null),
        };
        let mut response = json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": details,
            "output": output,
            "usage": end.map(|end| usage(&end.counts)),
        });
        for (name, value) in self.told.as_object().into_iter().flatten() {
            response[name] = value.clone();
        }
        response
    }

    /// Everything that an answer holds, in order.
    fn items(&self, whole: &Whole) -> Vec<Value> {
        let mut items = Vec::new();
        let is_cut = whole.finish() == Finish::Length;
        let status = if is_cut { "incomplete" } else { "completed" };
        if !whole.reasoning.is_empty() {
            items.push(self.reasoning(items.len(), Some(&whole.reasoning), status));
        }
        if !whole.content.is_empty() {
            items.push(self.message(items.len(), Some(&whole.content), status));
        }
        for one in &whole.calls {
            // The limit may have come after a whole call.
            let is_whole = serde_json::from_str::<serde::de::IgnoredAny>(&one.arguments).is_ok();
            let status = if is_whole { "completed" } else { "incomplete" };
            items.push(self.call(items.len(), one, status));
        }
        items
    }

    fn item_id(&self, kind: &str, index: usize) -> String {
        format!("{kind}_{}{index}", self.id)
    }

    fn reasoning(&self, index: usize, text: Option<&str>, status: &str) -> Value {
        let part = text.map(reasoning_part);
        json!({
            "id": self.item_id("rs", index),
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": part.into_iter().collect::<Vec<_>>(),
        })
    }

    fn message(&self, index: usize, text: Option<&str>, status: &str) -> Value {
        let part = text.map(text_part);
        json!({
            "id": self.item_id("msg", index),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": part.into_iter().collect::<Vec<_>>(),
        })
    }

    fn call(&self, index: usize, call: &Call, status: &str) -> Value {
        let Call { id, name, arguments } = call;
        json!({
            "id": self.item_id("fc", index),
            "type": "function_call",
            "status": status,
            "call_id": id,
            "name": name,
            "arguments": arguments,
        })
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn reasoning_part(text: &str) -> Value {
    json!({ "type": "reasoning_text", "text": text })
}

fn usage(counts: &Counts) -> Value {
    json!({
        "input_tokens": counts.prompt,
        "input_tokens_details": { "cached_tokens": counts.cached },
        "output_tokens": counts.generated,
        "output_tokens_details": { "reasoning_tokens": counts.reasoning },
        "total_tokens": counts.prompt + counts.generated,
    })
}
