//! A response in pieces: items that are added, grow, and are done, one after the other.

use serde_json::{Value, json};

use super::{Head, reasoning_part, text_part};
use crate::error::ApiError;
use crate::reply::{Call, Delta, End, Finish};
use crate::stream::{Frames, Framing, Wire};

/// An item under way.
enum Item {
    Reasoning(String),
    Message(String),
    Call(Call),
}

/// A response under way.
pub(super) struct Events {
    head: Head,
    sequence: u64,
    item: Option<Item>,
    done: Vec<Value>,
    end: Option<End>,
}

impl Events {
    pub(super) fn new(head: Head) -> Self {
        Self { head, sequence: 0, item: None, done: Vec::new(), end: None }
    }

    fn event(&mut self, kind: &str, more: Value, frames: &mut Frames) {
        let mut data = json!({ "type": kind, "sequence_number": self.sequence });
        self.sequence += 1;
        for (name, value) in more.as_object().into_iter().flatten() {
            data[name] = value.clone();
        }
        frames.event(kind, &data);
    }

    /// An event about the item under way.
    fn about(&mut self, kind: &str, prefix: &str, mut more: Value, frames: &mut Frames) {
        let index = self.done.len();
        more["item_id"] = self.head.item_id(prefix, index).into();
        more["output_index"] = index.into();
        if prefix != "fc" {
            more["content_index"] = 0.into();
        }
        self.event(kind, more, frames);
    }

    fn added(&mut self, item: Value, frames: &mut Frames) {
        let index = self.done.len();
        let more = json!({ "output_index": index, "item": item });
        self.event("response.output_item.added", more, frames);
    }

    /// Ends the item under way.
    fn finish_item(&mut self, status: &str, frames: &mut Frames) {
        let index = self.done.len();
        let item = match self.item.take() {
            None => return,
            Some(Item::Reasoning(text)) => {
                let more = json!({ "text": text });
                self.about("response.reasoning_text.done", "rs", more, frames);
                let more = json!({ "part": reasoning_part(&text) });
                self.about("response.content_part.done", "rs", more, frames);
                self.head.reasoning(index, Some(&text), status)
            }
            Some(Item::Message(text)) => {
                let more = json!({ "text": text, "logprobs": [] });
                self.about("response.output_text.done", "msg", more, frames);
                let more = json!({ "part": text_part(&text) });
                self.about("response.content_part.done", "msg", more, frames);
                self.head.message(index, Some(&text), status)
            }
            Some(Item::Call(call)) => {
                let more = json!({ "name": call.name, "arguments": call.arguments });
                self.about("response.function_call_arguments.done", "fc", more, frames);
                self.head.call(index, &call, status)
            }
        };
        let more = json!({ "output_index": index, "item": item });
        self.event("response.output_item.done", more, frames);
        self.done.push(item);
    }
}

impl Wire for Events {
    const FRAMING: Framing = Framing::Events;

    fn begin(&mut self, frames: &mut Frames) {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.head.response(Vec::new(), None);
            self.event(kind, json!({ "response": response }), frames);
        }
    }

    fn delta(&mut self, _choice: usize, delta: Delta, frames: &mut Frames) {
        match delta {
            Delta::Progress { .. } => {}
            Delta::Reasoning(text) => {
                if !matches!(self.item, Some(Item::Reasoning(_))) {
                    self.finish_item("completed", frames);
                    let item = self.head.reasoning(self.done.len(), None, "in_progress");
                    self.added(item, frames);
                    let more = json!({ "part": reasoning_part("") });
                    self.about("response.content_part.added", "rs", more, frames);
                    self.item = Some(Item::Reasoning(String::new()));
                }
                if let Some(Item::Reasoning(all)) = &mut self.item {
                    all.push_str(&text);
                }
                let more = json!({ "delta": text });
                self.about("response.reasoning_text.delta", "rs", more, frames);
            }
            Delta::Content(text, _) => {
                if !matches!(self.item, Some(Item::Message(_))) {
                    self.finish_item("completed", frames);
                    let item = self.head.message(self.done.len(), None, "in_progress");
                    self.added(item, frames);
                    let more = json!({ "part": text_part("") });
                    self.about("response.content_part.added", "msg", more, frames);
                    self.item = Some(Item::Message(String::new()));
                }
                if let Some(Item::Message(all)) = &mut self.item {
                    all.push_str(&text);
                }
                let more = json!({ "delta": text, "logprobs": [] });
                self.about("response.output_text.delta", "msg", more, frames);
            }
            Delta::CallBegin { id, name, .. } => {
                self.finish_item("completed", frames);
                let call = Call { id, name, arguments: String::new() };
                let item = self.head.call(self.done.len(), &call, "in_progress");
                self.added(item, frames);
                self.item = Some(Item::Call(call));
            }
            Delta::CallArguments { json, .. } => {
                if let Some(Item::Call(call)) = &mut self.item {
                    call.arguments += &json;
                }
                let more = json!({ "delta": json });
                self.about("response.function_call_arguments.delta", "fc", more, frames);
            }
            Delta::CallEnd { .. } => self.finish_item("completed", frames),
            Delta::CallVoid { .. } => self.finish_item("incomplete", frames),
            Delta::End(end) => self.end = Some(end),
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        let Some(end) = self.end.take() else { return };
        let is_cut = end.finish == Finish::Length;
        self.finish_item(if is_cut { "incomplete" } else { "completed" }, frames);
        let response = self.head.response(std::mem::take(&mut self.done), Some(&end));
        let kind = if is_cut { "response.incomplete" } else { "response.completed" };
        self.event(kind, json!({ "response": response }), frames);
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        let mut response = self.head.response(std::mem::take(&mut self.done), None);
        response["status"] = "failed".into();
        response["error"] = json!({ "code": error.code.name(), "message": error.message });
        self.event("response.failed", json!({ "response": response }), frames);
    }
}
