//! From the engine's steps to what an API tells: text, thoughts, calls, and how it ended.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use chat::{ReplyEvent, ReplyParser};
use engine::{FinishReason, Step, StopMatcher, TokenLogprob};
use tokio::sync::mpsc;

use crate::app::App;
use crate::engine_thread::{Client, Heard};
use crate::error::ApiError;

/// A token of the text with its probability.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TextToken {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<TokenLogprob>,
    /// Length of the text that came with it.
    n_bytes: usize,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delta {
    /// The prompt is being read.
    Progress { done: usize, total: usize },
    /// Thinking.
    Reasoning(String),
    /// Text, with its tokens where they were asked for.
    Content(String, Vec<TextToken>),
    /// A call begins.
    CallBegin { index: usize, id: String, name: String },
    /// A piece of the JSON text of its arguments.
    CallArguments { index: usize, json: String },
    /// A call is whole.
    CallEnd { index: usize },
    /// A call that has begun is none; what was said follows as text.
    CallVoid { index: usize },
    /// The answer is whole.
    End(End),
}

/// How an answer ended and what it took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    pub(crate) counts: Counts,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended its turn.
    Stop,
    /// This text came.
    StopString(String),
    /// The limit of tokens or the context was reached.
    Length,
    /// The model calls tools.
    Calls,
}

/// Tokens and times of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) prompt: usize,
    /// Those of the prompt that were known from before.
    pub(crate) cached: usize,
    pub(crate) generated: usize,
    /// Those of the generated that were thoughts.
    pub(crate) reasoning: usize,
    pub(crate) waited: Duration,
    /// From its turn to the first token.
    pub(crate) reading: Duration,
    /// From the first token to the last.
    pub(crate) writing: Duration,
}

/// One answer under way.
pub(crate) struct Reply {
    heard: mpsc::UnboundedReceiver<Heard>,
    parser: Option<ReplyParser>,
    stops: StopMatcher,
    /// What was found out and not yet told.
    ready: VecDeque<Result<Delta, ApiError>>,
    /// Tokens that no text has come of yet.
    tokens: Vec<TextToken>,
    counts: Counts,
    /// All tokens, the text, and the first call, for when they are sent back.
    said: Vec<u32>,
    text: String,
    first_call: Option<String>,
    is_reasoning: bool,
    is_content: bool,
    open_call: Option<usize>,
    has_calls: bool,
    /// Tokens that end the model's turn.
    stop_tokens: Vec<u32>,
    /// Makes the names of calls unlike those of other answers.
    call_name: String,
    submitted: Instant,
    begun: Option<Instant>,
    first: Option<Instant>,
    is_over: bool,
}

impl Reply {
    pub(crate) fn new(
        heard: mpsc::UnboundedReceiver<Heard>,
        n_prompt: usize,
        parser: Option<ReplyParser>,
        stop: Vec<String>,
        app: &App,
    ) -> Self {
        Self {
            heard,
            parser,
            stops: StopMatcher::new(stop),
            ready: VecDeque::new(),
            tokens: Vec::new(),
            counts: Counts { prompt: n_prompt, ..Counts::default() },
            said: Vec::new(),
            text: String::new(),
            first_call: None,
            is_reasoning: false,
            is_content: false,
            open_call: None,
            has_calls: false,
            stop_tokens: app.model.stop_tokens.clone(),
            call_name: app.next_id(),
            submitted: Instant::now(),
            begun: None,
            first: None,
            is_over: false,
        }
    }

