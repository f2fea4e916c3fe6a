//! From logits to steps: what a generation keeps beside its session. Whoever runs forward passes, for one
//! generation or for many, computes what is pending, hands in the logits, and passes the steps on.

use std::sync::atomic::Ordering;

use tokenizer::DecodeStream;

use crate::constraint::{Constraint, ConstraintError};
use crate::engine::Engine;
use crate::error::Error;
use crate::generate::{FinishReason, GenerateOptions, Step};
use crate::sampler::{Sampler, TokenLogprob, logprobs};
use crate::stop::StopMatcher;
use crate::usage::Usage;

/// What a forward pass says of the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scores<'a> {
    /// The logits of all tokens.
    Logits(&'a [f32]),
    /// The best token, where [`Writer::best_of`] wants no more.
    Best(u32),
}

/// Chooses tokens and turns them into text, under the limits of one generation.
pub(crate) struct Writer {
    options: GenerateOptions,
    constraint: Option<Box<dyn Constraint>>,
    sampler: Sampler,
    decoder: Option<DecodeStream>,
    stop: StopMatcher,
    /// Tokens to compute before the next choice: the prompt, then what was said since the last choice.
    pending: Vec<u32>,
    /// Tokens that follow by themselves, and how many of them have been said.
    forced: Vec<u32>,
    n_said: usize,
    /// Logits that the constraint has changed; their memory is used again.
    masked: Vec<f32>,
    generated_from: usize,
    n_generated: usize,
    limit: usize,
    /// Whether the limit has changed a choice.
    is_hurried: bool,
}

