//! A decoder-only transformer of pre-norm layers, and its forward pass.

use checkpoint::{FfnKind, MixerKind, ModelConfig, VectorKind};
use compute::{
    AttentionSpec, Backend, DeltaNetSpec, ExpertWeights, LoadedExpert, Memory, NextNorm, Routing,
};

use crate::batch::Batch;
use crate::blocks::{
    Attention, AttentionScratch, DeltaNet, DeltaNetScratch, MOST_ROWS_AHEAD, Moe, MoeScratch,
    load_swiglu,
};
use crate::lossy::Lossy;
use crate::router_log::RouterLog;
use crate::source::{ExpertSource, SourceError, WeightSource};
use crate::timeline::{Phase, Timeline};

/// A model: its trunk's weights in the order in which they are used.
#[derive(Debug)]
pub struct Decoder<M, V> {
    pub(crate) config: ModelConfig,
    pub(crate) embed_tokens: M,
    pub(crate) layers: Vec<Layer<M, V>>,
    pub(crate) norm: V,
    /// `None` when the embedding serves as the head.
    pub(crate) lm_head: Option<M>,
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer<M, V> {
    pub(crate) mixer_norm: V,
    pub(crate) mixer: Mixer<M, V>,
    pub(crate) ffn_norm: V,
    pub(crate) ffn: Ffn<M>,
}

/// What follows the mixer.
#[derive(Debug)]
pub(crate) enum Ffn<M> {
    Moe(Moe<M>),
    Dense(ExpertWeights<M>),
}

/// How a family norms: the meaning of stored weights, and the epsilon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) kind: VectorKind,
    pub(crate) eps: f32,
}

/// What mixes a token with those before it.
#[derive(Debug)]
pub(crate) enum Mixer<M, V> {
    Attention(Attention<M, V>),
    DeltaNet(DeltaNet<M, V>),
}

