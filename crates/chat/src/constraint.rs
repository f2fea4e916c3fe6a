//! What a reply may say next: thoughts are free, then text is free until a call opens, or a grammar holds
//! from the beginning.
//!
//! While text is free nothing is computed but one thing: the marks that open calls and end thoughts are
//! tokens, and spelling one out in other tokens would look the same to a reader and go past this. So the
//! tokens that would complete such a spelling cannot come.

use std::sync::Arc;

use engine::{Constraint, ConstraintError};
use llguidance::Matcher;
use tokenizer::Tokenizer;

use crate::parser::{Opening, may_be_space};

/// A mark of the format that is one token.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    token: u32,
    text: String,
    /// For each part of the mark that may have been spelt, the tokens that would complete it.
    completions: Arc<[Vec<u32>]>,
}

impl Mark {
    /// The mark, if the tokenizer has a token of this text.
    pub(crate) fn new(tokenizer: &Tokenizer, text: &str) -> Option<Self> {
        let token = tokenizer.token_id(text)?;
        let mut completions = vec![Vec::new(); text.len()];
        for id in 0..tokenizer.vocab_size() as u32 {
            let bytes = tokenizer.token_bytes(id);
            if id == token || !bytes.contains(&b'>') {
                continue;
            }
            for (spelt, list) in completions.iter_mut().enumerate() {
                let rest = &text.as_bytes()[spelt..];
                let completes = match spelt {
                    0 => bytes.windows(rest.len()).any(|window| window == rest),
                    _ => bytes.starts_with(rest),
                };
                if completes {
                    list.push(id);
                }
            }
        }
        Some(Self { token, text: text.to_owned(), completions: completions.into() })
    }

    /// How much of the mark the end of `said` spells.
    fn spelt(&self, said: &[u8]) -> usize {
        let lengths = (1..self.text.len()).rev();
        let mut fitting = lengths.filter(|&length| said.ends_with(&self.text.as_bytes()[..length]));
        fitting.next().unwrap_or(0)
    }

    fn forbid_spelling(&self, said: &[u8], logits: &mut [f32]) {
        for spelt in [0, self.spelt(said)] {
            for &token in &self.completions[spelt] {
                forbid(logits, token);
            }
        }
    }
}

/// The marks that a constraint heeds.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    pub(crate) think: Option<Mark>,
    pub(crate) think_end: Option<Mark>,
    pub(crate) call: Option<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has been said, and a thought may begin.
    MayThink,
    Thinking,
    /// A thought has ended, and what comes between it and the grammar is due.
    Lead,
    /// Text, in which a call may open.
    Free,
    /// The grammar decides.
    Held,
}

/// A grammar, and what may come before it.
pub(crate) struct ReplyConstraint {
    tokenizer: Tokenizer,
    marks: Marks,
    stop_tokens: Vec<u32>,
    matcher: Matcher,
    stage: Stage,
    /// Whether the grammar is that of what follows the mark of a call, which opens in free text.
    opens: bool,
    /// What stands between a thought and a reply that the grammar describes.
    lead: Vec<u32>,
    /// The end of what was said outside of the grammar.
    said: Vec<u8>,
}

