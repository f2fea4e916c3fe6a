//! A decoder-only transformer of pre-norm layers, and its forward pass.

use checkpoint::ModelConfig;
use compute::{AttentionSpec, Backend, DeltaNetSpec, Matrix, Routing};

use crate::batch::Batch;
use crate::blocks::{Attention, AttentionScratch, DeltaNet, DeltaNetScratch, Moe, MoeScratch};
use crate::source::{ExpertSource, SourceError};
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
    pub(crate) moe_norm: V,
    pub(crate) moe: Moe<M>,
}

/// What mixes a token with those before it.
#[derive(Debug)]
pub(crate) enum Mixer<M, V> {
    Attention(Attention<M, V>),
    DeltaNet(DeltaNet<M, V>),
}

impl<V> Decoder<Matrix, V> {
    /// Computes the rows of a batch, after what `states` (one a span) have seen, and leaves the
    /// wanted logits in the workspace.
    ///
    /// On an error the states are in between two tokens and must not be used again.
    pub fn forward<B: Backend<Vector = V>>(
        &self,
        workspace: &mut Workspace<B>,
        batch: &Batch,
        states: &mut [&mut SequenceState<B>],
        experts: &mut dyn ExpertSource,
    ) -> Result<(), SourceError> {
        let Workspace { backend, scratch, log, logits } = workspace;
        let Scratch { x, normed, mixed, wanted, head, attention, delta_net, moe } = scratch;
        let ForwardLog { timeline, routing: routing_log } = log;
        let (spans, eps) = (batch.spans.as_slice(), self.config.rms_norm_eps);
        timeline.begin();
        backend.embed(&self.embed_tokens, &batch.tokens, x);
        timeline.lap(None, Phase::Embedding);

        for (index, layer) in self.layers.iter().enumerate() {
            backend.rms_norm(x, &layer.mixer_norm, eps, normed);
            match &layer.mixer {
                Mixer::Attention(block) => {
                    let mut caches: Vec<_> =
                        states.iter_mut().map(|state| state.layers[index].kv_cache()).collect();
                    block.forward(backend, attention, spans, &mut caches, normed, mixed);
                }
                Mixer::DeltaNet(block) => {
                    let mut deltas: Vec<_> =
                        states.iter_mut().map(|state| state.layers[index].delta_state()).collect();
                    block.forward(backend, delta_net, spans, &mut deltas, normed, mixed);
                }
            }
            backend.add(x, mixed);
            timeline.lap(Some(index), layer.mixer.phase());

            backend.rms_norm(x, &layer.moe_norm, eps, normed);
            layer.moe.route(backend, moe, normed);
            experts.request(index, moe.distinct_experts())?;
            timeline.lap(Some(index), Phase::Router);
            layer.moe.shared_expert(backend, moe, normed);
            timeline.lap(Some(index), Phase::SharedExpert);
            while let Some((expert, weights)) = experts.next_ready()? {
                timeline.lap(Some(index), Phase::ExpertWait);
                layer.moe.routed_expert(backend, moe, normed, expert, &weights);
                timeline.lap(Some(index), Phase::Experts);
            }
            layer.moe.combine(backend, moe, x);
            timeline.lap(Some(index), Phase::Experts);
            if let Some(routing_log) = routing_log {
                routing_log.push(moe.routing.clone());
            }
        }

        logits.clear();
        if !batch.logit_rows.is_empty() {
            backend.gather(x, &batch.logit_rows, wanted);
            backend.rms_norm(wanted, &self.norm, eps, normed);
            let lm_head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
            backend.project(normed, &[lm_head], &mut [head]);
            backend.download(head, logits);
        }
        for (state, span) in states.iter_mut().zip(spans) {
            state.position += span.len;
        }
        timeline.lap(None, Phase::Head);
        Ok(())
    }

    /// The empty state of a sequence of at most `max_positions` tokens.
    pub fn sequence_state<B: Backend<Vector = V>>(
        &self,
        backend: &B,
        max_positions: usize,
    ) -> SequenceState<B> {
        let layers = self.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Attention(block) => {
                LayerState::Attention(backend.kv_cache(&block.spec, max_positions))
            }
            Mixer::DeltaNet(block) => LayerState::DeltaNet(backend.delta_state(&block.spec)),
        });
        SequenceState { position: 0, layers: layers.collect() }
    }
}

impl<M, V> Decoder<M, V> {
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
    fn kv_cache(&mut self) -> &mut B::KvCache {
        match self {
            Self::Attention(cache) => cache,
            Self::DeltaNet(_) => panic!("a state was used with another model than its own"),
        }
    }

    fn delta_state(&mut self) -> &mut B::DeltaState {
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
    /// The wanted logits of the last pass, (logit_rows, vocab_size).
    pub logits: Vec<f32>,
    scratch: Scratch<B>,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for batches of at most `max_rows` rows, of which at most `max_logit_rows` want logits.
    pub fn new(backend: B, config: &ModelConfig, max_rows: usize, max_logit_rows: usize) -> Self {
        let hidden = config.hidden_size;
        let scratch = Scratch {
            x: backend.buffer(max_rows, hidden),
            normed: backend.buffer(max_rows.max(max_logit_rows), hidden),
            mixed: backend.buffer(max_rows, hidden),
            wanted: backend.buffer(max_logit_rows, hidden),
            head: backend.buffer(max_logit_rows, config.vocab_size),
            attention: AttentionScratch::new(&backend, &config.attention, max_rows),
            delta_net: DeltaNetScratch::new(&backend, &config.delta_net, max_rows),
            moe: MoeScratch::new(&backend, hidden, &config.moe, max_rows),
        };
        Self { backend, log: ForwardLog::new(config), logits: Vec::new(), scratch }
    }

    /// Bytes of such buffers, with the host's copy of the logits.
    pub fn bytes(config: &ModelConfig, max_rows: usize, max_logit_rows: usize) -> u64 {
        let hidden = config.hidden_size;
        let per_row = 3 * hidden
            + AttentionScratch::<B>::widths(&config.attention).iter().sum::<usize>()
            + DeltaNetScratch::<B>::widths(&config.delta_net).iter().sum::<usize>()
            + MoeScratch::<B>::values_per_row(hidden, &config.moe);
        let per_logit_row = hidden + 2 * config.vocab_size;
        (size_of::<f32>() * (max_rows * per_row + max_logit_rows * per_logit_row)) as u64
    }
}

/// The buffers of a forward pass.
struct Scratch<B: Backend> {
    /// The residual stream.
    x: B::Buffer,
    normed: B::Buffer,
    mixed: B::Buffer,
    /// Rows of the residual stream whose logits are wanted.
    wanted: B::Buffer,
    head: B::Buffer,
    attention: AttentionScratch<B>,
    delta_net: DeltaNetScratch<B>,
    moe: MoeScratch<B>,
}

/// What a forward pass tells about itself.
#[derive(Debug)]
pub struct ForwardLog {
    /// Where the time went.
    pub timeline: Timeline,
    /// When there, every layer's routing is appended to it.
    pub routing: Option<Vec<Routing>>,
}

impl ForwardLog {
    /// An empty log that keeps times only.
    pub fn new(config: &ModelConfig) -> Self {
        Self { timeline: Timeline::new(config.mixers.len()), routing: None }
    }
}