impl<M, V> Decoder<M, V> {
    /// Computes the rows of a batch, after what `states` (one a span) have seen, and leaves the
    /// wanted logits in the workspace.
    ///
    /// On an error the states are in between two tokens and must not be used again.
    pub fn forward<B: Backend<Matrix = M, Vector = V>>(
        &self,
        workspace: &mut Workspace<B>,
        batch: &Batch,
        states: &mut [&mut SequenceState<B>],
        experts: &mut dyn ExpertSource,
    ) -> Result<(), SourceError> {
        let Workspace { backend, scratch, log, logits, best } = workspace;
        let Scratch { x, normed, mixed, wanted, head, attention, delta_net, moe, ready } = scratch;
        let ForwardLog { timeline, held_uses, routing: routing_log, routers, observer } = log;
        // Whoever records requests must see them all; whoever logs or changes choices must have them on the
        // host.
        let is_recorded = experts.records_requests();
        let is_logged = routing_log.is_some() || routers.is_some() || observer.is_some();
        let on_host = is_recorded || is_logged || moe.changes_choice();
        let (spans, eps) = (batch.spans.as_slice(), self.config.rms_norm_eps);
        let n_rows = batch.tokens.len();
        // Each wait for such a device costs more than a worse prediction: one a layer serves the choice and
        // the prediction, which is made before this layer's experts are known instead of after them.
        let is_apart = matches!(backend.memory(), Memory::Own(_));
        let is_ahead = is_apart && !on_host && n_rows <= MOST_ROWS_AHEAD;
        timeline.begin();
        backend.embed(&self.embed_tokens, &batch.tokens, x);
        backend.rms_norm(x, self.norm_before(0), eps, normed);
        timeline.lap(None, Phase::Embedding);

        // Each sum of the residual stream is normed at once for what reads it next.
        for (index, layer) in self.layers.iter().enumerate() {
            if let Some(routers) = routers {
                let buffers = [&mut *mixed, &mut moe.logits];
                routers.before_mixer(backend, &self.layers, index, eps, x, buffers);
            }
            match &layer.mixer {
                Mixer::Attention(block) => {
                    with_all(
                        states,
                        |state| state.layers[index].kv_cache(),
                        |caches| {
                            block.forward(backend, attention, spans, caches, normed, mixed);
                        },
                    );
                }
                Mixer::DeltaNet(block) => {
                    let delta_net = delta_net.as_mut().expect("a model with delta nets has it");
                    with_all(
                        states,
                        |state| state.layers[index].delta_state(),
                        |deltas| {
                            block.forward(backend, delta_net, spans, deltas, normed, mixed);
                        },
                    );
                }
            }
            backend.add_norm(x, mixed, NextNorm { weight: &layer.ffn_norm, eps, out: normed });
            timeline.lap(Some(index), layer.mixer.phase());

            let next_norm = self.norm_before(index + 1);
            let block = match &layer.ffn {
                Ffn::Moe(block) => block,
                Ffn::Dense(weights) => {
                    backend.swiglu(normed, weights, mixed);
                    backend.add_norm(x, mixed, NextNorm { weight: next_norm, eps, out: normed });
                    timeline.lap(Some(index), Phase::SharedExpert);
                    continue;
                }
            };
            if backend.holds_all(index) && !on_host {
                let norm = NextNorm { weight: next_norm, eps, out: normed };
                *held_uses += block.held(backend, moe, (index, n_rows), x, norm) as u64;
                timeline.lap(Some(index), Phase::Experts);
                continue;
            }
            // The next layer's router, on what it will see but for this layer's experts and its mixer's part.
            let next = self.next_block(index).filter(|_| {
                is_ahead
                    && !backend.holds_all(index + 1)
                    && experts.wants_prediction(index + 1, n_rows)
            });
            if is_ahead {
                if let Some((norm, _)) = next {
                    backend.rms_norm(x, norm, eps, mixed);
                }
                let next = next.map(|(_, next)| (next, &*mixed));
                block.route_ahead(backend, moe, index, (normed, n_rows), next);
            } else {
                block.route(backend, moe, normed, |expert| experts.is_resident(index, expert));
            }
            backend.check()?;
            if let Some(routers) = routers {
                routers.routed(backend, &moe.logits);
            }
            if !is_recorded {
                for &expert in moe.uses.distinct().iter().filter(|e| backend.holds(index, **e)) {
                    experts.used_on_device(index, expert, moe.uses.of(expert).len());
                }
                *held_uses += block.take_held(backend, moe, index, normed) as u64;
            }
            experts.request(index, &moe.uses)?;
            if let Some(ExpertObserver { observe, x }) = observer {
                backend.download(normed, x);
                observe(index, x, &moe.routing);
            }
            if next.is_some() {
                let is_held = |expert| backend.holds(index + 1, expert);
                experts.look_ahead(index + 1, &moe.predicted, &is_held);
            }
            timeline.lap(Some(index), Phase::Router);
            if !is_ahead {
                block.shared_expert(backend, moe, normed);
                timeline.lap(Some(index), Phase::SharedExpert);
            }
            loop {
                experts.next_ready(ready)?;
                timeline.lap(Some(index), Phase::ExpertWait);
                if ready.is_empty() {
                    break;
                }
                block.routed_experts(backend, moe, index, normed, ready);
                ready.clear();
                timeline.lap(Some(index), Phase::Experts);
            }
            block.combine(backend, moe, x, NextNorm { weight: next_norm, eps, out: normed });
            timeline.lap(Some(index), Phase::Experts);
            if let Some(routing_log) = routing_log {
                routing_log.push(moe.routing.clone());
            }
            // The next layer's router, on what it will see but for its mixer's part.
            if let Some((norm, next)) = self.next_block(index)
                && !is_ahead
                && !backend.holds_all(index + 1)
                && experts.wants_prediction(index + 1, n_rows)
            {
                backend.rms_norm(x, norm, eps, mixed);
                let is_resident = |expert| experts.is_resident(index + 1, expert);
                let predicted = next.predict(backend, moe, mixed, is_resident);
                let is_held = |expert| backend.holds(index + 1, expert);
                experts.look_ahead(index + 1, predicted, &is_held);
                timeline.lap(Some(index), Phase::Router);
            }
        }

        logits.clear();
        best.clear();
        if !batch.logit_rows.is_empty() {
            let lm_head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
            // Those of a prompt's rows that logits are wanted of. In decoding they are all rows.
            if batch.logit_rows.len() < n_rows {
                backend.gather(normed, &batch.logit_rows, wanted);
                backend.project(wanted, &[lm_head], &mut [head]);
            } else {
                backend.project(normed, &[lm_head], &mut [head]);
            }
            match batch.best_of {
                None => backend.download(head, logits),
                Some(n) => {
                    let shape = (batch.logit_rows.len(), n.min(self.config.vocab_size));
                    backend.best(head, shape, logits, best);
                    logits.clear();
                }
            }
        }
        backend.check()?;
        for (state, span) in states.iter_mut().zip(spans) {
            state.position += span.len;
        }
        timeline.lap(None, Phase::Head);
        Ok(())
    }

