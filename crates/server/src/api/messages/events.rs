//! A message in pieces.

use serde_json::{Value, json};

use super::{Head, SIGNATURE, stop_reason, usage};
use crate::api::Family;
use crate::error::ApiError;
use crate::reply::{Counts, Delta, End};
use crate::stream::{Frames, Framing, Wire};

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    Call(usize),
}

/// An answer in pieces: blocks that begin, grow and stop, one after the other.
pub(super) struct Events {
    head: Head,
    n_prompt: usize,
    block: Option<Block>,
    n_blocks: usize,
    end: Option<End>,
}

impl Events {
    pub(super) fn new(head: Head, n_prompt: usize) -> Self {
        Self { head, n_prompt, block: None, n_blocks: 0, end: None }
    }

    fn event(frames: &mut Frames, data: Value) {
        let name = data["type"].as_str().unwrap_or_default().to_owned();
        frames.event(&name, &data);
    }

    fn grow(&self, delta: Value, frames: &mut Frames) {
        let index = self.n_blocks.saturating_sub(1);
        let data = json!({ "type": "content_block_delta", "index": index, "delta": delta });
        Self::event(frames, data);
    }

    /// Begins a block unless it is the one that was begun last.
    fn begin_block(&mut self, block: Block, content: Value, frames: &mut Frames) {
        if self.block == Some(block) {
            return;
        }
        self.stop_block(frames);
        let index = self.n_blocks;
        self.block = Some(block);
        self.n_blocks += 1;
        let data =
            json!({ "type": "content_block_start", "index": index, "content_block": content });
        Self::event(frames, data);
    }

    fn stop_block(&mut self, frames: &mut Frames) {
        let Some(block) = self.block.take() else { return };
        if block == Block::Thinking {
            self.grow(json!({ "type": "signature_delta", "signature": SIGNATURE }), frames);
        }
        let index = self.n_blocks.saturating_sub(1);
        Self::event(frames, json!({ "type": "content_block_stop", "index": index }));
    }
}

impl Wire for Events {
    const FRAMING: Framing = Framing::Events;

    fn begin(&mut self, frames: &mut Frames) {
        let mut message = self.head.object();
        message["usage"] = usage(&Counts { prompt: self.n_prompt, ..Counts::default() });
        Self::event(frames, json!({ "type": "message_start", "message": message }));
        Self::event(frames, json!({ "type": "ping" }));
    }

    fn delta(&mut self, _choice: usize, delta: Delta, frames: &mut Frames) {
        match delta {
            Delta::Progress { .. } => {}
            Delta::Reasoning(text) => {
                let content = json!({ "type": "thinking", "thinking": "", "signature": "" });
                self.begin_block(Block::Thinking, content, frames);
                self.grow(json!({ "type": "thinking_delta", "thinking": text }), frames);
            }
            Delta::Content(text, _) => {
                self.begin_block(Block::Text, json!({ "type": "text", "text": "" }), frames);
                self.grow(json!({ "type": "text_delta", "text": text }), frames);
            }
            Delta::CallBegin { index, id, name } => {
                let content = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                self.begin_block(Block::Call(index), content, frames);
            }
            Delta::CallArguments { json, .. } => {
                self.grow(json!({ "type": "input_json_delta", "partial_json": json }), frames);
            }
            Delta::CallEnd { .. } | Delta::CallVoid { .. } => self.stop_block(frames),
            Delta::End(end) => self.end = Some(end),
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        self.stop_block(frames);
        if let Some(End { finish, counts }) = self.end.take() {
            let (reason, sequence) = stop_reason(&finish);
            let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
            let data = json!({ "type": "message_delta", "delta": delta, "usage": usage(&counts) });
            Self::event(frames, data);
        }
        Self::event(frames, json!({ "type": "message_stop" }));
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.event("error", &Family::Anthropic.error(error));
    }
}
