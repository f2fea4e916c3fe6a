//! Mixture of experts: router, routed experts that arrive one by one, shared expert.

use checkpoint::MoeConfig;
use compute::{
    Backend, ExpertUses, ExpertWeights, HeldMoe, LoadedExpert, MoeOutputs, NextNorm, RouteAhead,
    RouterSpec, Routing,
};

use crate::lossy::{Lossy, PlacedTwins};
use crate::source::WeightSource;

/// Most rows whose experts are chosen by [`Moe::route_ahead`].
pub(crate) const MOST_ROWS_AHEAD: usize = 8;

/// The trunk's part of a mixture-of-experts layer: all but the routed experts.
#[derive(Debug)]
pub(crate) struct Moe<M> {
    spec: RouterSpec,
    router: M,
    shared: Option<SharedExpert<M>>,
}

/// An expert that every token uses, and how much.
#[derive(Debug)]
struct SharedExpert<M> {
    weights: ExpertWeights<M>,
    gate: M,
}

impl<M> Moe<M> {
    /// Loads `{prefix}.gate.weight`, the shared expert and its gate.
    pub(crate) fn load<S: WeightSource<Matrix = M>>(
        source: &mut S,
        prefix: &str,
        hidden_size: usize,
        config: &MoeConfig,
    ) -> Result<Self, S::Error> {
        let router =
            source.matrix(&format!("{prefix}.gate.weight"), config.n_experts, hidden_size)?;
        let shared = match config.shared_intermediate {
            Some(intermediate) => {
                let name = format!("{prefix}.shared_expert");
                let weights = load_swiglu(source, &name, hidden_size, intermediate)?;
                let gate = source.matrix(&format!("{name}_gate.weight"), 1, hidden_size)?;
                Some(SharedExpert { weights, gate })
            }
            None => None,
        };
        let spec = RouterSpec { top_k: config.top_k, normalise: config.normalise };
        Ok(Self { spec, router, shared })
    }
}

/// Loads `{prefix}.gate_proj.weight` and its siblings: a dense block or a shared expert.
pub(crate) fn load_swiglu<S: WeightSource>(
    source: &mut S,
    prefix: &str,
    hidden_size: usize,
    intermediate: usize,
) -> Result<ExpertWeights<S::Matrix>, S::Error> {
    let mut matrix =
        |name, rows, cols| source.matrix(&format!("{prefix}.{name}.weight"), rows, cols);
    Ok(ExpertWeights {
        gate: matrix("gate_proj", intermediate, hidden_size)?,
        up: matrix("up_proj", intermediate, hidden_size)?,
        down: matrix("down_proj", hidden_size, intermediate)?,
    })
}

