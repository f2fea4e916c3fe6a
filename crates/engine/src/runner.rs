//! A loaded model on a device, behind one object-safe face, so that the engine does not care which.

use std::any::Any;

use compute::{Backend, DeltaStateValues, ExpertUses, Handoffs, KvValues, LoadedExpert, Routing};
use experts::ExpertStore;
use model::{
    Batch, Decoder, ExpertSource, ForwardLog, LayerPass, LayerState, SavedParts, SequenceState,
    SourceError, Workspace,
};

/// The state of a sequence; its type depends on the device.
pub(crate) type State = Box<dyn Any + Send>;

/// The state of one layer of a sequence, as plain values.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerValues {
    /// Keys and values of an attention layer.
    Attention(KvValues),
    /// Convolution inputs and delta-rule state.
    DeltaNet(DeltaStateValues),
}

/// A loaded model on a device.
pub(crate) trait Runner: Send {
    /// A name of the device for people.
    fn device_name(&self) -> String;
    /// See [`Backend::placement`].
    fn placement(&self) -> Option<String>;
    /// The empty state of a sequence of at most `context` tokens.
    fn new_state(&self, context: usize) -> State;
    /// Computes a batch; the wanted logits are in [`Runner::logits`] afterwards.
    fn forward(&mut self, batch: &Batch, states: &mut [&mut State]) -> Result<(), SourceError>;
    /// See [`Decoder::embedded`].
    fn embedded(&mut self, tokens: &[u32]) -> Vec<f32>;
    /// See [`Decoder::layer_pass`].
    fn layer_pass(
        &mut self,
        layer: usize,
        residual: &[f32],
        max_rows: usize,
    ) -> Result<LayerPass, SourceError>;
    /// What was said between program and device so far.
    fn handoffs(&self) -> Handoffs;
    /// The logits of the last pass.
    fn logits(&self) -> &[f32];
    /// The best tokens of the last pass, if those were wanted.
    fn best(&self) -> &[Option<u32>];
    /// What the passes tell about themselves.
    fn log(&mut self) -> &mut ForwardLog;
    /// The store of the routed experts.
    fn experts(&self) -> &ExpertStore;
    /// The same, to be told something.
    fn experts_mut(&mut self) -> &mut ExpertStore;
    /// See [`Decoder::save_kv_block`].
    fn save_kv_block(&self, state: &State, block: usize) -> SavedParts;
    /// See [`Decoder::load_kv_block`].
    fn load_kv_block(&self, state: &mut State, parts: &SavedParts);
    /// See [`Decoder::mark_snapshot`].
    fn mark_snapshot(&self, state: &mut State, position: usize);
    /// See [`Decoder::take_snapshot`].
    fn take_snapshot(&self, state: &mut State, position: usize) -> Option<SavedParts>;
    /// See [`Decoder::load_snapshot`].
    fn load_snapshot(&self, state: &mut State, position: usize, parts: &SavedParts);
    /// Contents of a state.
    fn state_values(&self, state: &State) -> Vec<LayerValues>;
}

/// A decoder whose weights are on a backend's device.
pub(crate) type DecoderOn<B> = Decoder<<B as Backend>::Matrix, <B as Backend>::Vector>;

/// A decoder with its weights on a device.
pub(crate) struct DecoderRunner<B: Backend> {
    pub(crate) decoder: DecoderOn<B>,
    pub(crate) workspace: Workspace<B>,
    pub(crate) experts: StreamedExperts,
}

