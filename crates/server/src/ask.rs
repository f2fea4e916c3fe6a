//! A request as all APIs mean it: what to continue, how tokens are chosen, when to end.

use std::sync::Arc;
use std::time::Instant;

use chat::{ChatRequest, Prompt};
use engine::{GenerateOptions, Sampling};
use tokio::sync::mpsc;

use crate::app::App;
use crate::engine_thread::{Client, Job, Reservation, too_late};
use crate::error::{ApiError, Code};
use crate::fields::Fields;
use crate::reply::{Replies, Reply};
use crate::thinking::{self, ThinkingBudget};

/// Most choices of one request.
const MAX_CHOICES: usize = 16;
/// Most best tokens with their probabilities.
pub(crate) const MAX_LOGPROBS: usize = 20;
/// Most stop strings, and the longest of them.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// What to continue.
#[derive(Clone)]
pub(crate) enum Input {
    /// A conversation, in the model's template.
    Chat(Box<ChatRequest>),
    /// A text as it is: its own template, so that the text of a control token is that token.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

/// What to generate.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) input: Input,
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: Option<usize>,
    /// What `max_tokens` is called where the request comes from.
    pub(crate) max_tokens_name: &'static str,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: Option<usize>,
    /// Independent answers.
    pub(crate) n: usize,
    /// Begin a text's answer with the text.
    pub(crate) echo: bool,
    /// Most tokens of thinking.
    pub(crate) thinking_budget: Option<usize>,
}

impl Ask {
    /// One answer with the model's own sampling and a seed that nobody has asked for.
    pub(crate) fn new(app: &App, input: Input) -> Self {
        Self {
            input,
            sampling: Sampling { seed: app.next_seed(), ..app.model.sampling.clone() },
            max_tokens: None,
            max_tokens_name: "max_tokens",
            stop: Vec::new(),
            logprobs: None,
            n: 1,
            echo: false,
            thinking_budget: None,
        }
    }

    /// Reads the parameters of sampling, under the names that the APIs share; `repetition` is what this
    /// one calls the penalty for repetition.
    pub(crate) fn read_sampling(
        &mut self,
        fields: &mut Fields,
        repetition: &str,
    ) -> Result<(), ApiError> {
        let sampling = &mut self.sampling;
        for (name, value) in [
            ("temperature", &mut sampling.temperature),
            ("top_p", &mut sampling.top_p),
            ("min_p", &mut sampling.min_p),
            ("presence_penalty", &mut sampling.presence_penalty),
            ("frequency_penalty", &mut sampling.frequency_penalty),
            (repetition, &mut sampling.repetition_penalty),
        ] {
            if let Some(given) = fields.opt(name)? {
                *value = given;
            }
        }
        if let Some(top_k) = fields.opt("top_k")? {
            sampling.top_k = top_k;
        }
        let path = fields.path("seed");
        if let Some(seed) = fields.take("seed") {
            let seed = seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
            sampling.seed =
                seed.ok_or_else(|| ApiError::invalid(path, "must be a whole number"))?;
        }
        sampling.validate().map_err(ApiError::from)
    }

    /// Reads the texts that end an answer: one, or a list.
    pub(crate) fn read_stop(&mut self, fields: &mut Fields, name: &str) -> Result<(), ApiError> {
        let path = fields.path(name);
        let stop: Vec<String> = match fields.take(name) {
            None => return Ok(()),
            Some(serde_json::Value::String(one)) => vec![one],
            Some(value) => serde_json::from_value(value)
                .map_err(|_| ApiError::invalid(&*path, "must be a text or a list of texts"))?,
        };
        let is_sound = |text: &String| !text.is_empty() && text.len() <= MAX_STOP_BYTES;
        if stop.len() > MAX_STOPS || !stop.iter().all(is_sound) {
            let why = format!(
                "must be at most {MAX_STOPS} texts, none empty and none longer than {MAX_STOP_BYTES} bytes"
            );
            return Err(ApiError::invalid(path, why));
        }
        self.stop = stop;
        Ok(())
    }

    /// Reads the number of answers.
    pub(crate) fn read_n(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        self.n = fields.opt("n")?.unwrap_or(1);
        if (1..=MAX_CHOICES).contains(&self.n) {
            return Ok(());
        }
        Err(ApiError::invalid("n", format!("must be from 1 to {MAX_CHOICES}")))
    }

