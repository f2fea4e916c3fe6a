//! A device with memory of its own, as the engine sees one: the reference behind copies of all weights.

use std::path::Path;

use compute::memory::Arena;
use compute::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    DeviceError, ExpertShape, ExpertUses, ExpertWeights, Handoffs, HeldMoe, HostBuffer, KvValues,
    LoadedExpert, Matrix, Memory, MoeOutputs, PlainDeltaState, PlainKvCache, Reference, RouteAhead,
    RouterSpec, Routing, ScratchNeeds, SharedExpert, Span,
};

use crate::engine::Engine;
use crate::error::Error;
use crate::inventory::Inventory;
use crate::options::EngineOptions;
use crate::usage::Usage;

/// The device.
struct Copying {
    reference: Reference,
    memory: Option<u64>,
    /// Experts of a layer that there is room for.
    room: usize,
    /// The experts that it holds, of each layer.
    held: Vec<Vec<LoadedExpert>>,
    n_experts: Vec<usize>,
    /// Waits after which it fails.
    lasts: u64,
    waits: u64,
}

impl Copying {
    fn new(memory: Option<u64>, room: usize) -> Self {
        let (held, n_experts) = (Vec::new(), Vec::new());
        let reference = Reference::new();
        Self { reference, memory, room, held, n_experts, lasts: u64::MAX, waits: 0 }
    }

    /// Applies experts that it holds.
    fn apply(
        &mut self,
        layer: usize,
        x: &HostBuffer,
        uses: &mut ExpertUses,
        out: &mut HostBuffer,
    ) -> usize {
        let mut n_uses = 0;
        for expert in &self.held[layer] {
            let (mut is_used, index) = (false, expert.index);
            uses.take(|used, uses| {
                let is_this = used == index;
                is_used |= is_this;
                n_uses += if is_this { uses.len() } else { 0 };
                is_this
            });
            if is_used {
                self.reference.experts(layer, x, std::slice::from_ref(expert), uses, out);
            }
        }
        n_uses
    }
}

/// The same matrix in memory of its own.
fn copy(stored: &Matrix) -> Matrix {
    let parts = [stored.data(), stored.scales(), stored.biases()];
    let bytes = parts.iter().map(|part| part.len()).sum();
    let mut block = Arena::new(bytes).expect("memory").take(bytes).expect("it fits");
    let (mut offsets, mut end) = ([0; 3], 0);
    for (part, offset) in parts.iter().zip(&mut offsets) {
        *offset = end;
        end += part.len();
        block.bytes_mut()[*offset..end].copy_from_slice(part);
    }
    Matrix::new(stored.format, (stored.rows, stored.cols), block.into(), offsets)
}

impl Backend for Copying {
    type Buffer = HostBuffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type KvCache = PlainKvCache;
    type DeltaState = PlainDeltaState;

    fn name(&self) -> String {
        "a device that copies".to_owned()
    }

    fn memory(&self) -> Memory {
        Memory::Own(self.memory)
    }

    fn matrix(&self, stored: &Matrix) -> Result<Matrix, DeviceError> {
        Ok(copy(stored))
    }

    fn buffer(&self, max_rows: usize, width: usize) -> HostBuffer {
        self.reference.buffer(max_rows, width)
    }

