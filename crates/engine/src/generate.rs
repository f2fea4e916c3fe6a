//! Generation: an iterator of tokens with their text.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::constraint::Constraint;
use crate::engine::{Engine, Part};
use crate::error::Error;
use crate::sampler::{Sampling, TokenLogprob};
use crate::session::Session;
use crate::usage::Usage;
use crate::writer::{Scores, Writer};

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
    /// The limit of tokens or the context was reached, or a constraint had to bring the output to its end
    /// because it was near.
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
    /// What computing it cost: for the first token that is chosen the whole prompt, for one that a
    /// constraint leaves no choice for, nothing; it is computed together with the next choice.
    pub usage: Usage,
    /// Set on the last step.
    pub finish: Option<FinishReason>,
}

impl Engine {
    /// Appends tokens to a session and gives the best token after them, of all that the head has: it is chosen where the
    /// model is computed, as a generation at temperature 0 has it chosen, and the logits stay there.
    pub fn best_after(
        &mut self,
        session: &mut Session,
        tokens: &[u32],
    ) -> Result<(u32, Usage), Error> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut usage = Usage::default();
        let best_of = Some(self.config().vocab_size);
        let mut n_left = tokens.len();
        for chunk in tokens.chunks(self.prompt_chunk()) {
            n_left -= chunk.len();
            let wants_logits = |row: usize| n_left == 0 && row + 1 == chunk.len();
            let part = Part { session, tokens: chunk, wants_logits: &wants_logits };
            usage += &self.forward_for(&mut [part], best_of)?;
        }
        match self.scores(0) {
            Some(Scores::Best(token)) => Ok((token, usage)),
            _ => unreachable!("the last token's best was wanted, and is finite"),
        }
    }
}

/// A running generation: iterate for its steps. Dropping it ends it.
pub struct Generation<'a> {
    engine: &'a mut Engine,
    session: &'a mut Session,
    writer: Writer,
    /// Whether the prompt is still to be computed.
    is_reading: bool,
    done: bool,
}

impl<'a> Generation<'a> {
    /// Checks the request; nothing is computed before the first step.
    pub(crate) fn new(
        engine: &'a mut Engine,
        session: &'a mut Session,
        prompt: &[u32],
        options: GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Self, Error> {
        let writer = Writer::new(engine, session.tokens().len(), prompt, options, constraint)?;
        Ok(Self { engine, session, writer, is_reading: true, done: false })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let mut usage = Usage::default();
        if self.writer.is_cancelled() {
            return Ok(self.writer.end(FinishReason::Cancelled, usage));
        }
        if let Some(step) = self.writer.free_step() {
            return Ok(step);
        }
        let Self { engine, session, writer, is_reading, .. } = self;
        let (n_pending, best_of) = (writer.pending().len(), writer.best_of());
        let mut n_done = 0;
        for chunk in writer.pending().chunks(engine.prompt_chunk()) {
            if writer.is_cancelled() {
                return Ok(writer.end(FinishReason::Cancelled, usage));
            }
            n_done += chunk.len();
            let wants_logits = |row: usize| n_done == n_pending && row + 1 == chunk.len();
            let part = Part { session, tokens: chunk, wants_logits: &wants_logits };
            usage += &engine.forward_for(&mut [part], best_of)?;
        }
        if std::mem::take(is_reading) {
            // What is said may come back otherwise in the next prompt, and this prompt as it is.
            engine.remember_in_memory(session);
        }
        let scores = engine.scores(0).expect("the last token's were wanted, and are finite");
        writer.choose(session.tokens(), scores, usage)
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