    /// Reads the most tokens of an answer.
    pub(crate) fn read_max_tokens(
        &mut self,
        fields: &mut Fields,
        name: &'static str,
    ) -> Result<(), ApiError> {
        if let Some(limit) = fields.opt(name)? {
            if limit == 0 {
                return Err(ApiError::invalid(name, "must be at least 1"));
            }
            if self.max_tokens.is_some() {
                let why = format!("{} says it already", self.max_tokens_name);
                return Err(ApiError::invalid(name, why));
            }
            (self.max_tokens, self.max_tokens_name) = (Some(limit), name);
        }
        Ok(())
    }

    /// Makes the prompt and hands it to the engine.
    pub(crate) async fn submit(
        self,
        app: &Arc<App>,
        mut reservation: Reservation,
    ) -> Result<Replies, ApiError> {
        if self.n > app.options.queue {
            let why = format!("the server's queue is for {} answers", app.options.queue);
            return Err(ApiError::invalid("n", why));
        }
        reservation.widen(self.n)?;
        let begun = Instant::now();
        let preparing = Arc::clone(app);
        let deadline = begun + app.options.deadline;
        // Templates, tokenizing and grammars take a while for long conversations.
        let client = reservation.client();
        let work = move || self.prepare(&preparing, client, deadline);
        let (jobs, replies) = app.off_thread(work).await??;
        app.engine.submit(reservation, jobs)?;
        Ok(Replies::new(replies, Arc::clone(app), client, begun))
    }

    /// A job for each answer, and the ends that hear of them.
    fn prepare(
        mut self,
        app: &App,
        client: Client,
        deadline: Instant,
    ) -> Result<(Vec<Job>, Vec<Reply>), ApiError> {
        if deadline <= Instant::now() {
            return Err(too_late());
        }
        if let Input::Chat(request) = &mut self.input {
            request.said = app.said.of(client, &request.messages);
        }
        let mut jobs = Vec::new();
        let mut replies = Vec::new();
        let (tokens, mut constraint, parser) = self.prompt(app)?;
        self.check_length(tokens.len(), app)?;
        let is_constrained = constraint.is_some();
        for choice in 0..self.n {
            if is_constrained && constraint.is_none() {
                // A constraint is made with its prompt, and each choice needs one of its own.
                constraint = self.prompt(app)?.1;
            }
            let (listener, heard) = mpsc::unbounded_channel();
            let mut sampling = self.sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(choice as u64);
            let options = GenerateOptions {
                sampling,
                max_tokens: self.max_tokens,
                stop: Vec::new(),
                stop_tokens: app.model.stop_tokens.clone(),
                logprobs: self.logprobs,
                show_special: parser.is_some(),
                cancel: None,
            };
            replies.push(Reply::new(heard, tokens.len(), parser.clone(), self.stop.clone(), app));
            let (prompt, constraint) = (tokens.clone(), constraint.take());
            jobs.push(Job { prompt, options, constraint, deadline, listener });
        }
        Ok((jobs, replies))
    }

    fn prompt(&self, app: &App) -> Result<Prepared, ApiError> {
        match &self.input {
            Input::Chat(request) => {
                let Prompt { tokens, mut constraint, parser } =
                    app.chat()?.prompt(&app.tokenizer, request)?;
                if let Some(budget) = self.thinking_budget {
                    let marks = thinking::Marks::of(&app.tokenizer).ok_or_else(|| {
                        let why = "the model has no marks that end a thought";
                        ApiError::unsupported("thinking.budget_tokens", why)
                    })?;
                    let bound = ThinkingBudget::new(budget, marks, &tokens, constraint);
                    constraint = Some(Box::new(bound));
                }
                Ok((tokens, constraint, Some(parser)))
            }
            Input::Text(text) => Ok((app.tokenizer.encode_trusted(text)?, None, None)),
            Input::Tokens(tokens) => Ok((tokens.clone(), None, None)),
        }
    }

    /// Refuses what would be cut short without anybody having asked for it.
    fn check_length(&self, n_prompt: usize, app: &App) -> Result<(), ApiError> {
        let context = app.model.context;
        if n_prompt == 0 {
            return Err(ApiError::new(Code::InvalidValue, "the prompt is empty"));
        }
        let wanted = self.max_tokens.unwrap_or(1);
        // The last token needs no place in the context: nothing is computed after it.
        if n_prompt.saturating_add(wanted) <= context + 1 {
            return Ok(());
        }
        let name = self.max_tokens_name;
        let mut message = format!("the prompt has {n_prompt} tokens; the context holds {context}");
        if let Some(limit) = self.max_tokens {
            message = format!("{message}, and {name} asks for {limit} more");
        }
        Err(ApiError::new(Code::ContextLengthExceeded, message))
    }
}

type Prepared = (Vec<u32>, Option<Box<dyn engine::Constraint>>, Option<chat::ReplyParser>);
