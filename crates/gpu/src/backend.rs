//! [`Gpu`] as a [`Backend`]: the operations of a model, each handed to the kernels of its topic.

use compute::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    DeviceError, ExpertShape, ExpertUses, ExpertWeights, Handoffs, HeldMoe, KvValues, LoadedExpert,
    Matrix, MatrixShape, Memory, MoeOutputs, NextNorm, RouteAhead, RouterSpec, Routing,
    ScratchNeeds, Span,
};

use crate::attention::{self, AttentionKernels};
use crate::buffers::{Activations, Constant};
use crate::delta_net;
use crate::delta_state::DeltaState;
use crate::experts::LayerSlots;
use crate::formats;
use crate::gemm::quantized_bytes;
use crate::gpu::Gpu;
use crate::host::Host;
use crate::kv_cache::KvCache;
use crate::product::Tuning;
use crate::rowwise::{Addend, Norm};
use crate::weights::Weights;

/// Kept for pipelines, staging, what delta nets mix of 512 rows, and what the driver needs itself.
const DRIVER_BYTES: u64 = 256 << 20;

/// Most experts in the host's memory that are kept while they are copied to the device.
const MOST_KEPT: usize = 24;

fn device_error(error: impl std::fmt::Display) -> DeviceError {
    DeviceError(error.to_string())
}

