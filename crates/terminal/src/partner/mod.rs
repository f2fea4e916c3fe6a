//! Who answers: a model in this process, or a server.

mod http;
mod local;
mod remote;
mod sse;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chat::{Message, Reply, ReplyEvent};
use serde_json::Value;

pub use local::Local;
pub use remote::Remote;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The talk so far, a system message first.
    pub messages: Vec<Message>,
    /// Tools that may be called, in the form of the OpenAI API.
    pub tools: Vec<Value>,
    /// Whether the model thinks first; `None` leaves it to the model's template.
    pub thinking: Option<bool>,
    /// Added to the seed, so that the same talk can be answered anew.
    pub attempt: u64,
}

/// What happens during a turn.
#[derive(Clone, Debug)]
pub enum Event {
    /// So much of the prompt was read.
    Reading(Reading),
    /// A part of the reply.
    Reply(ReplyEvent),
}

/// How far reading a prompt has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Tokens that are read, those that were known before included.
    pub done: usize,
    /// Tokens of the prompt.
    pub total: usize,
    /// Tokens that were known from before.
    pub reused: usize,
    /// Bytes that came from the drive.
    pub bytes_read: u64,
    /// Time that reading has taken.
    pub time: Duration,
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// The model has said what it wanted to say.
    #[default]
    Whole,
    /// The limit of tokens was reached.
    Limit,
    /// The context is full.
    ContextFull,
    /// The user stopped it.
    Stopped,
}

/// A reply with what it cost.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What was said.
    pub reply: Reply,
    /// Why it ended.
    pub end: End,
    /// What it cost.
    pub cost: Cost,
}

/// What a turn cost, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that did not have to be read.
    pub reused_tokens: usize,
    /// Time until the prompt was read.
    pub prompt_time: Duration,
    /// Tokens of the reply.
    pub tokens: usize,
    /// Time for the reply after its first token.
    pub time: Duration,
    /// Share of the experts that were in memory, while decoding.
    pub hit_rate: Option<f64>,
    /// Bytes read from the drive for a token, while decoding.
    pub bytes_per_token: Option<f64>,
    /// Tokens that the context can hold.
    pub context: Option<usize>,
}

impl Cost {
    /// Tokens of the talk so far.
    pub fn context_tokens(&self) -> usize {
        self.prompt_tokens + self.tokens
    }

    /// Tokens of the reply in a second, the first not counted; `None` where there are too few.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.time.as_secs_f64();
        (self.tokens > 1 && seconds > 0.0).then(|| (self.tokens - 1) as f64 / seconds)
    }
}

/// Somebody who answers. An error leaves it ready for the next turn.
pub trait Partner: Send {
    /// Its name.
    fn name(&self) -> &str;
    /// Answers; `cancel` is set from elsewhere to end it soon.
    fn turn(
        &mut self,
        turn: &Turn,
        cancel: &Arc<AtomicBool>,
        on: &mut dyn FnMut(Event),
    ) -> anyhow::Result<Outcome>;
    /// What it can tell of itself, in lines.
    fn describe(&self) -> Vec<String>;
}
