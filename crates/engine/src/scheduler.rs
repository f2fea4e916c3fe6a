//! Many generations on one engine: each pass computes a token of all that decode and a piece of the
//! prompts that are being read.
//!
//! A row's result does not depend on its company, so a request gets the same tokens alone and among
//! others. What a pass reads from the drive, it reads once for all of its rows.

use std::sync::Arc;

use crate::constraint::Constraint;
use crate::engine::{Engine, Part};
use crate::error::Error;
use crate::generate::{FinishReason, GenerateOptions, Step};
use crate::pace::Pace;
use crate::prefix_cache::stats::PrefixCacheStats;
use crate::session::Session;
use crate::usage::Usage;
use crate::writer::Writer;

/// What is to be generated.
pub struct Request {
    /// All tokens that come before, from the beginning.
    pub prompt: Vec<u32>,
    /// How it goes on.
    pub options: GenerateOptions,
    /// What it may say.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Names a request that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What became of a request in a pass.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all events are steps, and none is kept")]
pub enum Event {
    /// A piece of its prompt was read.
    Progress {
        /// Tokens of the prompt that were read or need not be.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens that the prefix cache had.
        cached: usize,
    },
    /// It says a token. What that cost is the cost of the passes that it took part in, which it shares
    /// with others; the number of tokens is its own.
    Step(Step),
}

/// What a scheduler has done since it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchedulerStats {
    /// Requests that are being worked on.
    pub running: usize,
    /// Those of them whose prompts are not read to the end.
    pub reading: usize,
    /// Forward passes.
    pub passes: u64,
    /// Rows of all passes.
    pub rows: u64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: u64,
    /// Tokens of prompts that the prefix cache had.
    pub cached_tokens: u64,
    /// Tokens that were said.
    pub generated_tokens: u64,
    /// Requests that were started.
    pub started: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// The prefix cache, if there is one.
    pub prefix_cache: Option<PrefixCacheStats>,
}

/// Runs several generations together.
pub struct Scheduler {
    engine: Engine,
    /// In the order in which they were started.
    slots: Vec<Slot>,
    n_started: u64,
    /// Whose prompt was read last; the next in the round begins the next pass.
    last_read: RequestId,
    pace: Pace,
    stats: SchedulerStats,
}

/// A request that is being worked on.
struct Slot {
    id: RequestId,
    session: Session,
    writer: Writer,
    n_prompt: usize,
    n_cached: usize,
    /// Whether the first token is still to be chosen.
    is_reading: bool,
    /// How many of the pending tokens are computed.
    n_done: usize,
    /// What was computed since the last choice.
    usage: Usage,
    /// Rows in the current pass.
    n_rows: usize,
    has_ended: bool,
}

impl Slot {
    fn n_pending(&self) -> usize {
        self.writer.pending().len() - self.n_done
    }

    /// Whether the next token is chosen after the current pass.
    fn will_choose(&self) -> bool {
        self.n_rows > 0 && self.n_rows == self.n_pending()
    }
}

impl Scheduler {
    /// Runs generations on an engine.
    pub fn new(engine: Engine) -> Self {
        Self {
            pace: Pace::new(engine.prompt_chunk()),
            engine,
            slots: Vec::new(),
            n_started: 0,
            last_read: RequestId(0),
            stats: SchedulerStats::default(),
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine, for work between two passes. Its sessions are those of the scheduler's requests, too.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Generations that can run at once.
    pub fn capacity(&self) -> usize {
        self.engine.session_limit()
    }

    /// Generations that are running.
    pub fn running(&self) -> usize {
        self.slots.len()
    }

    /// What was done so far.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.slots.len(),
            reading: self.slots.iter().filter(|slot| slot.is_reading).count(),
            prefix_cache: self.engine.prefix_cache_stats(),
            ..self.stats.clone()
        }
    }

    /// Begins a generation; fails when the request is unsound or all sessions are in use.
    pub fn start(&mut self, request: Request) -> Result<RequestId, Error> {
        let Request { prompt, options, constraint } = request;
        // Checked first: what is known of a prompt may take long to read.
        let mut writer = Writer::new(&self.engine, 0, &prompt, options, constraint)?;
        let (session, n_cached) = self.engine.session_for(&prompt)?;
        writer.skip(n_cached);
        self.n_started += 1;
        self.stats.started += 1;
        self.stats.cached_tokens += n_cached as u64;
        let id = RequestId(self.n_started);
        self.slots.push(Slot {
            id,
            session,
            writer,
            n_prompt: prompt.len(),
            n_cached,
            is_reading: true,
            n_done: 0,
            usage: Usage::default(),
            n_rows: 0,
            has_ended: false,
        });
        Ok(id)
    }