    /// The empty state of a sequence of at most `max_positions` tokens.
    pub fn sequence_state<B: Backend>(
        &self,
        backend: &B,
        max_positions: usize,
    ) -> SequenceState<B> {
        let layers = (0..self.layers.len()).map(|i| self.layer_state(backend, i, max_positions));
        SequenceState { position: 0, layers: layers.collect() }
    }

    /// The empty state of one layer.
    pub(crate) fn layer_state<B: Backend>(
        &self,
        backend: &B,
        index: usize,
        max_positions: usize,
    ) -> LayerState<B> {
        match &self.layers[index].mixer {
            Mixer::Attention(block) => {
                LayerState::Attention(backend.kv_cache(&block.spec, max_positions))
            }
            Mixer::DeltaNet(block) => LayerState::DeltaNet(backend.delta_state(&block.spec)),
        }
    }
}

impl<M, V> Decoder<M, V> {
    /// The routed experts of the layer after `index`, with the weight of the norm before them.
    fn next_block(&self, index: usize) -> Option<(&V, &Moe<M>)> {
        match self.layers.get(index + 1)? {
            Layer { ffn_norm, ffn: Ffn::Moe(next), .. } => Some((ffn_norm, next)),
            Layer { ffn: Ffn::Dense(_), .. } => None,
        }
    }

    /// The weight of the norm before a layer's mixer, or before the head.
    fn norm_before(&self, index: usize) -> &V {
        self.layers.get(index).map_or(&self.norm, |layer| &layer.mixer_norm)
    }

