//! What all handlers have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use chat::ChatModel;
use engine::{Engine, Sampling};
use serde_json::{Value, json};
use tokenizer::Tokenizer;
use tokio::sync::{Semaphore, watch};

use crate::PROMPT_THREADS;
use crate::engine_thread::EngineHandle;
use crate::error::{ApiError, Code};
use crate::metrics::Metrics;
use crate::options::{Error, ServerOptions};
use crate::said::Said;

/// What handlers need to know about the model.
#[derive(Debug)]
pub(crate) struct ModelFacts {
    pub(crate) sampling: Sampling,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) context: usize,
    pub(crate) vocab_size: usize,
    pub(crate) family: &'static str,
    pub(crate) experts_per_layer: Vec<usize>,
    pub(crate) experts_per_token: usize,
    pub(crate) device: String,
    /// What makes the output another than the model's own, if something does.
    pub(crate) lossy: Option<String>,
    /// Bytes of memory in all, of expert slots, and of all routed experts.
    pub(crate) memory: [u64; 3],
}

impl ModelFacts {
    fn of(engine: &Engine) -> Self {
        let (config, plan) = (engine.config(), engine.plan());
        Self {
            sampling: engine.default_sampling().clone(),
            stop_tokens: engine.stop_tokens().to_vec(),
            context: plan.context,
            vocab_size: config.vocab_size,
            family: config.family.name(),
            experts_per_layer: engine.resident_experts().map(Iterator::count).collect(),
            experts_per_token: config.moe.top_k,
            device: engine.device_name(),
            lossy: engine.lossy().is_on().then(|| engine.lossy().to_string()),
            memory: [plan.total, plan.experts, plan.all_experts],
        }
    }
}

/// What all handlers have in common.
pub(crate) struct App {
    pub(crate) options: ServerOptions,
    pub(crate) model: ModelFacts,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) engine: EngineHandle,
    pub(crate) metrics: Metrics,
    pub(crate) said: Said,
    /// Turns true when the server ends.
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) started: SystemTime,
    chat: Option<ChatModel>,
    counter: AtomicU64,
    /// Turns of long work.
    turns: Arc<Semaphore>,
}

impl App {
    /// Everything that is known before the engine goes to its thread, which `start` does.
    pub(crate) fn new(
        engine: &Engine,
        chat: Option<ChatModel>,
        options: ServerOptions,
    ) -> Result<impl FnOnce(EngineHandle) -> Self + use<>, Error> {
        let model = ModelFacts::of(engine);
        let tokenizer = engine.shared_tokenizer()?;
        Ok(move |engine| Self {
            options,
            model,
            tokenizer,
            engine,
            metrics: Metrics::default(),
            said: Said::default(),
            closing: watch::Sender::new(false),
            started: SystemTime::now(),
            chat,
            counter: AtomicU64::new(0),
            turns: Arc::new(Semaphore::new(PROMPT_THREADS)),
        })
    }

    /// The model's way to talk.
    pub(crate) fn chat(&self) -> Result<&ChatModel, ApiError> {
        self.chat.as_ref().ok_or_else(|| {
            let message = "the model has no chat template; it can continue texts (/v1/completions)";
            ApiError::new(Code::NoChatTemplate, message)
        })
    }

    /// Does long work elsewhere than on the threads that talk to clients. What waits for its turn when its
    /// caller goes away is not done.
    pub(crate) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = |error: &dyn std::error::Error| ApiError::failed(error.to_string());
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|error| failed(&error))?;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| failed(&error))
    }

    /// The name by which the model is told.
    pub(crate) fn model_name(&self) -> &str {
        self.options.model_names.first().map_or("", String::as_str)
    }

    /// Refuses models that are not here.
    pub(crate) fn check_model(&self, name: &str) -> Result<(), ApiError> {
        if self.options.model_names.iter().any(|known| known == name) {
            return Ok(());
        }
        let message =
            format!("the model {name:?} is not here; this server has {:?}", self.model_name());
        Err(ApiError::about(Code::ModelNotFound, "model", message))
    }

    /// What tells answers that are lossy from others, in the field that the API of OpenAI has for it.
    pub(crate) fn system_fingerprint(&self) -> Option<String> {
        self.model.lossy.as_ref().map(|lossy| format!("lossy: {lossy}"))
    }

    /// Digits that no other answer of this server has.
    pub(crate) fn next_id(&self) -> String {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{number:08x}", mix(self.start_ns()))
    }

    /// A seed for who has not asked for one.
    pub(crate) fn next_seed(&self) -> u64 {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        mix(self.start_ns().wrapping_add(number))
    }

    fn start_ns(&self) -> u64 {
        self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
    }

    /// The model and the machine, as the page shows them.
    pub(crate) fn describe(&self) -> Value {
        let [total, slots, all] = self.model.memory;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model_name(),
            "family": self.model.family,
            "device": self.model.device,
            "lossy": self.model.lossy,
            "can_chat": self.chat.is_some(),
            "context": self.model.context,
            "experts_per_layer": self.model.experts_per_layer,
            "experts_per_token": self.model.experts_per_token,
            "memory_bytes": total,
            "expert_slot_bytes": slots,
            "expert_bytes": all,
            "sampling": {
                "temperature": plain(self.model.sampling.temperature),
                "top_k": self.model.sampling.top_k,
                "top_p": plain(self.model.sampling.top_p),
            },
        })
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A number with the digits that people gave it, and not those of its wider form.
pub(crate) fn plain(number: f32) -> Value {
    number.to_string().parse::<f64>().ok().into()
}

/// Spreads a number over all bits (the finaliser of splitmix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
