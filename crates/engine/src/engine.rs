//! The engine: a loaded model, and sessions on it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use checkpoint::{EmbeddedText, ExpertTable, ModelConfig};
use compute::{Backend, Memory, Routing};
use experts::{DataFiles, ExpertStore, IoMode, ReaderReport, StoreOptions};
use model::{Batch, ExpertObserver, Lossy, ObserveExperts, RoutedLayer, RouterLog, Workspace};
use tokenizer::Tokenizer;
use trace::{Kind, Recorder, Span};

use crate::budget::MemoryPlan;
use crate::constraint::Constraint;
use crate::device::{OnDevice, check, on_device, settle};
use crate::error::Error;
use crate::generate::{GenerateOptions, Generation};
use crate::heat::{Heat, HeatReport, HeatSaveError};
use crate::held;
use crate::inventory::Inventory;
use crate::options::EngineOptions;
use crate::prefix_cache::key::identity;
use crate::prefix_cache::{PrefixCache, Shapes};
use crate::runner::{DecoderRunner, LayerValues, Runner, StreamedExperts};
use crate::sampler::Sampling;
use crate::session::{Permit, Session};
use crate::trunk::{load_trunk, sample_experts};
use crate::usage::Usage;
use crate::writer::Scores;

/// A loaded model on a device.
pub struct Engine {
    config: ModelConfig,
    sampling: Sampling,
    stop_tokens: Vec<u32>,
    tokenizer: Result<Arc<Tokenizer>, tokenizer::Error>,
    /// The template inside the checkpoint's own file.
    chat_template: Option<String>,
    device_reason: Option<String>,
    unknown_tensors: Vec<String>,
    /// Bytes of an expert, on average.
    expert_bytes: u64,
    plan: MemoryPlan,
    pub(crate) runner: Box<dyn Runner>,
    sessions: Arc<AtomicUsize>,
    session_limit: usize,
    batch: Batch,
    recorder: Option<Recorder>,
    lossy: Lossy,
    heat: Option<Heat>,
    /// What all passes cost.
    usage: Usage,
    pub(crate) prefix_cache: Option<PrefixCache>,
    /// Snapshots of the current pass: places among its parts, and blocks.
    pub(crate) marks: Vec<(usize, usize)>,
}

/// Tokens to compute for one of several sessions in one pass.
pub struct Part<'a> {
    /// The session.
    pub session: &'a mut Session,
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// For which of them logits are wanted.
    pub wants_logits: &'a dyn Fn(usize) -> bool,
}

/// The tokenizer that a checkpoint's file holds itself, or that lies beside it.
fn open_tokenizer(path: &Path, text: Option<&EmbeddedText>) -> Result<Tokenizer, tokenizer::Error> {
    match text.and_then(|text| text.tokenizer_json.as_ref()) {
        Some(json) => Tokenizer::from_json(path, json.as_bytes(), None),
        None => Tokenizer::open(path),
    }
}

/// How an engine with these options would spend memory on a checkpoint. The tokenizer is there while
/// this is found out, because it is part of what the process takes.
///
/// [`Device::Auto`](crate::Device::Auto) is settled anew by every call, which takes a measurement where
/// there is a GPU; [`settle_device`] does it once.
pub fn plan_memory(inventory: &Inventory, options: &EngineOptions) -> Result<MemoryPlan, Error> {
    let mut options = options.clone();
    settle_device(inventory, &mut options);
    check(&options, inventory)?;
    let checkpoint = &inventory.checkpoint;
    let _tokenizer = open_tokenizer(checkpoint.path(), checkpoint.text());
    let trunk = crate::trunk::resident_bytes(inventory);
    struct Plan<'a>(&'a Inventory, &'a EngineOptions, u64);
    impl OnDevice for Plan<'_> {
        type Output = MemoryPlan;

        fn run<B: Backend + Send + 'static>(self, backend: B) -> Result<MemoryPlan, Error> {
            MemoryPlan::new(self.0, &backend, self.1, self.2)
        }
    }
    on_device(&options, Plan(inventory, &options, trunk))
}

/// Puts the faster device for a checkpoint in the place of [`Device::Auto`](crate::Device::Auto), and tells
/// why it is that one; other devices stay, and there is nothing to tell.
pub fn settle_device(inventory: &Inventory, options: &mut EngineOptions) -> Option<String> {
    settle(options, inventory)
}

/// A checkpoint that is to be opened on a device.
struct Opening<'a> {
    inventory: Inventory,
    tokenizer: Result<Tokenizer, tokenizer::Error>,
    options: &'a EngineOptions,
}