    /// Ends a generation, wherever it is; nothing more is heard of it. Another can begin at once.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(index) = self.slots.iter().position(|slot| slot.id == id) {
            let slot = self.slots.remove(index);
            self.stats.cancelled += 1;
            self.engine.remember(&slot.session);
        }
    }

    /// Computes one pass, and calls `on` with what came of it: progress and steps, or the error with
    /// which a request ended. Also the step that a finish is set on is the last of its request.
    pub fn step(&mut self, on: &mut dyn FnMut(RequestId, Result<Event, Error>)) {
        self.say_what_is_free(on);
        self.remove_ended();
        self.plan_pass();
        if self.slots.iter().any(|slot| slot.n_rows > 0) {
            let error = self.run_pass().err();
            self.finish_pass(error, on);
        }
        self.remove_ended();
    }

    /// Ends what was cancelled, and says tokens that need no pass.
    fn say_what_is_free(&mut self, on: &mut dyn FnMut(RequestId, Result<Event, Error>)) {
        for slot in &mut self.slots {
            if slot.writer.is_cancelled() {
                self.stats.cancelled += 1;
                let usage = std::mem::take(&mut slot.usage);
                let step = slot.writer.end(FinishReason::Cancelled, usage);
                slot.has_ended = true;
                on(slot.id, Ok(Event::Step(step)));
                continue;
            }
            while let Some(step) = slot.writer.free_step() {
                self.stats.generated_tokens += 1;
                slot.has_ended = step.finish.is_some();
                on(slot.id, Ok(Event::Step(step)));
                if slot.has_ended {
                    break;
                }
            }
        }
    }

    /// Gives every sequence that decodes its row, and shares the rest of the pass: first runs of tokens
    /// that follow by themselves, which leave half of it to prompts, then prompts in turn.
    fn plan_pass(&mut self) {
        let n_decoding = self.slots.iter().filter(|slot| !slot.is_reading).count();
        let chunk = self.engine.prompt_chunk();
        let mut free = match n_decoding {
            0 => chunk,
            n => self.pace.rows().min(chunk - n),
        };
        let is_reading = self.slots.iter().any(|slot| slot.is_reading);
        let mut free_for_runs = if is_reading { free / 2 } else { free };
        for slot in &mut self.slots {
            slot.n_rows = 0;
            if !slot.is_reading {
                let run = (slot.n_pending() - 1).min(free_for_runs);
                free_for_runs -= run;
                free -= run;
                slot.n_rows = 1 + run;
            }
        }
        let split = self.slots.partition_point(|slot| slot.id <= self.last_read);
        let (before, after) = self.slots.split_at_mut(split);
        for slot in after.iter_mut().chain(before).filter(|slot| slot.is_reading) {
            slot.n_rows = slot.n_pending().min(free);
            free -= slot.n_rows;
            if slot.n_rows > 0 {
                self.last_read = slot.id;
            }
        }
    }

    fn run_pass(&mut self) -> Result<(), Error> {
        let in_pass = self.slots.iter().filter(|slot| slot.n_rows > 0);
        let wants_logits = in_pass.map(|slot| {
            let last = slot.will_choose().then(|| slot.n_rows - 1);
            move |row| Some(row) == last
        });
        let wants_logits: Vec<_> = wants_logits.collect();
        // The best tokens are enough if that goes for all.
        let mut choosing = self.slots.iter().filter(|slot| slot.n_rows > 0 && slot.will_choose());
        let first = choosing.next().and_then(|slot| slot.writer.best_of());
        let best_of = first.filter(|_| choosing.all(|slot| slot.writer.best_of() == first));
        let in_pass = self.slots.iter_mut().filter(|slot| slot.n_rows > 0);
        let parts = in_pass.zip(&wants_logits).map(|(slot, wants_logits)| {
            let tokens = &slot.writer.pending()[slot.n_done..][..slot.n_rows];
            Part { session: &mut slot.session, tokens, wants_logits }
        });
        let mut parts: Vec<_> = parts.collect();
        let n_rows: usize = parts.iter().map(|part| part.tokens.len()).sum();
        self.stats.passes += 1;
        self.stats.rows += n_rows as u64;
        let usage = self.engine.forward_for(&mut parts, best_of)?;
        self.pace.observe(n_rows, &usage);
        for slot in self.slots.iter_mut().filter(|slot| slot.n_rows > 0) {
            slot.usage += &Usage { tokens: slot.n_rows, ..usage };
        }
        Ok(())
    }

    /// Passes on what a pass gave: an error to those that it broke, logits to the others.
    fn finish_pass(
        &mut self,
        error: Option<Error>,
        on: &mut dyn FnMut(RequestId, Result<Event, Error>),
    ) {
        let error = error.map(Arc::new);
        let broke_some = self.slots.iter().any(|slot| slot.session.broken);
        let mut n_scores = 0;
        let mut began = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.n_rows > 0) {
            let scores = slot.will_choose().then(|| {
                n_scores += 1;
                self.engine.scores(n_scores - 1)
            });
            // An error that breaks no session refused the whole pass.
            if let Some(error) = error.clone().filter(|_| slot.session.broken || !broke_some) {
                self.stats.failed += 1;
                slot.has_ended = true;
                on(slot.id, Err(Error::Pass(error)));
                continue;
            }
            slot.n_done += slot.n_rows;
            if slot.is_reading {
                let done = (slot.n_cached + slot.n_done).min(slot.n_prompt);
                let (total, cached) = (slot.n_prompt, slot.n_cached);
                self.stats.prompt_tokens += slot.n_rows as u64;
                on(slot.id, Ok(Event::Progress { done, total, cached }));
            }
            let Some(scores) = scores.flatten() else { continue };
            let usage = std::mem::take(&mut slot.usage);
            let step = slot.writer.choose(slot.session.tokens(), scores, usage);
            slot.n_done = 0;
            match &step {
                Ok(step) => {
                    self.stats.generated_tokens += u64::from(step.token.is_some());
                    slot.has_ended = step.finish.is_some();
                }
                Err(_) => {
                    self.stats.failed += 1;
                    slot.has_ended = true;
                }
            }
            on(slot.id, step.map(Event::Step));
            if slot.is_reading {
                slot.is_reading = false;
                began.push(index);
            }
        }
        // Others may begin with the same prompt while this one is answered.
        for index in began {
            self.engine.remember_in_memory(&self.slots[index].session);
        }
    }

    /// Gives back the sessions of requests that have ended, and keeps what they computed.
    fn remove_ended(&mut self) {
        for slot in self.slots.extract_if(.., |slot| slot.has_ended) {
            self.engine.remember(&slot.session);
        }
    }
}