    /// The next piece; `None` after the end or an error.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delta, ApiError>>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Poll::Ready(Some(delta));
            }
            if self.is_over {
                // The engine hears that nobody listens any more.
                self.heard.close();
                return Poll::Ready(None);
            }
            match self.heard.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(heard)) => self.hear(heard),
                Poll::Ready(None) => self.fail(ApiError::failed("the engine's thread has ended")),
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Begun => {
                let now = Instant::now();
                self.counts.waited = now - self.submitted;
                self.begun = Some(now);
            }
            Heard::Progress { done, total, cached } => {
                self.counts.cached = cached;
                self.ready.push_back(Ok(Delta::Progress { done, total }));
            }
            Heard::Step(step) => self.step(*step),
            Heard::Failed(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: ApiError) {
        self.is_over = true;
        self.ready.push_back(Err(error));
    }

    fn step(&mut self, step: Step) {
        let now = Instant::now();
        let first = *self.first.get_or_insert(now);
        self.counts.reading = first - self.begun.unwrap_or(first);
        self.counts.writing = now - first;
        let Step { token, text, logprobs, finish, .. } = step;
        let is_end_token = token.is_some_and(|token| self.stop_tokens.contains(&token));
        if let Some(token) = token {
            self.counts.generated += 1;
            self.said.push(token);
            if let Some((logprob, top)) = logprobs.filter(|_| !is_end_token) {
                self.tokens.push(TextToken { token, logprob, top, n_bytes: text.len() });
            }
        }
        match &mut self.parser {
            Some(parser) => {
                let mut events = parser.push(&text);
                if finish.is_some() {
                    events.append(&mut parser.finish());
                }
                let was_reasoning = self.is_reasoning;
                let is_cut = finish == Some(FinishReason::Length);
                for event in events {
                    match event {
                        // A call that the limit has cut is told as far as it goes.
                        ReplyEvent::Malformed { .. } if is_cut && self.open_call.is_some() => {}
                        event => self.event(event),
                    }
                }
                self.counts.reasoning +=
                    usize::from(token.is_some() && was_reasoning && self.is_reasoning);
            }
            None => self.content(&text),
        }
        if let Some(finish) = finish.filter(|_| !self.is_over) {
            self.end(finish);
        }
    }

    fn event(&mut self, event: ReplyEvent) {
        if self.is_over {
            return;
        }
        self.is_reasoning = matches!(event, ReplyEvent::Reasoning(_));
        let was_content = std::mem::replace(
            &mut self.is_content,
            matches!(event, ReplyEvent::Content(_) | ReplyEvent::Malformed { .. }),
        );
        let delta = match event {
            ReplyEvent::Content(text) => {
                if !was_content {
                    self.drop_tokens_before(&text);
                }
                return self.content(&text);
            }
            // What looked like a call and is none is shown, so that nothing is lost.
            ReplyEvent::Malformed { text } => {
                if let Some(index) = self.open_call.take() {
                    self.ready.push_back(Ok(Delta::CallVoid { index }));
                }
                return self.content(&text);
            }
            ReplyEvent::Reasoning(text) => Delta::Reasoning(text),
            ReplyEvent::CallBegin { index, name, .. } => {
                self.open_call = Some(index);
                let id = format!("call_{}{index}", self.call_name);
                self.first_call.get_or_insert_with(|| id.clone());
                Delta::CallBegin { index, id, name }
            }
            ReplyEvent::CallArguments { index, json } => Delta::CallArguments { index, json },
            ReplyEvent::CallEnd { index } => {
                self.open_call = None;
                self.has_calls = true;
                Delta::CallEnd { index }
            }
        };
        self.tokens.clear();
        self.ready.push_back(Ok(delta));
    }

    /// Drops the tokens that came before a text began, such as the end of a thought.
    fn drop_tokens_before(&mut self, text: &str) {
        let mut n_bytes = 0;
        let is_before = |token: &TextToken| {
            let is_before = n_bytes >= text.len();
            n_bytes += token.n_bytes;
            is_before
        };
        let last = self.tokens.iter().rposition(is_before);
        self.tokens.drain(..last.map_or(0, |last| last + 1));
    }

    /// Passes text on up to a stop string.
    fn content(&mut self, text: &str) {
        let (shown, is_stopped) = self.stops.push(text);
        if !shown.is_empty() {
            self.text += &shown;
            let tokens = std::mem::take(&mut self.tokens);
            self.ready.push_back(Ok(Delta::Content(shown, tokens)));
        }
        if is_stopped {
            let stop = self.stops.matched().unwrap_or_default().to_owned();
            self.finish(Finish::StopString(stop));
        }
    }

    fn end(&mut self, reason: FinishReason) {
        let rest = self.stops.finish();
        if !rest.is_empty() || !self.tokens.is_empty() && self.parser.is_none() {
            self.text += &rest;
            let tokens = std::mem::take(&mut self.tokens);
            self.ready.push_back(Ok(Delta::Content(rest, tokens)));
        }
        match reason {
            FinishReason::Length => self.finish(Finish::Length),
            FinishReason::Stop if self.has_calls => self.finish(Finish::Calls),
            FinishReason::Stop => self.finish(Finish::Stop),
            FinishReason::Cancelled => self.fail(ApiError::failed("cancelled by itself")),
        }
    }

    fn finish(&mut self, finish: Finish) {
        self.is_over = true;
        self.ready.push_back(Ok(Delta::End(End { finish, counts: self.counts })));
    }
}