impl OnDevice for Opening<'_> {
    type Output = Engine;

    fn run<B: Backend + Send + 'static>(self, backend: B) -> Result<Engine, Error> {
        Engine::on(self.inventory, self.tokenizer, backend, self.options)
    }
}

impl Engine {
    /// Opens a checkpoint: reads its directory, decides how memory is spent, loads the trunk. Routed
    /// experts stay on the drive until they are used.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, Error> {
        let mut inventory = Inventory::read(path)?;
        if !inventory.problems.is_empty() {
            let path = path.to_owned();
            return Err(Error::Incomplete { path, problems: inventory.problems });
        }
        inventory.add_twin(options)?;
        let text = inventory.checkpoint.take_text();
        let path = inventory.checkpoint.path();
        let tokenizer = open_tokenizer(path, text.as_ref());
        let chat_template = text.and_then(|text| text.chat_template);
        let mut options = options.clone();
        let device_reason = settle_device(&inventory, &mut options);
        check(&options, &inventory)?;
        let mut engine = on_device(&options, Opening { inventory, tokenizer, options: &options })?;
        engine.chat_template = chat_template;
        engine.device_reason = device_reason;
        Ok(engine)
    }

    /// Opens a checkpoint on a backend.
    pub(crate) fn on<B: Backend + Send + 'static>(
        mut inventory: Inventory,
        tokenizer: Result<Tokenizer, tokenizer::Error>,
        backend: B,
        options: &EngineOptions,
    ) -> Result<Self, Error> {
        let top_k = inventory.checkpoint.config().moe.top_k;
        if let Some(problem) = options.lossy.problem(top_k) {
            return Err(Error::Lossy(problem));
        }
        if options.lossy.twin_share <= 0.0 {
            inventory.twin = None;
        } else if inventory.twin.is_none() {
            let problem = "twins of experts are of a checkpoint, and none was given (--twin)";
            return Err(Error::Lossy(problem.to_owned()));
        }
        let mode = if options.direct_io { IoMode::Direct } else { IoMode::Buffered };
        let mut paths: Vec<_> =
            inventory.checkpoint.files().iter().map(|file| file.path.clone()).collect();
        paths.extend(inventory.twin.iter().flat_map(|twin| twin.files.clone()));
        let files = Arc::new(DataFiles::open(&paths, mode)?);
        let trunk_bytes = crate::trunk::resident_bytes(&inventory);
        let mut plan = MemoryPlan::new(&inventory, &backend, options, trunk_bytes)?;

        let (decoder, weights) = load_trunk(&inventory, &files, &backend, options.io_threads)?;
        let mut lossy = options.lossy.for_model(inventory.checkpoint.config().moe.top_k);
        // A device without memory of its own has nobody to share with.
        lossy.device_split &= backend.memory() != Memory::Host;
        let prefix_cache = options.prefix_cache.as_ref().map(|options| {
            let (mut numerics, is_shared) = (backend.numerics(), options.directory.is_some());
            if lossy.is_on() {
                numerics += &format!(", lossy: {lossy}");
            }
            let mut weights = vec![weights, sample_experts(&inventory.experts, &files)?];
            if let Some(twin) = &inventory.twin {
                weights.push(sample_experts(&twin.experts, &files)?);
            }
            let identity = identity(&inventory, &weights, &numerics, is_shared);
            PrefixCache::new(options, identity, Shapes::new(&decoder, &backend))
        });
        let prefix_cache = prefix_cache.transpose()?;
        let n_experts: usize = inventory.experts.iter().map(ExpertTable::len).sum();
        let expert_bytes = inventory.expert_bytes() / n_experts.max(1) as u64;
        let Inventory { checkpoint, experts, twin, leftover, .. } = inventory;
        let mut workspace =
            Workspace::new(backend, checkpoint.config(), plan.chunk, plan.logit_rows);
        workspace.set_lossy(lossy);
        workspace.log.timeline.record_to(options.recorder.clone());
        let is_held = held::reserve(&mut workspace.backend, &experts, &mut plan)?;
        let experts = match twin {
            Some(twin) => twin.behind(experts),
            None => experts,
        };
        let store_options = StoreOptions {
            cache_bytes: plan.experts,
            reader: options.reader,
            look_ahead: options.look_ahead,
            io_threads: options.io_threads,
            recorder: options.recorder.clone(),
            ..StoreOptions::default()
        };
        // Where the drive is read once, there is nothing to remember.
        let heat = match is_held {
            true => None,
            false => Heat::new(&options.heat_map, &paths, &experts),
        };
        let counts: Vec<usize> = experts.iter().map(ExpertTable::len).collect();
        let mut store = ExpertStore::new(files, experts, &store_options)?;
        workspace.backend.set_host_slots(store.n_slots());
        if is_held {
            held::load_all(&mut workspace.backend, &mut store, &counts)?;
        }
        let heat = heat.map(|(heat, map)| {
            if let Some(map) = map {
                store.recall(&map);
            }
            heat
        });
        let config = checkpoint.config().clone();
        let mut stop_tokens = checkpoint.generation().eos_token_ids.clone();
        stop_tokens.extend_from_slice(&config.eos_token_ids);
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Ok(Self {
            sampling: Sampling::from_generation_config(checkpoint.generation()),
            config,
            stop_tokens,
            tokenizer: tokenizer.map(Arc::new),
            chat_template: None,
            device_reason: None,
            unknown_tensors: leftover.unknown,
            expert_bytes,
            plan,
            runner: Box::new(DecoderRunner { decoder, workspace, experts: StreamedExperts(store) }),
            sessions: Arc::default(),
            session_limit: options.sessions,
            batch: Batch::default(),
            recorder: options.recorder.clone(),
            lossy,
            heat,
            usage: Usage::default(),
            prefix_cache,
            marks: Vec::new(),
        })
    }

    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        match &self.tokenizer {
            Ok(tokenizer) => Ok(tokenizer),
            Err(error) => Err(Error::NoTokenizer(error.to_string())),
        }
    }

    /// The same, for a thread that does not have the engine.
    pub fn shared_tokenizer(&self) -> Result<Arc<Tokenizer>, Error> {
        match &self.tokenizer {
            Ok(tokenizer) => Ok(Arc::clone(tokenizer)),
            Err(error) => Err(Error::NoTokenizer(error.to_string())),
        }
    }

    /// The chat template, if the checkpoint is a file that holds it itself.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// How the model's authors sample from it.
    pub fn default_sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Tokens that end the model's turn, from `generation_config.json` and `config.json`.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Names of tensors in the checkpoint that this program does not know and does not use.
    pub fn unknown_tensors(&self) -> &[String] {
        &self.unknown_tensors
    }

    /// How memory is spent.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// A name of the device for people.
    pub fn device_name(&self) -> String {
        self.runner.device_name()
    }

    /// Why it is that device, if the choice was left to a measurement.
    pub fn device_reason(&self) -> Option<&str> {
        self.device_reason.as_deref()
    }

    /// How it is decided who computes experts that are in memory, if not always the device.
    pub fn placement(&self) -> Option<String> {
        self.runner.placement()
    }

    /// Savings that change what the model says.
    pub fn lossy(&self) -> &Lossy {
        &self.lossy
    }

    /// What moving experts cost since the engine was opened.
    pub fn expert_stats(&self) -> experts::Stats {
        self.runner.experts().stats().clone()
    }

    /// What all passes since the engine was opened cost.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Which experts are in memory: of each layer in order, a flag for each of its experts.
    pub fn resident_experts(&self) -> impl Iterator<Item = impl Iterator<Item = bool>> {
        self.runner.experts().residents()
    }

    /// How experts are read, and why so.
    pub fn reader(&self) -> &ReaderReport {
        self.runner.experts().reader()
    }

    /// The heat map and what came of it, if one is kept.
    pub fn heat_map(&self) -> Option<&HeatReport> {
        self.heat.as_ref().map(Heat::report)
    }

    /// Writes the heat map, if one is kept and experts were asked for since it was written last. An
    /// engine that is dropped does so, too, and tells nobody if it fails.
    pub fn save_heat_map(&mut self) -> Result<(), HeatSaveError> {
        match &mut self.heat {
            Some(heat) => heat.save(self.runner.experts()),
            None => Ok(()),
        }
    }

    /// Reads experts that were hot in earlier runs into slots that are still empty, for so long or until
    /// nothing is left to do, which it tells. For callers that wait for work, in short turns.
    pub fn warm_up(&mut self, limit: Duration) -> bool {
        self.runner.experts_mut().warm_up(limit)
    }

    /// Sessions that can be live at once.
    pub fn session_limit(&self) -> usize {
        self.session_limit
    }

    /// Most prompt tokens in one forward pass.
    pub fn prompt_chunk(&self) -> usize {
        self.plan.chunk
    }

    /// Starts an empty session.
    pub fn session(&mut self) -> Result<Session, Error> {
        let limit = self.session_limit;
        let permit = Permit::take(&self.sessions, limit).ok_or(Error::TooManySessions { limit })?;
        let context = self.plan.context;
        Ok(Session::new(self.runner.new_state(context), context, permit))
    }

    /// Generates after `prompt`, which continues what the session holds.
    pub fn generate<'a>(
        &'a mut self,
        session: &'a mut Session,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Generation<'a>, Error> {
        self.generate_constrained(session, prompt, options, None)
    }

    /// Generates as [`Engine::generate`] does, and says only what the constraint allows.
    pub fn generate_constrained<'a>(
        &'a mut self,
        session: &'a mut Session,
        prompt: &[u32],
        options: GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Generation<'a>, Error> {
        Generation::new(self, session, prompt, options, constraint)
    }

    /// Appends tokens to a session, any number of them, and calls `visit` with the index and the
    /// logits of each token for which `wants_logits` says so.
    pub fn evaluate(
        &mut self,
        session: &mut Session,
        tokens: &[u32],
        wants_logits: impl Fn(usize) -> bool,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        let mut begin = 0;
        while begin < tokens.len() {
            // As many rows as the buffers hold, with as many logits as they hold.
            let mut end = begin;
            let mut wanted = 0;
            while end < tokens.len() && end - begin < self.plan.chunk {
                wanted += usize::from(wants_logits(end));
                if wanted > self.plan.logit_rows {
                    break;
                }
                end += 1;
            }
            let wants = |row: usize| wants_logits(begin + row);
            let part = Part { session, tokens: &tokens[begin..end], wants_logits: &wants };
            usage += &self.forward(&mut [part])?;
            let logits = self.runner.logits().chunks_exact(self.config.vocab_size);
            for (index, row) in (begin..end).filter(|&index| wants_logits(index)).zip(logits) {
                visit(index, row);
            }
            begin = end;
        }
        Ok(usage)
    }

    /// Computes tokens of several sessions in one pass; [`Engine::logits`] has the wanted logits
    /// afterwards, (rows, vocab_size), in the order of the parts.
    ///
    /// When experts cannot be read, none of the sessions can go on; when logits are not finite, only
    /// their own cannot.
    ///
    /// # Panics
    /// If there are more rows than [`Engine::prompt_chunk`], or more wanted logits than
    /// [`MemoryPlan::logit_rows`].
    pub fn forward(&mut self, parts: &mut [Part<'_>]) -> Result<Usage, Error> {
        self.forward_for(parts, None)
    }

    /// The same where no more than the best token may be wanted of each row of logits, out of the first so
    /// many: then [`Engine::scores`] has that, and there are no logits.
    pub(crate) fn forward_for(
        &mut self,
        parts: &mut [Part<'_>],
        best_of: Option<usize>,
    ) -> Result<Usage, Error> {
        let begin = Instant::now();
        self.batch.clear();
        self.batch.best_of = best_of;
        for part in parts.iter() {
            self.check_tokens(part.tokens)?;
            let session = &*part.session;
            if session.broken {
                return Err(Error::SessionBroken);
            }
            let needed = session.tokens.len() + part.tokens.len();
            if needed > session.context {
                return Err(Error::ContextFull { needed, context: session.context });
            }
            self.batch.push(part.tokens, session.tokens.len(), part.wants_logits);
        }
        assert!(self.batch.tokens.len() <= self.plan.chunk, "the batch fits the buffers");
        assert!(self.batch.logit_rows.len() <= self.plan.logit_rows, "the logits fit the buffers");

        self.mark_snapshots(parts);
        let position = parts.first().map_or(0, |part| part.session.tokens.len());
        let before = self.runner.experts().stats().clone();
        let handoffs = self.runner.handoffs();
        self.runner.log().timeline.reset();
        let held_uses = self.runner.log().held_uses;
        // One sequence, the common case, needs no list: decoding allocates nothing.
        let result = match &mut *parts {
            [one] => self.runner.forward(&self.batch, &mut [&mut one.session.state]),
            many => {
                let mut states: Vec<_> =
                    many.iter_mut().map(|part| &mut part.session.state).collect();
                self.runner.forward(&self.batch, &mut states)
            }
        };
        let mut result = result.map_err(|source| Error::Forward { position, source });
        let (vocab_size, best) = (self.config.vocab_size, self.runner.best().iter());
        let logits = self.runner.logits().chunks_exact(vocab_size);
        let is_finite = logits.map(|row| row.iter().all(|x| x.is_finite()));
        let mut is_finite = is_finite.chain(best.map(Option::is_some));
        for part in parts.iter_mut() {
            let session = &mut *part.session;
            session.broken = result.is_err();
            session.tokens.extend_from_slice(part.tokens);
            let wanted = (0..part.tokens.len()).filter(|&row| (part.wants_logits)(row));
            // Rows that were not computed are not there.
            for is_finite in wanted.filter_map(|_| is_finite.next()) {
                session.broken |= !is_finite;
            }
        }
        self.take_snapshots(parts);
        if let Some(part) = parts.iter().find(|part| part.session.broken) {
            let position = part.session.tokens.len();
            result = result.and(Err(Error::LogitsNotFinite { position }));
        }
        result?;
        let end = Instant::now();
        let n_tokens = self.batch.tokens.len();
        if let Some(recorder) = &self.recorder {
            let (kind, name, amount) = (Kind::Pass, "pass", n_tokens as u64);
            let (layer, expert) = (None, None);
            recorder.record(&Span { kind, name, begin, end, layer, expert, amount });
        }
        let after = self.runner.experts().stats().clone();
        let handoffs = self.runner.handoffs() - handoffs;
        let log = self.runner.log();
        let held_uses = log.held_uses - held_uses;
        let usage = Usage::of_pass(n_tokens, end - begin, &log.timeline, &before, &after);
        // The store does not see the uses of what a device holds.
        let used_bytes = usage.used_bytes + held_uses * self.expert_bytes;
        let usage = Usage { held_uses, handoffs, used_bytes, ..usage };
        self.usage += &usage;
        Ok(usage)
    }

    /// The wanted logits of the last pass; empty after one that only chose the best tokens, as a greedy step does.
    pub fn logits(&self) -> &[f32] {
        self.runner.logits()
    }

    /// What the last pass says of the next token after its row `index` of those that were asked for; `None`
    /// if it was not computed.
    pub(crate) fn scores(&self, index: usize) -> Option<Scores<'_>> {
        if self.batch.best_of.is_some() {
            return self.runner.best().get(index).copied().flatten().map(Scores::Best);
        }
        let mut rows = self.runner.logits().chunks_exact(self.config.vocab_size);
        rows.nth(index).map(Scores::Logits)
    }

    /// Starts or stops recording the routing of every layer of every pass.
    pub fn record_routing(&mut self, record: bool) {
        self.runner.log().routing = record.then(Vec::new);
    }

    /// The routing recorded since the last call: of each pass, every layer in order.
    pub fn take_routing(&mut self) -> Vec<Routing> {
        self.runner.log().routing.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts or stops recording what every layer's router sees and says, and what it would have said up
    /// to so many layers earlier. Passes should have few rows then: see [`RoutedLayer`].
    pub fn record_routers(&mut self, strides: Option<usize>) {
        self.runner.log().routers = strides.map(RouterLog::new);
    }

    /// What was recorded of routers since the last call: of each pass, every layer with routed experts in
    /// order.
    pub fn take_routers(&mut self) -> Vec<RoutedLayer> {
        let log = self.runner.log().routers.as_mut();
        log.map(|log| std::mem::take(&mut log.layers)).unwrap_or_default()
    }

    /// Has `observe` see what every layer's routed experts are given in every pass from now on, or nobody.
    /// Rows come in the order of the pass.
    pub fn observe_experts(&mut self, observe: Option<ObserveExperts>) {
        self.runner.log().observer = observe.map(ExpertObserver::new);
    }

    /// Writes which experts are asked for from now on to `out`, in the format of `docs/routing-trace.md`.
    pub fn record_trace(&mut self, out: Box<dyn Write + Send>) {
        self.runner.experts_mut().record_trace(out);
    }

    /// Ends the recording and tells whether all could be written.
    pub fn finish_trace(&mut self) -> std::io::Result<()> {
        self.runner.experts_mut().finish_trace()
    }

    /// The state of every layer of a session.
    pub fn state_values(&self, session: &Session) -> Vec<LayerValues> {
        self.runner.state_values(&session.state)
    }

    /// Refuses tokens outside the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<(), Error> {
        let vocab_size = self.config.vocab_size;
        match tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(Error::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody is there to be told; whoever wants to know has asked before.
        drop(self.save_heat_map());
    }
}