    fn vector(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn kv_cache(&self, spec: &AttentionSpec, max_positions: usize) -> PlainKvCache {
        self.reference.kv_cache(spec, max_positions)
    }

    fn delta_state(&self, spec: &DeltaNetSpec) -> PlainDeltaState {
        self.reference.delta_state(spec)
    }

    fn kv_cache_bytes(&self, spec: &AttentionSpec, max_positions: usize) -> u64 {
        self.reference.kv_cache_bytes(spec, max_positions)
    }

    fn delta_state_bytes(&self, spec: &DeltaNetSpec) -> u64 {
        self.reference.delta_state_bytes(spec)
    }

    fn scratch_bytes(&self, needs: &ScratchNeeds<'_>) -> u64 {
        self.reference.scratch_bytes(needs)
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut HostBuffer) {
        self.reference.embed(table, tokens, out);
    }

    fn rms_norm(&mut self, x: &HostBuffer, weight: &Vec<f32>, eps: f32, out: &mut HostBuffer) {
        self.reference.rms_norm(x, weight, eps, out);
    }

    fn project(&mut self, x: &HostBuffer, weights: &[&Matrix], outs: &mut [&mut HostBuffer]) {
        self.reference.project(x, weights, outs);
    }

    fn add(&mut self, x: &mut HostBuffer, y: &HostBuffer) {
        self.reference.add(x, y);
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        inputs: AttentionInputs<'_, Self>,
        spans: &[Span],
        caches: &mut [&mut PlainKvCache],
        out: &mut HostBuffer,
    ) {
        let AttentionInputs { query, key, value, query_norm, key_norm } = inputs;
        let inputs = AttentionInputs { query, key, value, query_norm, key_norm };
        self.reference.attention(spec, inputs, spans, caches, out);
    }

    fn gated_delta_net(
        &mut self,
        spec: &DeltaNetSpec,
        inputs: DeltaNetInputs<'_, Self>,
        spans: &[Span],
        states: &mut [&mut PlainDeltaState],
        out: &mut HostBuffer,
    ) {
        let DeltaNetInputs { qkv, z, b, a, conv, a_log, dt_bias, norm } = inputs;
        let inputs = DeltaNetInputs { qkv, z, b, a, conv, a_log, dt_bias, norm };
        self.reference.gated_delta_net(spec, inputs, spans, states, out);
    }

    fn check(&self) -> Result<(), DeviceError> {
        match self.waits > self.lasts {
            true => Err(DeviceError("the device is lost".to_owned())),
            false => Ok(()),
        }
    }

    fn handoffs(&self) -> Handoffs {
        Handoffs { waits: self.waits, ..Handoffs::default() }
    }

    fn reserve_experts(
        &mut self,
        layers: &[Option<ExpertShape>],
        _: u64,
    ) -> Result<Vec<usize>, DeviceError> {
        let counts = layers.iter().map(|layer| layer.map_or(0, |shape| shape.n_experts));
        self.n_experts = counts.collect();
        self.held = vec![Vec::new(); layers.len()];
        Ok(vec![self.room; layers.len()])
    }

    fn hold_expert(&mut self, layer: usize, expert: &LoadedExpert) -> Result<(), DeviceError> {
        assert!(self.held[layer].len() < self.room, "there is a place left");
        let ExpertWeights { gate, up, down } = &expert.weights;
        let weights = ExpertWeights { gate: copy(gate), up: copy(up), down: copy(down) };
        self.held[layer].push(LoadedExpert { index: expert.index, weights });
        Ok(())
    }

    fn holds_all(&self, layer: usize) -> bool {
        self.held[layer].len() == self.n_experts[layer]
    }

    fn holds(&self, layer: usize, expert: u32) -> bool {
        self.held[layer].iter().any(|held| held.index == expert)
    }

    fn route_ahead(
        &mut self,
        route: RouteAhead<'_, Self>,
        meanwhile: &mut dyn FnMut(&mut Self),
        [routing, predicted]: [&mut Routing; 2],
    ) {
        // One wait for both.
        self.waits += 1;
        meanwhile(self);
        let (logits, spec) = route.logits;
        self.reference.route(logits, spec, routing);
        if let Some((logits, spec)) = route.next {
            self.reference.route(logits, spec, predicted);
        }
    }

    fn held_moe(&mut self, layer: usize, moe: HeldMoe<'_, Self>, x: &mut HostBuffer) {
        let HeldMoe { spec, router, logits, shared, routed, norm } = moe;
        let input = &*norm.out;
        self.project(input, &[router], &mut [&mut *logits]);
        let mut routing = Routing::default();
        self.reference.route(logits, spec, &mut routing);
        let shared = shared.map(|SharedExpert { weights, gate, outs: [out, gate_out] }| {
            self.swiglu(input, weights, out);
            self.project(input, &[gate], &mut [&mut *gate_out]);
            [&*out, &*gate_out]
        });
        let mut uses = ExpertUses::new(self.n_experts[layer]);
        uses.group(&routing);
        self.apply(layer, input, &mut uses, routed);
        assert!(uses.distinct().is_empty(), "all are held");
        self.combine_norm(x, MoeOutputs { routing: &routing, routed, shared }, norm);
    }

    fn take_held(
        &mut self,
        layer: usize,
        x: &HostBuffer,
        uses: &mut ExpertUses,
        out: &mut HostBuffer,
    ) -> usize {
        self.apply(layer, x, uses, out)
    }

    fn route(&mut self, logits: &HostBuffer, spec: RouterSpec, routing: &mut Routing) {
        self.waits += 1;
        self.reference.route(logits, spec, routing);
    }

    fn experts(
        &mut self,
        layer: usize,
        x: &HostBuffer,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &mut HostBuffer,
    ) {
        self.reference.experts(layer, x, experts, uses, out);
        for expert in experts {
            if self.held[layer].len() < self.room {
                self.hold_expert(layer, expert).expect("there is room");
            }
        }
    }

    fn swiglu(&mut self, x: &HostBuffer, weights: &ExpertWeights, out: &mut HostBuffer) {
        self.reference.swiglu(x, weights, out);
    }

    fn combine(&mut self, x: &mut HostBuffer, outputs: MoeOutputs<'_, Self>) {
        let MoeOutputs { routing, routed, shared } = outputs;
        self.reference.combine(x, MoeOutputs { routing, routed, shared });
    }

    fn gather(&mut self, x: &HostBuffer, rows: &[u32], out: &mut HostBuffer) {
        self.reference.gather(x, rows, out);
    }

    fn set_rows(&self, buffer: &mut HostBuffer, rows: usize) {
        self.reference.set_rows(buffer, rows);
    }

    fn download(&mut self, buffer: &HostBuffer, out: &mut Vec<f32>) {
        self.waits += 1;
        self.reference.download(buffer, out);
    }

    fn numerics(&self) -> String {
        self.name()
    }

    fn kv_block_bytes(&self, spec: &AttentionSpec) -> usize {
        self.reference.kv_block_bytes(spec)
    }

    fn save_kv_block(&self, spec: &AttentionSpec, cache: &PlainKvCache, block: usize) -> Vec<u8> {
        self.reference.save_kv_block(spec, cache, block)
    }

    fn load_kv_block(&self, spec: &AttentionSpec, cache: &mut PlainKvCache, bytes: &[u8]) {
        self.reference.load_kv_block(spec, cache, bytes);
    }

    fn snapshot_bytes(&self, spec: &DeltaNetSpec) -> usize {
        self.reference.snapshot_bytes(spec)
    }

    fn mark_snapshot(&self, state: &mut PlainDeltaState, position: usize) {
        self.reference.mark_snapshot(state, position);
    }

    fn take_snapshot(&self, state: &mut PlainDeltaState, position: usize) -> Option<Vec<u8>> {
        self.reference.take_snapshot(state, position)
    }

    fn load_snapshot(
        &self,
        spec: &DeltaNetSpec,
        state: &mut PlainDeltaState,
        position: usize,
        bytes: &[u8],
    ) {
        self.reference.load_snapshot(spec, state, position, bytes);
    }

    fn kv_values(&self, spec: &AttentionSpec, cache: &PlainKvCache) -> KvValues {
        self.reference.kv_values(spec, cache)
    }

    fn delta_values(&self, spec: &DeltaNetSpec, state: &PlainDeltaState) -> DeltaStateValues {
        self.reference.delta_values(spec, state)
    }
}

fn open<B: Backend + Send + 'static>(backend: B, options: &EngineOptions) -> Result<Engine, Error> {
    let none = tokenizer::Tokenizer::open(Path::new("none"));
    Engine::on(inventory(), none, backend, options)
}