    /// Loads a decoder of the usual names, whose mixers `load_mixer` gives by name and kind.
    pub(crate) fn load<S: WeightSource<Matrix = M, Vector = V>>(
        config: &ModelConfig,
        source: &mut S,
        norm: VectorKind,
        load_mixer: impl Fn(&mut S, &str, MixerKind) -> Result<Mixer<M, V>, S::Error>,
    ) -> Result<Self, S::Error> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed_tokens = source.matrix("embed_tokens.weight", vocab, hidden)?;
        let mut layers = Vec::with_capacity(config.mixers.len());
        for (index, (mixer, ffn)) in config.mixers.iter().zip(&config.ffns).enumerate() {
            let layer = format!("layers.{index}");
            let name = format!("{layer}.input_layernorm.weight");
            let mixer_norm = source.vector(&name, hidden, norm)?;
            let mixer = load_mixer(source, &layer, *mixer)?;
            let name = format!("{layer}.post_attention_layernorm.weight");
            let ffn_norm = source.vector(&name, hidden, norm)?;
            let name = crate::expert_block_name(index);
            let ffn = match *ffn {
                FfnKind::Moe => Ffn::Moe(Moe::load(source, &name, hidden, &config.moe)?),
                FfnKind::Dense(width) => Ffn::Dense(load_swiglu(source, &name, hidden, width)?),
            };
            layers.push(Layer { mixer_norm, mixer, ffn_norm, ffn });
        }
        let norm = source.vector("norm.weight", hidden, norm)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(source.matrix("lm_head.weight", vocab, hidden)?),
        };
        Ok(Self { config: config.clone(), embed_tokens, layers, norm, lm_head })
    }

    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of the state of a sequence that has reached `max_positions`.
    pub fn sequence_state_bytes<B: Backend>(&self, backend: &B, max_positions: usize) -> u64 {
        let bytes = self.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Attention(block) => backend.kv_cache_bytes(&block.spec, max_positions),
            Mixer::DeltaNet(block) => backend.delta_state_bytes(&block.spec),
        });
        bytes.sum()
    }

    /// Dimensions of the first attention layer, if there is one; all are alike.
    pub fn attention_spec(&self) -> Option<&AttentionSpec> {
        self.layers.iter().find_map(|layer| match &layer.mixer {
            Mixer::Attention(block) => Some(&block.spec),
            Mixer::DeltaNet(_) => None,
        })
    }

    /// Dimensions of the first gated delta net, if there is one; all are alike.
    pub fn delta_net_spec(&self) -> Option<&DeltaNetSpec> {
        self.layers.iter().find_map(|layer| match &layer.mixer {
            Mixer::Attention(_) => None,
            Mixer::DeltaNet(block) => Some(&block.spec),
        })
    }
}

impl<M, V> Mixer<M, V> {
    fn phase(&self) -> Phase {
        match self {
            Self::Attention(_) => Phase::Attention,
            Self::DeltaNet(_) => Phase::DeltaNet,
        }
    }
}

