//! Where the time of a forward pass goes, by layer and phase.

use std::time::{Duration, Instant};

use trace::{Kind, Recorder, Span};

/// Waits for experts that are shorter are not traced: nearly all of them find an expert ready.
const SHORTEST_TRACED_WAIT: Duration = Duration::from_micros(1);

/// A part of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Embedding of the tokens.
    Embedding,
    /// Full attention with its projections.
    Attention,
    /// Gated delta net with its projections.
    DeltaNet,
    /// Norm, router and the request for experts.
    Router,
    /// The shared expert, computed while experts are read; or a dense block.
    SharedExpert,
    /// Waiting for experts.
    ExpertWait,
    /// Arithmetic of the routed experts and their sum.
    Experts,
    /// Final norm, head, and the logits' way to the host.
    Head,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 8] = [
        Self::Embedding,
        Self::Attention,
        Self::DeltaNet,
        Self::Router,
        Self::SharedExpert,
        Self::ExpertWait,
        Self::Experts,
        Self::Head,
    ];

    /// A short name for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::DeltaNet => "delta_net",
            Self::Router => "router",
            Self::SharedExpert => "shared_expert",
            Self::ExpertWait => "drive_wait",
            Self::Experts => "experts",
            Self::Head => "head",
        }
    }
}

/// Times by layer and phase, added up over forward passes until [`Timeline::reset`].
#[derive(Clone, Debug)]
pub struct Timeline {
    lap_start: Instant,
    /// One row a layer, and a last one for what is outside the layers.
    layers: Vec<[Duration; Phase::ALL.len()]>,
    /// Who is told of every single phase.
    recorder: Option<Recorder>,
}

impl Timeline {
    /// An empty timeline of a model.
    pub fn new(n_layers: usize) -> Self {
        let layers = vec![Default::default(); n_layers + 1];
        Self { lap_start: Instant::now(), layers, recorder: None }
    }

    /// Tells a recorder of every single phase from now on.
    pub fn record_to(&mut self, recorder: Option<Recorder>) {
        self.recorder = recorder;
    }

    /// Forgets all times.
    pub fn reset(&mut self) {
        self.layers.fill(Default::default());
    }

    /// The time spent in a phase, over all layers.
    pub fn total(&self, phase: Phase) -> Duration {
        self.layers.iter().map(|layer| layer[phase as usize]).sum()
    }

    /// The time spent in a phase of a layer.
    pub fn layer(&self, layer: usize, phase: Phase) -> Duration {
        self.layers[layer][phase as usize]
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len() - 1
    }

    /// Starts the clock.
    pub(crate) fn begin(&mut self) {
        self.lap_start = Instant::now();
    }

    /// Books the time since the last call to a phase; `None` as layer means outside the layers.
    pub(crate) fn lap(&mut self, layer: Option<usize>, phase: Phase) {
        let now = Instant::now();
        let row = layer.unwrap_or(self.layers.len() - 1);
        self.layers[row][phase as usize] += now - self.lap_start;
        if let Some(recorder) = &self.recorder {
            self.trace(recorder, layer, phase, now);
        }
        self.lap_start = now;
    }

    #[cold]
    fn trace(&self, recorder: &Recorder, layer: Option<usize>, phase: Phase, end: Instant) {
        let (name, begin) = (phase.name(), self.lap_start);
        if phase == Phase::ExpertWait && end - begin < SHORTEST_TRACED_WAIT {
            return;
        }
        let (expert, amount) = (None, 0);
        recorder.record(&Span { kind: Kind::Phase, name, begin, end, layer, expert, amount });
    }
}