/// The steps of the block for the normed rows `x`, in order. Between them the decoder asks for the
/// experts and receives them; outputs are summed in order of rank, so the order of arrival leaves no
/// trace.
impl<M> Moe<M> {
    /// Chooses the experts of every row and groups their uses. `is_resident` tells which are in memory, for
    /// a lossy choice. Where twins are used, the uses are theirs, and the routing still says whose.
    pub(crate) fn route<B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        scratch: &mut MoeScratch<B>,
        x: &B::Buffer,
        is_resident: impl Fn(u32) -> bool,
    ) {
        let MoeScratch {
            lossy, n_experts, logits, routed, routing, candidates, placed, uses, ..
        } = scratch;
        let spec = RouterSpec { top_k: lossy.top_k(self.spec.top_k), ..self.spec };
        self.router_logits(backend, x, logits);
        match lossy.n_candidates(spec.top_k, *n_experts) {
            Some(top_k) => {
                backend.route(logits, RouterSpec { top_k, ..spec }, candidates);
                let rule = (spec.top_k, spec.normalise);
                lossy.prefer_residents(candidates, rule, &is_resident, routing);
            }
            None => backend.route(logits, spec, routing),
        }
        lossy.drop_experts(routing);
        backend.set_rows(routed, routing.experts.len());
        if lossy.has_twins() {
            lossy.place_twins(routing, *n_experts, is_resident, placed);
            uses.group(&placed.routing);
        } else {
            uses.group(routing);
        }
    }

    /// Chooses the experts of few rows as [`Moe::route`] does without a lossy choice, computes the shared
    /// expert and those experts that the device holds while the choices come to the host, and predicts those
    /// of the next block from what its router would say of these rows, which is not quite what it will see.
    pub(crate) fn route_ahead<B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        scratch: &mut MoeScratch<B>,
        layer: usize,
        (x, n_rows): (&B::Buffer, usize),
        next: Option<(&Self, &B::Buffer)>,
    ) {
        let MoeScratch { logits, next_logits, routed, routing, predicted, uses, .. } = scratch;
        let MoeScratch { shared, shared_gate, .. } = scratch;
        // What the shared expert's gate says is little work beside the router.
        match &self.shared {
            Some(SharedExpert { gate, .. }) => {
                backend.project(x, &[&self.router, gate], &mut [logits, &mut *shared_gate]);
            }
            None => backend.project(x, &[&self.router], &mut [logits]),
        }
        let next = next.map(|(next, x)| {
            backend.project(x, &[&next.router], &mut [&mut *next_logits]);
            (&*next_logits, next.spec)
        });
        backend.set_rows(routed, n_rows * self.spec.top_k);
        let route = RouteAhead { layer, logits: (&*logits, self.spec), next, x, routed };
        let mut meanwhile = |backend: &mut B| {
            if let Some(SharedExpert { weights, .. }) = &self.shared {
                backend.swiglu(x, weights, shared);
            }
        };
        backend.route_ahead(route, &mut meanwhile, [&mut *routing, predicted]);
        uses.group(routing);
    }

    /// All of the block on a device that holds all experts of the layer, for so many rows, which are in
    /// `norm.out`, and the norm after it; gives the number of uses.
    pub(crate) fn held<B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        scratch: &mut MoeScratch<B>,
        (layer, n_rows): (usize, usize),
        residual: &mut B::Buffer,
        norm: NextNorm<'_, B>,
    ) -> usize {
        let n_uses = n_rows * self.spec.top_k;
        let MoeScratch { logits, routed, shared, shared_gate, .. } = scratch;
        backend.set_rows(routed, n_uses);
        let shared = self.shared.as_ref().map(|SharedExpert { weights, gate }| {
            compute::SharedExpert { weights, gate, outs: [shared, shared_gate] }
        });
        let moe = HeldMoe { spec: self.spec, router: &self.router, logits, shared, routed, norm };
        backend.held_moe(layer, moe, residual);
        n_uses
    }

    /// Applies the experts that the device holds and takes them out of the uses; gives how many uses those
    /// were.
    pub(crate) fn take_held<B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        scratch: &mut MoeScratch<B>,
        layer: usize,
        x: &B::Buffer,
    ) -> usize {
        backend.take_held(layer, x, &mut scratch.uses, &mut scratch.routed)
    }

    /// What the router says of the rows, (rows, n_experts).
    pub(crate) fn router_logits<B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        x: &B::Buffer,
        logits: &mut B::Buffer,
    ) {
        backend.project(x, &[&self.router], &mut [logits]);
    }

    /// Predicts the choices of the rows from `x`, which is not quite what the router will see. `is_resident`
    /// tells which experts are in memory, for their twins.
    pub(crate) fn predict<'a, B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        scratch: &'a mut MoeScratch<B>,
        x: &B::Buffer,
        is_resident: impl Fn(u32) -> bool,
    ) -> &'a Routing {
        let MoeScratch { lossy, n_experts, logits, predicted, placed, .. } = scratch;
        self.router_logits(backend, x, logits);
        let spec = RouterSpec { top_k: lossy.top_k(self.spec.top_k), ..self.spec };
        backend.route(logits, spec, predicted);
        if !lossy.has_twins() {
            return predicted;
        }
        lossy.place_twins(predicted, *n_experts, is_resident, placed);
        &placed.routing
    }

    /// Computes the shared expert and its gate, if there is one.
    pub(crate) fn shared_expert<B: Backend<Matrix = M>>(
        &self,
        backend: &mut B,
        scratch: &mut MoeScratch<B>,
        x: &B::Buffer,
    ) {
        if let Some(SharedExpert { weights, gate }) = &self.shared {
            backend.swiglu(x, weights, &mut scratch.shared);
            backend.project(x, &[gate], &mut [&mut scratch.shared_gate]);
        }
    }

    /// Applies routed experts to the rows that chose them.
    pub(crate) fn routed_experts<B: Backend>(
        &self,
        backend: &mut B,
        scratch: &mut MoeScratch<B>,
        layer: usize,
        x: &B::Buffer,
        experts: &[LoadedExpert],
    ) {
        backend.experts(layer, x, experts, &scratch.uses, &mut scratch.routed);
    }

    /// Adds the weighted outputs to the residual stream, and norms it.
    pub(crate) fn combine<B: Backend>(
        &self,
        backend: &mut B,
        scratch: &MoeScratch<B>,
        residual: &mut B::Buffer,
        norm: NextNorm<'_, B>,
    ) {
        let MoeScratch { routed, shared, shared_gate, routing, .. } = scratch;
        let shared = self.shared.as_ref().map(|_| [shared, shared_gate]);
        backend.combine_norm(residual, MoeOutputs { routing, routed, shared }, norm);
    }
}

