//! What a reply may say next: thoughts are free, then text is free until a call opens, or a grammar holds
//! from the beginning.
//!
//! While text is free nothing is computed but one thing: the marks that open calls and end thoughts are
//! tokens, and spelling one out in other tokens would look the same to a reader and go past this. So the
//! tokens that would complete such a spelling cannot come.
//!
//! What has begun comes to its end: when the limit of tokens is near, no token may come after which the way
//! to the end ([`Closer`]) is longer than what is left, and no call may open that could not be closed.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::{Constraint, ConstraintError};
use llguidance::Matcher;
use tokenizer::Tokenizer;

use crate::closing::Closer;
use crate::parser::{Opening, may_be_space};

/// The end is looked after where so few tokens are left. What takes more tokens to end is not noticed before.
const NEAR: usize = 1_024;
/// Tokens by which the length of a known way may be wrong after one more token.
const MARGIN: usize = 16;
/// Tokens that are refused before only the way to the end is left.
const MAX_REFUSED: usize = 8;

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
    closer: Arc<Closer>,
    /// A way to the grammar's end from where it stands; empty when none is known.
    way: VecDeque<u32>,
    /// The same after this token, which was accepted.
    next_way: Option<(u32, VecDeque<u32>)>,
    /// The end is not looked after before so few tokens are left.
    near: usize,
    /// Tokens refused since the last that was said.
    n_refused: usize,
}

impl ReplyConstraint {
    #[expect(clippy::too_many_arguments, reason = "it is made in one place, of what that has made")]
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        closer: Arc<Closer>,
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
        Self {
            tokenizer,
            marks,
            stop_tokens,
            matcher,
            stage,
            opens,
            lead,
            said: Vec::new(),
            closer,
            way: VecDeque::new(),
            next_way: None,
            near: NEAR,
            n_refused: 0,
        }
    }

    /// The way from where the grammar stands.
    fn find_way(&mut self) -> Option<&VecDeque<u32>> {
        if self.way.is_empty() {
            self.way = self.closer.find(&self.matcher)?;
        }
        Some(&self.way)
    }

    /// The way after a token that the grammar allows.
    fn find_next_way(
        &mut self,
        token: u32,
        room: usize,
    ) -> Result<Option<VecDeque<u32>>, ConstraintError> {
        if self.way.front() == Some(&token) {
            return Ok(Some(self.way.iter().skip(1).copied().collect()));
        }
        // Within a text, the old way is still one.
        if !self.way.is_empty() && self.way.len() + MARGIN <= room {
            let end = self.stop_tokens.first().filter(|end| self.way.back() != Some(end));
            let mut tokens = vec![token];
            tokens.extend(self.way.iter().chain(end));
            let n_allowed = self.matcher.validate_tokens(&tokens).map_err(failed)?;
            if n_allowed == tokens.len() {
                return Ok(Some(self.way.clone()));
            }
        }
        let mut after = self.matcher.clone();
        after.consume_token(token).map_err(failed)?;
        Ok(self.closer.find(&after))
    }

    /// Whether a token of the grammar may come when `room` more may follow.
    fn accept_held(
        &mut self,
        token: u32,
        room: usize,
        logits: &mut [f32],
    ) -> Result<bool, ConstraintError> {
        let next = self.find_next_way(token, room)?;
        let is_known = next.is_some();
        if let Some(way) = next.filter(|way| way.len() <= room) {
            self.next_way = Some((token, way));
            return Ok(true);
        }
        let first = match self.find_way() {
            Some(way) if is_known && way.len() <= room + 1 => way.front().copied(),
            _ => None,
        };
        Ok(!self.refuse(first, room, logits))
    }

    /// Whether one more token of a thought may come before a form that has to be.
    fn accept_thought(&mut self, token: u32, room: usize, logits: &mut [f32]) -> bool {
        let end = self.marks.think_end.as_ref().map(|mark| mark.token);
        if end == Some(token) {
            return true;
        }
        let n_lead = self.lead.len();
        match self.find_way().map(|way| 1 + n_lead + way.len()) {
            Some(needed) if needed <= room => true,
            Some(needed) if needed == room + 1 => !self.refuse(end, room, logits),
            _ => !self.refuse(None, room, logits),
        }
    }

    /// Takes back a choice, if `first` begins a way to the end that is still short enough. Without one the end
    /// is out of reach, or the way is not known and looked for again later.
    fn refuse(&mut self, first: Option<u32>, room: usize, logits: &mut [f32]) -> bool {
        let Some(first) = first else {
            self.near = room / 2;
            return false;
        };
        self.n_refused += 1;
        if self.n_refused == MAX_REFUSED {
            logits.fill(f32::NEG_INFINITY);
            if let Some(logit) = logits.get_mut(first as usize) {
                *logit = 0.0;
            }
        }
        true
    }

    fn consume(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.way = match self.next_way.take() {
            Some((accepted, way)) if accepted == token => way,
            _ => VecDeque::new(),
        };
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
            let forced = self.matcher.consume_ff_tokens();
            for &token in &forced {
                if self.way.pop_front() != Some(token) {
                    self.way.clear();
                }
            }
            out.extend(forced);
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

    fn accept(
        &mut self,
        token: u32,
        room: usize,
        logits: &mut [f32],
    ) -> Result<bool, ConstraintError> {
        if room > self.near || self.stop_tokens.contains(&token) {
            return Ok(true);
        }
        let is = |mark: &Option<Mark>| mark.as_ref().is_some_and(|mark| mark.token == token);
        match self.stage {
            Stage::Free | Stage::MayThink if self.opens => {
                let opens = is(&self.marks.call);
                Ok(!opens || self.find_way().is_none_or(|way| way.len() <= room))
            }
            Stage::Thinking if self.opens => Ok(true),
            Stage::Thinking => Ok(self.accept_thought(token, room, logits)),
            Stage::MayThink if is(&self.marks.think) => {
                Ok(self.accept_thought(token, room, logits))
            }
            Stage::MayThink | Stage::Free | Stage::Lead | Stage::Held => {
                self.accept_held(token, room, logits)
            }
        }
    }

    fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.n_refused = 0;
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