/// The answers of one request. Dropping it ends them.
pub(crate) struct Replies {
    replies: Vec<Reply>,
    app: Arc<App>,
    client: Client,
    begun: Instant,
}

impl Replies {
    pub(crate) fn new(replies: Vec<Reply>, app: Arc<App>, client: Client, begun: Instant) -> Self {
        Self { replies, app, client, begun }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.replies.len()
    }

    /// The tokens of the prompt.
    pub(crate) fn n_prompt(&self) -> usize {
        self.replies.first().map_or(0, |reply| reply.counts.prompt)
    }

    /// The next piece of any of them, with its number; `None` when all are over.
    pub(crate) async fn next(&mut self) -> Option<(usize, Result<Delta, ApiError>)> {
        let next = poll_fn(|context| {
            let mut is_over = true;
            for (index, reply) in self.replies.iter_mut().enumerate() {
                match reply.poll_next(context) {
                    Poll::Ready(Some(delta)) => return Poll::Ready(Some((index, delta))),
                    Poll::Ready(None) => {}
                    Poll::Pending => is_over = false,
                }
            }
            if is_over { Poll::Ready(None) } else { Poll::Pending }
        });
        let next = next.await;
        match &next {
            Some((index, Ok(Delta::End(end)))) => {
                self.app.metrics.answered(&end.counts, self.begun.elapsed());
                let reply = &mut self.replies[*index];
                if matches!(end.finish, Finish::Stop | Finish::Calls) && reply.parser.is_some() {
                    let said = std::mem::take(&mut reply.said);
                    self.app.said.keep(self.client, reply.first_call.as_deref(), &reply.text, said);
                }
            }
            Some((_, Err(error))) => self.app.metrics.failed(error.code),
            _ => {}
        }
        next
    }

    /// Everything, for an answer in one piece.
    pub(crate) async fn collect(mut self) -> Result<Vec<Whole>, ApiError> {
        let mut wholes: Vec<Whole> = (0..self.len()).map(|_| Whole::default()).collect();
        while let Some((index, delta)) = self.next().await {
            wholes[index].add(delta?);
        }
        Ok(wholes)
    }
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON text of an object.
    pub(crate) arguments: String,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Whole {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) tokens: Vec<TextToken>,
    pub(crate) calls: Vec<Call>,
    pub(crate) end: Option<End>,
}

impl Whole {
    /// Adds a piece.
    pub(crate) fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Progress { .. } | Delta::CallEnd { .. } => {}
            Delta::Reasoning(text) => self.reasoning += &text,
            Delta::Content(text, mut tokens) => {
                self.content += &text;
                self.tokens.append(&mut tokens);
            }
            Delta::CallBegin { id, name, .. } => {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            Delta::CallArguments { json, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments += &json;
                }
            }
            Delta::CallVoid { .. } => {
                self.calls.pop();
            }
            Delta::End(end) => self.end = Some(end),
        }
    }

    /// Tokens and times.
    pub(crate) fn counts(&self) -> Counts {
        self.end.as_ref().map(|end| end.counts).unwrap_or_default()
    }

    /// Why it ended.
    pub(crate) fn finish(&self) -> Finish {
        self.end.as_ref().map_or(Finish::Length, |end| end.finish.clone())
    }
}