fn inventory() -> Inventory {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen35moe-tiny");
    Inventory::read(&path).expect("the fixture can be read")
}

fn options() -> EngineOptions {
    EngineOptions { memory: Some(1 << 30), context: Some(256), ..EngineOptions::default() }
}

/// Logits after each of some tokens, in two passes: a prompt and a token.
fn logits(engine: &mut Engine) -> Vec<f32> {
    evaluate(engine).expect("they can be computed").0
}

/// The same, and what it cost.
fn evaluate(engine: &mut Engine) -> Result<(Vec<f32>, Usage), Error> {
    let mut session = engine.session()?;
    let (mut all, mut usage) = (Vec::new(), Usage::default());
    for tokens in [&[5, 9, 2, 7, 7, 30, 4][..], &[11]] {
        let visit = |_, row: &[f32]| all.extend_from_slice(row);
        usage += &engine.evaluate(&mut session, tokens, |_| true, visit)?;
    }
    Ok((all, usage))
}

#[test]
fn a_device_that_copies_gets_the_trunk_in_pieces() {
    let mut host = open(Reference::new(), &options()).expect("it opens");
    let mut device = open(Copying::new(Some(1 << 30), 0), &options()).expect("it opens");
    let (ours, on_device) = (host.plan().clone(), device.plan().clone());
    let plan = on_device.device.expect("it has memory of its own");
    let piece = crate::trunk::upload_bytes(&inventory());
    assert!(piece < ours.trunk / 2, "there are several pieces: {piece} of {}", ours.trunk);
    assert_eq!((plan.trunk, plan.states), (ours.trunk, ours.states));
    assert_eq!((on_device.trunk, on_device.states), (0, 0));
    assert_eq!(plan.workspace + on_device.workspace, ours.workspace);
    assert_eq!(plan.total, (1 << 30) - (1 << 30) / 10);
    assert!(logits(&mut host) == logits(&mut device), "the same weights arrived");
}