fn norm_of(norm: NextNorm<'_, Gpu>) -> Norm<'_> {
    (norm.weight, norm.eps, norm.out)
}

impl Backend for Gpu {
    type Buffer = Activations;
    type Matrix = Weights;
    type Vector = Constant;
    type KvCache = KvCache;
    type DeltaState = DeltaState;

    fn name(&self) -> String {
        let is_usual = self.products.tuning() == Tuning::of(&self.device);
        let tuned = if is_usual { "" } else { ", tuned" };
        let precise = if self.products.is_precise() { ", precise" } else { "" };
        format!("gpu {}{tuned}{precise}", self.device.name())
    }

    fn memory(&self) -> Memory {
        let bytes = self.device.memory_bytes();
        if self.device.shares_memory() { Memory::Shared(bytes) } else { Memory::Own(bytes) }
    }

    fn buffer(&self, max_rows: usize, width: usize) -> Activations {
        Activations::new(&self.device, max_rows, width)
    }

    fn matrix(&self, stored: &Matrix) -> Result<Weights, DeviceError> {
        self.put(stored).map_err(device_error)
    }

    fn vector(&self, values: &[f32]) -> Constant {
        Constant::new(&self.device, values)
    }

    fn kv_cache(&self, spec: &AttentionSpec, max_positions: usize) -> KvCache {
        KvCache::new(spec, max_positions)
    }

    fn delta_state(&self, spec: &DeltaNetSpec) -> DeltaState {
        DeltaState::new(&self.device, spec)
    }

    fn kv_cache_bytes(&self, spec: &AttentionSpec, max_positions: usize) -> u64 {
        KvCache::bytes(spec, max_positions)
    }

    fn scratch_bytes(&self, needs: &ScratchNeeds<'_>) -> u64 {
        let attention = needs
            .attention
            .map_or(0, |spec| AttentionKernels::scratch_bytes(spec, needs.rows, needs.context));
        // Inner activations of every use of an expert, of gate and of up where they are stored unlike.
        let inner = (2 * size_of::<f32>() * 16 * needs.rows * needs.intermediate) as u64;
        // Inputs of products in eight bits.
        let widest = (needs.rows * needs.widest).max(16 * needs.rows * needs.intermediate);
        let quantized = if self.products.is_precise() { 0 } else { quantized_bytes(widest) };
        DRIVER_BYTES + attention + inner + quantized as u64
    }

    fn delta_state_bytes(&self, spec: &DeltaNetSpec) -> u64 {
        DeltaState::bytes(spec)
    }

    fn embed(&mut self, table: &Weights, tokens: &[u32], out: &mut Activations) {
        self.embed_rows(table, tokens, out);
    }

    fn rms_norm(&mut self, x: &Activations, weight: &Constant, eps: f32, out: &mut Activations) {
        self.rowwise.sum(&self.device, x, Addend::Nothing, Some((weight, eps, out)));
    }

    fn project(&mut self, x: &Activations, weights: &[&Weights], outs: &mut [&mut Activations]) {
        self.multiply_each(x, weights, outs);
    }

    fn add(&mut self, x: &mut Activations, y: &Activations) {
        self.rowwise.sum(&self.device, x, Addend::Rows(y), None);
    }

    fn add_norm(&mut self, x: &mut Activations, y: &Activations, norm: NextNorm<'_, Self>) {
        self.rowwise.sum(&self.device, x, Addend::Rows(y), Some(norm_of(norm)));
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        inputs: AttentionInputs<'_, Self>,
        spans: &[Span],
        caches: &mut [&mut KvCache],
        out: &mut Activations,
    ) {
        let AttentionInputs { query, key, value, query_norm, key_norm } = inputs;
        let inputs = attention::Inputs { query, key, value, query_norm, key_norm };
        self.attention.attention(&self.device, spec, inputs, spans, caches, out);
    }

    fn gated_delta_net(
        &mut self,
        spec: &DeltaNetSpec,
        inputs: DeltaNetInputs<'_, Self>,
        spans: &[Span],
        states: &mut [&mut DeltaState],
        out: &mut Activations,
    ) {
        let DeltaNetInputs { qkv, z, b, a, conv, a_log, dt_bias, norm } = inputs;
        let inputs = delta_net::Inputs { qkv, z, b, a, conv, a_log, dt_bias, norm };
        self.delta_net.gated_delta_net(&self.device, spec, inputs, spans, states, out);
    }

    fn route(&mut self, logits: &Activations, spec: RouterSpec, routing: &mut Routing) {
        self.choose(logits, spec, Some(routing));
    }

    fn route_ahead(
        &mut self,
        route: RouteAhead<'_, Self>,
        meanwhile: &mut dyn FnMut(&mut Self),
        [routing, predicted]: [&mut Routing; 2],
    ) {
        let RouteAhead { layer, logits, next, x, routed } = route;
        let reading = self.begin_choice(logits, next, Some(x));
        self.chosen_held_experts(layer, x, logits.1.top_k, routed);
        meanwhile(self);
        self.device.submit();
        let next = next.map(|(logits, spec)| (logits.rows(), spec.top_k, predicted));
        self.finish_choice(reading, (logits.0.rows(), logits.1.top_k, routing), next, Some(layer));
    }

    fn experts(
        &mut self,
        layer: usize,
        x: &Activations,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &mut Activations,
    ) {
        self.host_experts(layer, x, experts, uses, out);
    }

    fn swiglu(&mut self, x: &Activations, weights: &ExpertWeights<Weights>, out: &mut Activations) {
        self.gated_block(x, weights, out);
    }

    fn combine(&mut self, x: &mut Activations, outputs: MoeOutputs<'_, Self>) {
        let MoeOutputs { routing, routed, shared } = outputs;
        self.combine_outputs(x, Some(routing), routing.top_k, routed, shared, None);
    }

    fn combine_norm(
        &mut self,
        x: &mut Activations,
        outputs: MoeOutputs<'_, Self>,
        norm: NextNorm<'_, Self>,
    ) {
        let MoeOutputs { routing, routed, shared } = outputs;
        let norm = Some(norm_of(norm));
        self.combine_outputs(x, Some(routing), routing.top_k, routed, shared, norm);
    }

    fn gather(&mut self, x: &Activations, rows: &[u32], out: &mut Activations) {
        self.gather_rows(x, rows, out);
    }

    fn set_rows(&self, buffer: &mut Activations, rows: usize) {
        buffer.set_rows(rows);
    }

    fn download(&mut self, buffer: &Activations, out: &mut Vec<f32>) {
        self.download_values(buffer, out);
    }

    fn best(
        &mut self,
        x: &Activations,
        (rows, n): (usize, usize),
        _: &mut Vec<f32>,
        out: &mut Vec<Option<u32>>,
    ) {
        assert_eq!(rows, x.rows(), "shapes agree");
        self.best.best(&self.device, x, n, out);
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.device.check().map_err(device_error)
    }

    fn handoffs(&self) -> Handoffs {
        let mut handoffs = self.device.counts();
        handoffs += self.moved;
        handoffs
    }

    fn reserve_experts(
        &mut self,
        layers: &[Option<ExpertShape>],
        bytes: u64,
    ) -> Result<Vec<usize>, DeviceError> {
        let n_layers = layers.iter().flatten().count().max(1) as u64;
        let limit = self.slot_buffer_bytes;
        let slots = layers.iter().map(|shape| {
            let Some(shape) = shape else { return Ok(None) };
            let slots = LayerSlots::new(&self.device, shape, bytes / n_layers, limit);
            slots.map(Some)
        });
        self.layers = slots.collect::<Result<_, _>>().map_err(device_error)?;
        if let (Some(host), Some(shape)) = (&mut self.host, layers.iter().flatten().next()) {
            host.measure(&self.device, shape).map_err(device_error)?;
        }
        self.device.check().map_err(device_error)?;
        let room = |slots: &Option<LayerSlots>| slots.as_ref().map_or(0, LayerSlots::n_slots);
        Ok(self.layers.iter().map(room).collect())
    }

    fn reads_in_place(&self, matrix: MatrixShape, places: [u64; 3]) -> bool {
        self.in_place.is_some() && formats::is_read_in_place(matrix, places)
    }

    fn set_host_slots(&mut self, n_slots: usize) {
        self.most_read = n_slots / 4;
        self.most_kept = self.most_read.min(MOST_KEPT);
    }

    fn hold_expert(&mut self, layer: usize, expert: &LoadedExpert) -> Result<(), DeviceError> {
        if let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) {
            let upload = slots.hold(&self.device, expert.index, &expert.weights);
            self.device.after_upload(upload.unwrap_or_default());
        }
        self.let_go();
        self.device.check().map_err(device_error)
    }

    fn holds_all(&self, layer: usize) -> bool {
        let slots = self.layers.get(layer).and_then(Option::as_ref);
        slots.is_some_and(LayerSlots::holds_all)
    }

    fn holds(&self, layer: usize, expert: u32) -> bool {
        let slots = self.layers.get(layer).and_then(Option::as_ref);
        slots.is_some_and(|slots| slots.place(expert).is_some())
    }

    fn held_moe(&mut self, layer: usize, moe: HeldMoe<'_, Self>, x: &mut Activations) {
        let HeldMoe { spec, router, logits, shared, routed, norm } = moe;
        let mut shared = shared;
        self.held_layer(layer, (router, logits, spec), shared.as_mut(), norm.out, routed);
        let shared = shared.map(|shared| shared.outs.map(|out| &*out));
        self.combine_outputs(x, None, spec.top_k, routed, shared, Some(norm_of(norm)));
    }

    fn take_held(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &mut ExpertUses,
        out: &mut Activations,
    ) -> usize {
        self.take_held_experts(layer, x, uses, out)
    }

    fn placement(&self) -> Option<String> {
        let host = self.host.as_ref().and_then(Host::report);
        let lines: Vec<_> = host.into_iter().chain(self.in_place_report()).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    fn numerics(&self) -> String {
        let host = self.host.as_ref().map(|host| format!(" beside {}", host.numerics()));
        let products = if self.products.is_precise() { "precise" } else { "in eight bits" };
        format!("gpu {}, {products}{}", self.device.name(), host.unwrap_or_default())
    }

    fn kv_block_bytes(&self, spec: &AttentionSpec) -> usize {
        KvCache::block_bytes(spec)
    }

    fn save_kv_block(&self, _: &AttentionSpec, cache: &KvCache, block: usize) -> Vec<u8> {
        cache.save_block(&self.device, block)
    }

    fn load_kv_block(&self, _: &AttentionSpec, cache: &mut KvCache, bytes: &[u8]) {
        cache.load_block(&self.device, bytes);
    }

    fn snapshot_bytes(&self, spec: &DeltaNetSpec) -> usize {
        DeltaState::snapshot_bytes(spec)
    }

    fn mark_snapshot(&self, state: &mut DeltaState, position: usize) {
        state.mark_snapshot(position);
    }

    fn take_snapshot(&self, state: &mut DeltaState, position: usize) -> Option<Vec<u8>> {
        state.take_snapshot(&self.device, position)
    }

    fn load_snapshot(
        &self,
        _: &DeltaNetSpec,
        state: &mut DeltaState,
        position: usize,
        bytes: &[u8],
    ) {
        state.load_snapshot(&self.device, position, bytes);
    }

    fn kv_values(&self, spec: &AttentionSpec, cache: &KvCache) -> KvValues {
        cache.values(&self.device, spec)
    }

    fn delta_values(&self, spec: &DeltaNetSpec, state: &DeltaState) -> DeltaStateValues {
        state.values(&self.device, spec)
    }
}
