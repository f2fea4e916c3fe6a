//! One layer at a time, for all of a sequence: how a quantiser walks through a model.
//!
//! Whoever replaces the experts of a layer wants to know what the layers behind it are then given. Here a layer
//! is computed without its routed experts, from rows of the residual stream that the caller keeps; what experts
//! add is the caller's to compute. No expert is read.

use std::sync::Arc;

use checkpoint::{FloatType, Format, encode_floats};
use compute::memory::Arena;
use compute::{Backend, Matrix, NextNorm, Routing, Span};

use crate::decoder::{Decoder, Ffn, LayerState, Mixer, Workspace};
use crate::source::SourceError;

/// What a layer makes of a sequence before its routed experts have added their part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPass {
    /// The residual stream, (rows, hidden), with the mixer's part and that of the shared expert (or of the
    /// dense block) added.
    pub residual: Vec<f32>,
    /// What routed experts are given, (rows, hidden); empty for a layer without them.
    pub inputs: Vec<f32>,
    /// Who uses which expert; no rows for a layer without them.
    pub routing: Routing,
}

impl<M, V> Decoder<M, V> {
    /// The residual stream before the first layer, (tokens, hidden).
    pub fn embedded<B: Backend<Matrix = M, Vector = V>>(
        &self,
        workspace: &mut Workspace<B>,
        tokens: &[u32],
    ) -> Vec<f32> {
        let mut rows = Vec::new();
        workspace.backend.embed(&self.embed_tokens, tokens, &mut workspace.scratch.x);
        workspace.backend.download(&workspace.scratch.x, &mut rows);
        rows
    }

    /// A layer of a whole sequence, at most `max_rows` rows of it at a time, without its routed experts.
    pub fn layer_pass<B: Backend<Matrix = M, Vector = V>>(
        &self,
        workspace: &mut Workspace<B>,
        index: usize,
        residual: &[f32],
        max_rows: usize,
    ) -> Result<LayerPass, SourceError> {
        let hidden = self.config.hidden_size;
        let mut state = self.layer_state(&workspace.backend, index, residual.len() / hidden);
        let mut pass = LayerPass::default();
        let mut position = 0;
        for rows in residual.chunks(max_rows * hidden) {
            let len = rows.len() / hidden;
            let span = Span { row: 0, len, position };
            self.add_rows(workspace, index, rows, (span, &mut state), &mut pass)?;
            position += len;
        }
        Ok(pass)
    }

    fn add_rows<B: Backend<Matrix = M, Vector = V>>(
        &self,
        workspace: &mut Workspace<B>,
        index: usize,
        rows: &[f32],
        (span, state): (Span, &mut LayerState<B>),
        pass: &mut LayerPass,
    ) -> Result<(), SourceError> {
        let (eps, hidden) = (self.config.rms_norm_eps, self.config.hidden_size);
        let Workspace { backend, scratch, .. } = workspace;
        let layer = &self.layers[index];
        upload(backend, rows, hidden, &mut scratch.x)?;
        let (x, normed, mixed) = (&mut scratch.x, &mut scratch.normed, &mut scratch.mixed);
        backend.rms_norm(x, &layer.mixer_norm, eps, normed);
        let spans = &[span];
        match &layer.mixer {
            Mixer::Attention(block) => {
                let caches = &mut [state.kv_cache()];
                block.forward(backend, &mut scratch.attention, spans, caches, normed, mixed);
            }
            Mixer::DeltaNet(block) => {
                let delta_net = scratch.delta_net.as_mut().expect("a model with delta nets has it");
                let deltas = &mut [state.delta_state()];
                block.forward(backend, delta_net, spans, deltas, normed, mixed);
            }
        }
        backend.add_norm(x, mixed, NextNorm { weight: &layer.ffn_norm, eps, out: normed });
        let mut downloaded = Vec::new();
        match &layer.ffn {
            Ffn::Dense(weights) => {
                backend.swiglu(normed, weights, mixed);
                backend.add(x, mixed);
                backend.download(x, &mut downloaded);
            }
            Ffn::Moe(block) => {
                let moe = &mut scratch.moe;
                block.route(backend, moe, normed, |_| true);
                block.shared_expert(backend, moe, normed);
                backend.download(x, &mut downloaded);
                block.add_shared(backend, moe, &mut downloaded);
                let Routing { top_k, experts, weights } = &moe.routing;
                pass.routing.top_k = *top_k;
                pass.routing.experts.extend_from_slice(experts);
                pass.routing.weights.extend_from_slice(weights);
                let mut inputs = Vec::new();
                backend.download(normed, &mut inputs);
                pass.inputs.append(&mut inputs);
            }
        }
        pass.residual.append(&mut downloaded);
        Ok(backend.check()?)
    }
}

/// Puts rows into a buffer: a table of them is made, and all of it looked up.
fn upload<B: Backend>(
    backend: &mut B,
    rows: &[f32],
    hidden: usize,
    out: &mut B::Buffer,
) -> Result<(), SourceError> {
    let n = rows.len() / hidden;
    let mut bytes = Vec::with_capacity(4 * rows.len());
    encode_floats(FloatType::F32, rows, &mut bytes);
    let mut block = Arena::new(bytes.len())?.take(bytes.len()).ok_or("an arena has no room")?;
    block.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
    let format = Format::Float(FloatType::F32);
    let table = backend.matrix(&Matrix::new(format, (n, hidden), Arc::new(block), [0; 3]))?;
    let indices: Vec<u32> = (0..n as u32).collect();
    backend.embed(&table, &indices, out);
    Ok(())
}
