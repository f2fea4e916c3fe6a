//! Generation: an iterator of tokens with their text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokenizer::DecodeStream;

use crate::engine::Engine;
use crate::error::Error;
use crate::sampler::{Sampler, Sampling, TokenLogprob, logprobs};
use crate::session::Session;
use crate::stop::StopMatcher;
use crate::usage::Usage;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to generate; default: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation; [`Engine::stop_tokens`] gives the model's own.
    pub stop_tokens: Vec<u32>,
    /// Report the logarithms of probabilities of the chosen token and of so many best ones.
    pub logprobs: Option<usize>,
    /// Text of special tokens is part of the output.
    pub show_special: bool,
    /// Set from anywhere to end the generation after the current forward pass.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// The limit of tokens or the context was reached.
    Length,
    /// The caller cancelled it.
    Cancelled,
}

/// A generated token.
#[derive(Clone, Debug)]
pub struct Step {
    /// The token; `None` when the generation was cancelled before one was chosen.
    pub token: Option<u32>,
    /// Text that is complete now; may be empty, and always whole characters.
    pub text: String,
    /// Logarithm of the token's probability and the best tokens with theirs, when asked for.
    pub logprobs: Option<(f32, Vec<TokenLogprob>)>,
    /// What computing it cost: for the first token the whole prompt.
    pub usage: Usage,
    /// Set on the last step.
    pub finish: Option<FinishReason>,
}

/// A running generation: iterate for its steps. Dropping it ends it.
pub struct Generation<'a> {
    engine: &'a mut Engine,
    session: &'a mut Session,
    options: GenerateOptions,
    sampler: Sampler,
    decoder: Option<DecodeStream>,
    stop: StopMatcher,
    /// Tokens to compute before the next choice: the prompt, then the last token.
    pending: Vec<u32>,
    /// Logits of the last token; their memory is used again.
    logits: Vec<f32>,
    generated_from: usize,
    limit: usize,
    done: bool,
}

impl<'a> Generation<'a> {
    /// Checks the request; nothing is computed before the first step.
    pub(crate) fn new(
        engine: &'a mut Engine,
        session: &'a mut Session,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, Error> {
        options.sampling.validate()?;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        engine.check_tokens(prompt)?;
        let generated_from = session.tokens().len() + prompt.len();
        // The last token needs no place in the context: nothing is computed after it.
        let context = session.context();
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
        Ok(Self {
            sampler: Sampler::new(options.sampling.clone(), n_tokens),
            decoder,
            stop: StopMatcher::new(options.stop.clone()),
            pending: prompt.to_vec(),
            logits: Vec::new(),
            generated_from,
            limit: options.max_tokens.unwrap_or(usize::MAX).min(room),
            done: false,
            engine,
            session,
            options,
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let mut usage = Usage::default();
        let mut finish = None;
        let pending = std::mem::take(&mut self.pending);
        let mut logits = std::mem::take(&mut self.logits);
        logits.clear();
        for (index, chunk) in pending.chunks(self.engine.prompt_chunk()).enumerate() {
            if self.is_cancelled() {
                finish = Some(FinishReason::Cancelled);
                break;
            }
            let last = (index + 1) * self.engine.prompt_chunk() >= pending.len();
            let chunk_usage = self.engine.evaluate(
                self.session,
                chunk,
                |row| last && row + 1 == chunk.len(),
                |_, row| logits.extend_from_slice(row),
            )?;
            usage += &chunk_usage;
        }
        if finish.is_some() || self.limit == 0 {
            let finish = finish.or(Some(FinishReason::Length));
            let text = self.flush();
            return Ok(Step { token: None, text, logprobs: None, usage, finish });
        }

        let position = self.session.tokens().len();
        let token =
            self.sampler.choose(&logits, self.session.tokens(), self.generated_from, position);
        let logprobs = self.options.logprobs.map(|n| logprobs(&logits, token, n));
        self.logits = logits;
        let generated = position + 1 - self.generated_from;
        let mut text = String::new();
        if self.options.stop_tokens.contains(&token) {
            finish = Some(FinishReason::Stop);
        } else {
            let piece = match &mut self.decoder {
                Some(decoder) => decoder.push(token),
                None => String::new(),
            };
            let (shown, stopped) = self.stop.push(&piece);
            text = shown;
            if stopped {
                return Ok(Step {
                    token: Some(token),
                    text,
                    logprobs,
                    usage,
                    finish: Some(FinishReason::Stop),
                });
            }
            if generated >= self.limit {
                finish = Some(FinishReason::Length);
            }
        }
        if finish.is_some() {
            text.push_str(&self.flush());
        } else {
            self.pending.push(token);
        }
        Ok(Step { token: Some(token), text, logprobs, usage, finish })
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

    fn is_cancelled(&self) -> bool {
        self.options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Step, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step();
        self.done = !matches!(step, Ok(Step { finish: None, .. }));
        Some(step)
    }
}