impl<B> Runner for DecoderRunner<B>
where
    B: Backend + Send + 'static,
{
    fn device_name(&self) -> String {
        self.workspace.backend.name()
    }

    fn placement(&self) -> Option<String> {
        self.workspace.backend.placement()
    }

    fn new_state(&self, context: usize) -> State {
        Box::new(self.decoder.sequence_state(&self.workspace.backend, context))
    }

    fn forward(&mut self, batch: &Batch, states: &mut [&mut State]) -> Result<(), SourceError> {
        let Self { decoder, workspace, experts } = self;
        match states {
            [one] => decoder.forward(workspace, batch, &mut [downcast_mut(one)], experts),
            many => {
                let mut states: Vec<&mut SequenceState<B>> =
                    many.iter_mut().map(|state| downcast_mut(state)).collect();
                decoder.forward(workspace, batch, &mut states, experts)
            }
        }
    }

    fn embedded(&mut self, tokens: &[u32]) -> Vec<f32> {
        self.decoder.embedded(&mut self.workspace, tokens)
    }

    fn layer_pass(
        &mut self,
        layer: usize,
        residual: &[f32],
        max_rows: usize,
    ) -> Result<LayerPass, SourceError> {
        self.decoder.layer_pass(&mut self.workspace, layer, residual, max_rows)
    }

    fn handoffs(&self) -> Handoffs {
        self.workspace.backend.handoffs()
    }

    fn logits(&self) -> &[f32] {
        &self.workspace.logits
    }

    fn best(&self) -> &[Option<u32>] {
        &self.workspace.best
    }

    fn log(&mut self) -> &mut ForwardLog {
        &mut self.workspace.log
    }

    fn experts(&self) -> &ExpertStore {
        &self.experts.0
    }

    fn experts_mut(&mut self) -> &mut ExpertStore {
        &mut self.experts.0
    }

    fn save_kv_block(&self, state: &State, block: usize) -> SavedParts {
        self.decoder.save_kv_block(&self.workspace.backend, downcast::<B>(state), block)
    }

    fn load_kv_block(&self, state: &mut State, parts: &SavedParts) {
        self.decoder.load_kv_block::<B>(&self.workspace.backend, downcast_mut(state), parts);
    }

    fn mark_snapshot(&self, state: &mut State, position: usize) {
        self.decoder.mark_snapshot::<B>(&self.workspace.backend, downcast_mut(state), position);
    }

    fn take_snapshot(&self, state: &mut State, position: usize) -> Option<SavedParts> {
        self.decoder.take_snapshot::<B>(&self.workspace.backend, downcast_mut(state), position)
    }

    fn load_snapshot(&self, state: &mut State, position: usize, parts: &SavedParts) {
        let backend = &self.workspace.backend;
        self.decoder.load_snapshot::<B>(backend, downcast_mut(state), position, parts);
    }

    fn state_values(&self, state: &State) -> Vec<LayerValues> {
        let state = downcast::<B>(state);
        let backend = &self.workspace.backend;
        let values = state.layers.iter().map(|layer| match layer {
            LayerState::Attention(cache) => {
                let spec = self.decoder.attention_spec().expect("the layer has one");
                LayerValues::Attention(backend.kv_values(spec, cache))
            }
            LayerState::DeltaNet(delta) => {
                let spec = self.decoder.delta_net_spec().expect("the layer has one");
                LayerValues::DeltaNet(backend.delta_values(spec, delta))
            }
        });
        values.collect()
    }
}

const OWN_STATE: &str = "sessions are made by the engine that they are used with";

fn downcast<B: Backend + 'static>(state: &State) -> &SequenceState<B> {
    state.downcast_ref().expect(OWN_STATE)
}

fn downcast_mut<B: Backend + 'static>(state: &mut State) -> &mut SequenceState<B> {
    state.downcast_mut().expect(OWN_STATE)
}

/// The expert store, as the model asks for experts.
pub(crate) struct StreamedExperts(pub(crate) ExpertStore);

impl ExpertSource for StreamedExperts {
    fn request(&mut self, layer: usize, uses: &ExpertUses) -> Result<(), SourceError> {
        let counts = uses.distinct().iter().map(|&expert| (expert, uses.of(expert).len() as u32));
        Ok(self.0.request(layer, counts)?)
    }

    fn used_on_device(&mut self, layer: usize, expert: u32, n_rows: usize) {
        self.0.used_on_device(layer, expert, n_rows as u32);
    }

    fn next_ready(&mut self, ready: &mut Vec<LoadedExpert>) -> Result<(), SourceError> {
        Ok(self.0.next_ready(ready)?)
    }

    fn records_requests(&self) -> bool {
        self.0.is_traced()
    }

    fn is_resident(&self, layer: usize, expert: u32) -> bool {
        self.0.is_resident(layer, expert)
    }

    fn wants_prediction(&mut self, layer: usize, n_rows: usize) -> bool {
        self.0.wants_prediction(layer, n_rows)
    }

    fn look_ahead(&mut self, layer: usize, routing: &Routing, is_held: &dyn Fn(u32) -> bool) {
        self.0.look_ahead(layer, routing, is_held);
    }
}