impl<M> Moe<M> {
    /// Adds what [`Moe::shared_expert`] has computed to rows on the host.
    pub(crate) fn add_shared<B: Backend>(
        &self,
        backend: &mut B,
        scratch: &MoeScratch<B>,
        residual: &mut [f32],
    ) {
        if self.shared.is_none() {
            return;
        }
        let (mut outputs, mut gates) = (Vec::new(), Vec::new());
        backend.download(&scratch.shared, &mut outputs);
        backend.download(&scratch.shared_gate, &mut gates);
        let hidden = residual.len() / gates.len().max(1);
        let rows =
            residual.chunks_exact_mut(hidden.max(1)).zip(outputs.chunks_exact(hidden.max(1)));
        for ((residual, outputs), gate) in rows.zip(&gates) {
            let gate = 1.0 / (1.0 + (-gate).exp());
            for (residual, output) in residual.iter_mut().zip(outputs) {
                *residual += gate * output;
            }
        }
    }
}

/// Buffers of a mixture-of-experts layer; layers share them.
pub(crate) struct MoeScratch<B: Backend> {
    /// What changes the output.
    lossy: Lossy,
    /// Experts of a layer, without twins.
    n_experts: usize,
    pub(crate) logits: B::Buffer,
    /// What the next layer's router says.
    next_logits: B::Buffer,
    routed: B::Buffer,
    shared: B::Buffer,
    shared_gate: B::Buffer,
    /// The choices of the layer computed last.
    pub(crate) routing: Routing,
    /// More than are chosen, where a lossy choice wants more to choose from.
    candidates: Routing,
    /// What the next layer would choose.
    pub(crate) predicted: Routing,
    /// Choices with twins in the place of some experts.
    placed: PlacedTwins,
    /// The choices by expert or twin.
    pub(crate) uses: ExpertUses,
}

impl<B: Backend> MoeScratch<B> {
    pub(crate) fn new(
        backend: &B,
        hidden_size: usize,
        config: &MoeConfig,
        max_rows: usize,
    ) -> Self {
        Self {
            logits: backend.buffer(max_rows, config.n_experts),
            next_logits: backend.buffer(MOST_ROWS_AHEAD, config.n_experts),
            routed: backend.buffer(max_rows * config.top_k, hidden_size),
            shared: backend.buffer(max_rows, hidden_size),
            shared_gate: backend.buffer(max_rows, 1),
            lossy: Lossy::default(),
            n_experts: config.n_experts,
            routing: Routing::default(),
            candidates: Routing::default(),
            predicted: Routing::default(),
            placed: PlacedTwins::default(),
            uses: ExpertUses::new(config.n_experts),
        }
    }

    /// Whether the router's choice is changed.
    pub(crate) fn changes_choice(&self) -> bool {
        self.lossy.changes_choice()
    }

    /// Changes what passes compute from now on.
    pub(crate) fn set_lossy(&mut self, lossy: Lossy) {
        let per_expert = if lossy.has_twins() { 2 } else { 1 };
        self.uses = ExpertUses::new(per_expert * self.n_experts);
        self.lossy = lossy;
    }

    /// Values that the buffers hold for each row.
    pub(crate) fn values_per_row(hidden_size: usize, config: &MoeConfig) -> usize {
        config.n_experts + (config.top_k + 1) * hidden_size + 1
    }
}
