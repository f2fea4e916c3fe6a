//! A model in this process.
//!
//! The session outlives a turn. When the next prompt begins with the tokens that it holds, which is so whenever the
//! template writes the talk as it went, only the rest is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use chat::{ChatModel, ChatRequest, Prompt};
use engine::{Engine, FinishReason, GenerateOptions, Sampling, Session, Usage, format_bytes};

use crate::partner::{Cost, End, Event, Outcome, Partner, Reading, Turn};

/// A loaded model.
pub struct Local {
    name: String,
    engine: Engine,
    chat: ChatModel,
    sampling: Sampling,
    max_tokens: Option<usize>,
    session: Option<Session>,
    /// The tokens of replies, by the place of their message in the talk: a model may say a text in other tokens
    /// than an encoder would.
    said: BTreeMap<usize, Vec<u32>>,
}

impl Local {
    /// A model by the name that the user gave it.
    pub fn new(
        name: &str,
        engine: Engine,
        chat: ChatModel,
        sampling: Sampling,
        max_tokens: Option<usize>,
    ) -> Self {
        let name = name.to_owned();
        Self { name, engine, chat, sampling, max_tokens, session: None, said: BTreeMap::new() }
    }

    /// A session that holds a beginning of the prompt, as long as there is one.
    fn session_for(&mut self, tokens: &[u32]) -> anyhow::Result<Session> {
        // The last token is always read: the reply begins after it.
        let extends = |session: &Session| {
            session.tokens().len() < tokens.len() && tokens.starts_with(session.tokens())
        };
        match self.session.take().filter(extends) {
            Some(session) => Ok(session),
            None => Ok(self.engine.session_for(tokens)?.0),
        }
    }
}

impl Partner for Local {
    fn name(&self) -> &str {
        &self.name
    }

    fn turn(
        &mut self,
        turn: &Turn,
        cancel: &Arc<AtomicBool>,
        on: &mut dyn FnMut(Event),
    ) -> anyhow::Result<Outcome> {
        // What comes after the talk's end was taken back.
        self.said.split_off(&turn.messages.len());
        let request = ChatRequest {
            said: self.said.values().cloned().collect(),
            messages: turn.messages.clone(),
            tools: turn.tools.clone(),
            enable_thinking: turn.thinking,
            ..ChatRequest::default()
        };
        let Prompt { tokens, constraint, mut parser, .. } =
            self.chat.prompt(self.engine.tokenizer()?, &request)?;
        let context = self.engine.plan().context;
        let cost = Cost { prompt_tokens: tokens.len(), context: Some(context), ..Cost::default() };
        let mut outcome = Outcome { cost, ..Outcome::default() };
        if tokens.len() > context {
            outcome.end = End::ContextFull;
            return Ok(outcome);
        }

        let mut session = self.session_for(&tokens)?;
        let begin = Instant::now();
        let reused = session.tokens().len();
        outcome.cost.reused_tokens = reused;
        let mut reading =
            Reading { done: reused, total: tokens.len(), reused, ..Reading::default() };
        on(Event::Reading(reading));
        // The last token is left to the generation.
        let (rest, last) = tokens[reused..].split_at(tokens.len() - reused - 1);
        for chunk in rest.chunks(self.engine.prompt_chunk()) {
            if cancel.load(Ordering::Relaxed) {
                break;
            }
            let usage = self.engine.evaluate(&mut session, chunk, |_| false, |_, _| {})?;
            reading.done += chunk.len();
            reading.bytes_read += usage.bytes_read;
            reading.time = begin.elapsed();
            on(Event::Reading(reading));
        }
        // The next prompt often differs from here on: templates leave out what was thought before.
        self.engine.remember(&session);
        if cancel.load(Ordering::Relaxed) {
            self.session = Some(session);
            outcome.end = End::Stopped;
            return Ok(outcome);
        }

        let options = GenerateOptions {
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(turn.attempt),
                ..self.sampling.clone()
            },
            max_tokens: self.max_tokens,
            stop_tokens: self.engine.stop_tokens().to_vec(),
            show_special: true,
            cancel: Some(Arc::clone(cancel)),
            ..GenerateOptions::default()
        };
        let mut decode = Usage::default();
        let mut finish = None;
        let mut first = None;
        let mut said = Vec::new();
        let cost = &mut outcome.cost;
        let reply = &mut outcome.reply;
        let mut take = |events: Vec<chat::ReplyEvent>| {
            for event in events {
                reply.add(&event);
                on(Event::Reply(event));
            }
        };
        for step in self.engine.generate_constrained(&mut session, last, options, constraint)? {
            let step = step?;
            if first.is_none() {
                first = Some(Instant::now());
                cost.prompt_time = begin.elapsed();
            } else {
                decode += &step.usage;
            }
            cost.tokens += usize::from(step.token.is_some());
            said.extend(step.token);
            take(parser.push(&step.text));
            finish = step.finish;
        }
        take(parser.finish());
        cost.time = first.map(|first| first.elapsed()).unwrap_or_default();
        cost.hit_rate = decode.hit_rate();
        if decode.tokens > 0 {
            cost.bytes_per_token = Some(decode.bytes_read as f64 / decode.tokens as f64);
        }
        outcome.end = match finish {
            Some(FinishReason::Cancelled) => End::Stopped,
            // A call that would not have fitted ends a little before the context.
            Some(FinishReason::Length)
                if self.max_tokens.is_none() || session.tokens().len() >= context =>
            {
                End::ContextFull
            }
            Some(FinishReason::Length) => End::Limit,
            Some(FinishReason::Stop) | None => End::Whole,
        };
        self.said.insert(turn.messages.len(), said);
        self.engine.remember(&session);
        self.session = Some(session);
        Ok(outcome)
    }

    fn describe(&self) -> Vec<String> {
        let plan = self.engine.plan();
        let held = self.session.as_ref().map_or(0, |session| session.tokens().len());
        vec![
            format!("model: {} on {}", self.name, self.engine.device_name()),
            format!(
                "memory: {} for all, {} of {} routed-expert bytes in slots",
                format_bytes(plan.total),
                format_bytes(plan.experts),
                format_bytes(plan.all_experts),
            ),
            format!("context: {held} of {} tokens held", plan.context),
        ]
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Err(error) = self.engine.save_heat_map() {
            eprintln!("warning: {error}");
        }
    }
}