/// Calls `use_all` with what `part` gives of each state. One sequence, the common case, needs no list.
fn with_all<'a, S, T: 'a>(
    states: &'a mut [S],
    mut part: impl FnMut(&'a mut S) -> &'a mut T,
    use_all: impl FnOnce(&mut [&'a mut T]),
) {
    match states {
        [one] => use_all(&mut [part(one)]),
        many => use_all(&mut many.iter_mut().map(part).collect::<Vec<_>>()),
    }
}

/// What a sequence carries from token to token: one state a layer.
pub struct SequenceState<B: Backend> {
    /// Tokens seen.
    pub position: usize,
    /// The states of the layers, in order.
    pub layers: Vec<LayerState<B>>,
}

/// The state of one layer of a sequence.
pub enum LayerState<B: Backend> {
    /// Keys and values of an attention layer.
    Attention(B::KvCache),
    /// Convolution inputs and delta-rule state.
    DeltaNet(B::DeltaState),
}

impl<B: Backend> LayerState<B> {
    pub(crate) fn kv_cache(&mut self) -> &mut B::KvCache {
        match self {
            Self::Attention(cache) => cache,
            Self::DeltaNet(_) => panic!("a state was used with another model than its own"),
        }
    }

    pub(crate) fn delta_state(&mut self) -> &mut B::DeltaState {
        match self {
            Self::DeltaNet(state) => state,
            Self::Attention(_) => panic!("a state was used with another model than its own"),
        }
    }
}

/// A device with what a forward pass needs on it, allocated once for a largest batch.
pub struct Workspace<B: Backend> {
    /// The device.
    pub backend: B,
    /// What the last passes tell about themselves.
    pub log: ForwardLog,
    /// The wanted logits of the last pass, (logit_rows, vocab_size); empty if the best tokens were wanted.
    pub logits: Vec<f32>,
    /// The best tokens, if they were wanted; `None` where logits are not finite.
    pub best: Vec<Option<u32>>,
    pub(crate) scratch: Scratch<B>,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for batches of at most `max_rows` rows, of which at most `max_logit_rows` want logits.
    pub fn new(backend: B, config: &ModelConfig, max_rows: usize, max_logit_rows: usize) -> Self {
        let hidden = config.hidden_size;
        let scratch = Scratch {
            x: backend.buffer(max_rows, hidden),
            normed: backend.buffer(max_rows, hidden),
            mixed: backend.buffer(max_rows, hidden),
            wanted: backend.buffer(max_logit_rows, hidden),
            head: backend.buffer(max_logit_rows, config.vocab_size),
            attention: AttentionScratch::new(&backend, &config.attention, max_rows),
            delta_net: config
                .delta_net
                .map(|config| DeltaNetScratch::new(&backend, &config, max_rows)),
            moe: MoeScratch::new(&backend, hidden, &config.moe, max_rows),
            ready: Vec::new(),
        };
        let (logits, best) = (Vec::new(), Vec::new());
        Self { backend, log: ForwardLog::new(config), logits, best, scratch }
    }

    /// Changes what passes compute from now on.
    pub fn set_lossy(&mut self, lossy: Lossy) {
        self.scratch.moe.set_lossy(lossy);
    }

    /// Bytes of such buffers, with the host's copy of the logits.
    pub fn bytes(config: &ModelConfig, max_rows: usize, max_logit_rows: usize) -> u64 {
        let hidden = config.hidden_size;
        let per_row = 3 * hidden
            + AttentionScratch::<B>::widths(&config.attention).iter().sum::<usize>()
            + config
                .delta_net
                .map_or(0, |config| DeltaNetScratch::<B>::widths(&config).iter().sum())
            + MoeScratch::<B>::values_per_row(hidden, &config.moe);
        let per_logit_row = hidden + 2 * config.vocab_size;
        (size_of::<f32>() * (max_rows * per_row + max_logit_rows * per_logit_row)) as u64
    }
}

/// The buffers of a forward pass.
pub(crate) struct Scratch<B: Backend> {
    /// The residual stream.
    pub(crate) x: B::Buffer,
    pub(crate) normed: B::Buffer,
    pub(crate) mixed: B::Buffer,
    /// Normed rows of the residual stream whose logits are wanted.
    pub(crate) wanted: B::Buffer,
    pub(crate) head: B::Buffer,
    pub(crate) attention: AttentionScratch<B>,
    pub(crate) delta_net: Option<DeltaNetScratch<B>>,
    pub(crate) moe: MoeScratch<B>,
    /// Experts between their arrival and their arithmetic.
    pub(crate) ready: Vec<LoadedExpert>,
}

/// What a forward pass tells about itself.
#[derive(Debug)]
pub struct ForwardLog {
    /// Where the time went.
    pub timeline: Timeline,
    /// How often rows used experts that the device held.
    pub held_uses: u64,
    /// When there, every layer's routing is appended to it.
    pub routing: Option<Vec<Routing>>,
    /// When there, what every layer's router saw and said is appended to it.
    pub routers: Option<RouterLog>,
    /// When there, it sees what every layer's experts are given.
    pub observer: Option<ExpertObserver>,
}

/// Sees the layer's index, the rows that its routed experts are applied to, (rows, hidden), and who uses
/// which expert.
pub type ObserveExperts = Box<dyn FnMut(usize, &[f32], &Routing) + Send>;

/// Somebody who sees what the experts of every layer are given: what a quantiser has to know of them.
pub struct ExpertObserver {
    observe: ObserveExperts,
    /// The host's copy of the rows.
    x: Vec<f32>,
}

impl ExpertObserver {
    /// An observer that calls this.
    pub fn new(observe: ObserveExperts) -> Self {
        Self { observe, x: Vec::new() }
    }
}

impl std::fmt::Debug for ExpertObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExpertObserver").finish_non_exhaustive()
    }
}

impl ForwardLog {
    /// An empty log that keeps times only.
    pub fn new(config: &ModelConfig) -> Self {
        let timeline = Timeline::new(config.mixers.len());
        Self { timeline, held_uses: 0, routing: None, routers: None, observer: None }
    }
}