impl Writer {
    /// Checks the request: `prompt` is to continue a session that holds `n_held` tokens.
    pub(crate) fn new(
        engine: &Engine,
        n_held: usize,
        prompt: &[u32],
        options: GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Self, Error> {
        options.sampling.validate()?;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        engine.check_tokens(prompt)?;
        let generated_from = n_held + prompt.len();
        // The last token needs no place in the context: nothing is computed after it.
        let context = engine.plan().context;
        let room = (context + 1).saturating_sub(generated_from);
        if room == 0 {
            return Err(Error::ContextFull { needed: generated_from, context });
        }
        let n_tokens = match engine.tokenizer() {
            Ok(tokenizer) => tokenizer.vocab_size(),
            Err(_) => engine.config().vocab_size,
        };
        let decoder =
            engine.tokenizer().ok().map(|tokenizer| tokenizer.decode_stream(!options.show_special));
        let mut writer = Self {
            constraint,
            sampler: Sampler::new(options.sampling.clone(), n_tokens),
            decoder,
            stop: StopMatcher::new(options.stop.clone()),
            pending: prompt.to_vec(),
            forced: Vec::new(),
            n_said: 0,
            masked: Vec::new(),
            generated_from,
            n_generated: 0,
            limit: options.max_tokens.unwrap_or(usize::MAX).min(room),
            is_hurried: false,
            options,
        };
        writer.find_forced()?;
        Ok(writer)
    }

    /// Passes over the first tokens of the prompt, which the session turns out to hold.
    pub(crate) fn skip(&mut self, n_tokens: usize) {
        self.pending.drain(..n_tokens);
    }

    /// Tokens to compute before [`Writer::choose`]. Only complete when [`Writer::free_step`] has nothing.
    pub(crate) fn pending(&self) -> &[u32] {
        &self.pending
    }

    /// Whether the caller wants no more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// The next step if it needs no forward pass: a token that follows by itself. Where the model's
    /// opinion of every token is wanted, there is none.
    pub(crate) fn free_step(&mut self) -> Option<Step> {
        if self.options.logprobs.is_some() || self.limit == 0 {
            return None;
        }
        let token = self.next_forced()?;
        Some(self.say(token, None, Usage::default()))
    }

    /// How many tokens the best is to be chosen from, if the next choice needs no more than that.
    pub(crate) fn best_of(&self) -> Option<usize> {
        let wants_all = self.constraint.is_some() || self.options.logprobs.is_some();
        self.sampler.best_of().filter(|_| !wants_all)
    }

    /// The next step, from the scores after all that was pending. `context` is the whole sequence up to
    /// there, `usage` what computing it cost.
    pub(crate) fn choose(
        &mut self,
        context: &[u32],
        scores: Scores<'_>,
        usage: Usage,
    ) -> Result<Step, Error> {
        self.pending.clear();
        if self.limit == 0 {
            return Ok(self.end(FinishReason::Length, usage));
        }
        let forced = self.next_forced();
        let token = match (forced, scores) {
            (Some(token), _) | (None, Scores::Best(token)) => token,
            (None, Scores::Logits(logits)) => self.sample(context, logits)?,
        };
        let logprobs = match (self.options.logprobs, scores) {
            (Some(n), Scores::Logits(logits)) => Some(logprobs(logits, token, n)),
            _ => None,
        };
        if forced.is_none() && !self.options.stop_tokens.contains(&token) {
            if let Some(constraint) = &mut self.constraint {
                constraint.commit(token)?;
            }
            self.find_forced()?;
        }
        Ok(self.say(token, logprobs, usage))
    }

    /// A last step without a token.
    pub(crate) fn end(&mut self, finish: FinishReason, usage: Usage) -> Step {
        let text = self.flush();
        Step { token: None, text, logprobs: None, usage, finish: Some(finish) }
    }

    fn sample(&mut self, context: &[u32], logits: &[f32]) -> Result<u32, Error> {
        let (from, position) = (self.generated_from, context.len());
        let Some(constraint) = &mut self.constraint else {
            return Ok(self.sampler.choose(logits, context, from, position));
        };
        self.masked.clear();
        self.masked.extend_from_slice(logits);
        constraint.mask(&mut self.masked)?;
        // What may follow this token.
        let room = self.limit - self.n_generated - 1;
        loop {
            let token = self.sampler.choose(&self.masked, context, from, position);
            if self.masked[token as usize] == f32::NEG_INFINITY {
                return Err(ConstraintError("no token may follow".to_owned()).into());
            }
            if constraint.accept(token, room, &mut self.masked)? {
                return Ok(token);
            }
            self.is_hurried = true;
            self.masked[token as usize] = f32::NEG_INFINITY;
        }
    }

    /// Asks the constraint what follows by itself.
    fn find_forced(&mut self) -> Result<(), Error> {
        self.forced.clear();
        self.n_said = 0;
        if let Some(constraint) = &mut self.constraint {
            constraint.forced(&mut self.forced)?;
        }
        Ok(())
    }

    fn next_forced(&mut self) -> Option<u32> {
        let token = self.forced.get(self.n_said).copied();
        self.n_said += usize::from(token.is_some());
        token
    }

    /// Makes a token a part of the output.
    fn say(
        &mut self,
        token: u32,
        logprobs: Option<(f32, Vec<TokenLogprob>)>,
        usage: Usage,
    ) -> Step {
        self.n_generated += 1;
        let mut finish = None;
        let mut text = String::new();
        if self.options.stop_tokens.contains(&token) {
            finish = Some(self.end_of_all());
        } else {
            let piece = match &mut self.decoder {
                Some(decoder) => decoder.push(token),
                None => String::new(),
            };
            let (shown, stopped) = self.stop.push(&piece);
            text = shown;
            if stopped {
                let (token, finish) = (Some(token), Some(FinishReason::Stop));
                return Step { token, text, logprobs, usage, finish };
            }
            let all_said = self.n_said == self.forced.len();
            if all_said && self.constraint.as_ref().is_some_and(|it| it.is_finished()) {
                finish = Some(self.end_of_all());
            } else if self.n_generated >= self.limit {
                finish = Some(FinishReason::Length);
            }
        }
        if finish.is_some() {
            text.push_str(&self.flush());
        } else {
            self.pending.push(token);
        }
        Step { token: Some(token), text, logprobs, usage, finish }
    }

    /// Why a generation ended whose output is whole: whoever asked is told of a limit that shaped it.
    fn end_of_all(&self) -> FinishReason {
        if self.is_hurried { FinishReason::Length } else { FinishReason::Stop }
    }

    /// Text that was held back for the rest of a character or of a stop string.
    fn flush(&mut self) -> String {
        let rest = self.decoder.as_mut().map(DecodeStream::finish).unwrap_or_default();
        let (mut text, stopped) = self.stop.push(&rest);
        if !stopped {
            text.push_str(&self.stop.finish());
        }
        text
    }
}