#[test]
fn experts_on_the_device_are_used_there() {
    let mut host = open(Reference::new(), &options()).expect("it opens");
    let expected = logits(&mut host);
    let (n_layers, top_k) = (host.config().mixers.len(), host.config().moe.top_k);
    let n_experts = host.config().moe.n_experts;
    for room in [n_experts, n_experts / 2, 1] {
        let device = Copying::new(Some(1 << 30), room);
        let mut device = open(device, &options()).expect("it opens");
        let is_held = room == n_experts;
        for pass in 0..2 {
            let (ours, usage) = evaluate(&mut device).expect("it can be computed");
            assert!(ours == expected, "room for {room}, pass {pass}");
            let all = (8 * n_layers * top_k) as u64;
            assert_eq!(usage.held_uses == all, is_held, "room for {room}: {}", usage.held_uses);
            assert!(usage.held_uses > 0 || pass == 0, "it keeps what it was given");
            // One wait for the logits of each pass, and one a layer if the host must know who is chosen.
            // Predictions for the next layer come with the same.
            let waits = if is_held { 2 } else { 2 * (1 + n_layers as u64) };
            assert_eq!(usage.handoffs.waits, waits);
            assert_eq!(usage.hits + usage.misses == 0, is_held, "the drive is read once");
        }
        // Whoever records sees all.
        device.record_routing(true);
        assert!(logits(&mut device) == expected, "room for {room}");
        assert_eq!(device.take_routing().len(), 2 * n_layers);
        device.record_routing(false);
        let before = device.expert_stats();
        device.record_trace(Box::new(std::io::sink()));
        assert!(logits(&mut device) == expected, "room for {room}");
        device.finish_trace().expect("nothing can fail");
        let after = device.expert_stats();
        assert!(after.hits + after.misses > before.hits + before.misses, "all were asked for");
    }
}

#[test]
fn a_lost_device_ends_the_request_and_says_so() {
    for room in [0, 1000] {
        for lasts in [0, 3] {
            let device = Copying { lasts, ..Copying::new(Some(1 << 30), room) };
            let mut device = open(device, &options()).expect("it opens");
            let error = loop {
                if let Err(error) = evaluate(&mut device) {
                    break error;
                }
            };
            let source = std::error::Error::source(&error).expect("there is a cause").to_string();
            assert_eq!(source, "the device is lost");
        }
    }
}

#[test]
fn a_device_that_is_too_small_or_does_not_tell_its_size_is_explained() {
    let message = |memory, vram| {
        let options = EngineOptions { vram, ..options() };
        match open(Copying::new(memory, 0), &options) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    assert!(message(Some(1000), None).contains("hint: raise --vram"), "too small");
    assert!(message(Some(1 << 30), Some(1000)).contains("hint: raise --vram"), "bounded");
    assert!(message(None, None).contains("give a budget with --vram"), "unknown");
    assert_eq!(message(None, Some(1 << 30)), "");
}