impl ReplyConstraint {
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        marks: Marks,
        stop_tokens: Vec<u32>,
        matcher: Matcher,
        opening: Opening,
        opens: bool,
        lead: Vec<u32>,
    ) -> Self {
        let stage = match opening {
            Opening::Thinking => Stage::Thinking,
            Opening::MayThink => Stage::MayThink,
            Opening::Plain if opens => Stage::Free,
            Opening::Plain => Stage::Held,
        };
        let tokenizer = tokenizer.clone();
        Self { tokenizer, marks, stop_tokens, matcher, stage, opens, lead, said: Vec::new() }
    }

    fn consume(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.matcher.consume_token(token).map_err(failed)
    }

    /// Takes a token in free text; tells whether a call opened.
    fn free(&mut self, token: u32) {
        let opened = self.marks.call.as_ref().is_some_and(|mark| mark.token == token);
        self.stage = if opened { Stage::Held } else { Stage::Free };
        self.remember(token);
    }

    /// Keeps as much of what was said as a mark is long.
    fn remember(&mut self, token: u32) {
        const ENOUGH: usize = 16;
        self.said.extend_from_slice(self.tokenizer.token_bytes(token));
        let excess = self.said.len().saturating_sub(ENOUGH);
        self.said.drain(..excess);
    }

    fn mask_by_grammar(
        &mut self,
        logits: &mut [f32],
        also: Option<u32>,
    ) -> Result<(), ConstraintError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let also = also.and_then(|token| Some((token, *logits.get(token as usize)?)));
        let n_tokens = allowed.len();
        allowed.iter_unset_entries(|token| forbid(logits, token as u32));
        for logit in logits.iter_mut().skip(n_tokens) {
            *logit = f32::NEG_INFINITY;
        }
        if let Some((token, logit)) = also {
            logits[token as usize] = logit;
        }
        Ok(())
    }
}

impl Constraint for ReplyConstraint {
    fn forced(&mut self, out: &mut Vec<u32>) -> Result<(), ConstraintError> {
        if self.stage == Stage::Lead {
            out.extend_from_slice(&self.lead);
            self.stage = Stage::Held;
        }
        if self.stage == Stage::Held && !self.matcher.is_stopped() {
            out.extend(self.matcher.consume_ff_tokens());
            if let Some(error) = self.matcher.get_error() {
                return Err(failed(error));
            }
        }
        Ok(())
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let marks = &self.marks;
        let forbid_spelling = |mark: &Option<Mark>, logits: &mut [f32]| {
            if let Some(mark) = mark {
                mark.forbid_spelling(&self.said, logits);
            }
        };
        match self.stage {
            Stage::Thinking => forbid_spelling(&marks.think_end, logits),
            Stage::Free => forbid_spelling(&marks.call, logits),
            Stage::MayThink if self.opens => {
                forbid_spelling(&marks.think, logits);
                forbid_spelling(&marks.call, logits);
            }
            Stage::MayThink => {
                let think = marks.think.as_ref().map(|mark| mark.token);
                return self.mask_by_grammar(logits, think);
            }
            Stage::Lead | Stage::Held => return self.mask_by_grammar(logits, None),
        }
        // Before a grammar that has to be, the reply cannot end.
        if !self.opens {
            self.stop_tokens.iter().for_each(|&token| forbid(logits, token));
        }
        Ok(())
    }

    fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        let is = |mark: &Option<Mark>| mark.as_ref().is_some_and(|mark| mark.token == token);
        match self.stage {
            Stage::MayThink if is(&self.marks.think) => self.stage = Stage::Thinking,
            Stage::MayThink if self.opens => {
                self.free(token);
                // Space before a thought is none of the reply.
                if self.stage == Stage::Free && may_be_space(&self.said) {
                    self.stage = Stage::MayThink;
                }
            }
            Stage::MayThink => {
                self.stage = Stage::Held;
                self.consume(token)?;
            }
            Stage::Thinking => {
                self.remember(token);
                if is(&self.marks.think_end) {
                    self.stage = if self.opens { Stage::Free } else { Stage::Lead };
                }
            }
            Stage::Free => self.free(token),
            Stage::Lead | Stage::Held => self.consume(token)?,
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.stage == Stage::Held && self.matcher.is_stopped()
    }
}

fn forbid(logits: &mut [f32], token: u32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

fn failed(error: impl std::fmt::Display) -> ConstraintError {
    ConstraintError(first_line(&error.to_string()))
}

/// What an error of the grammar library says, without the state that it adds.
pub(crate) fn first_line(error: &str) -> String {
    let line = error.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or("the grammar failed").trim().to_owned()
}
