//! A device with memory of its own, as the engine sees one: the reference behind copies of all weights.

use std::path::Path;

use compute::memory::Arena;
use compute::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    DeviceError, ExpertUses, ExpertWeights, HostBuffer, KvValues, LoadedExpert, Matrix, Memory,
    MoeOutputs, PlainDeltaState, PlainKvCache, Reference, RouterSpec, Routing, ScratchNeeds, Span,
};

use crate::engine::Engine;
use crate::error::Error;
use crate::inventory::Inventory;
use crate::options::EngineOptions;

/// The device.
struct Copying {
    reference: Reference,
    memory: Option<u64>,
}

impl Copying {
    fn new(memory: Option<u64>) -> Self {
        Self { reference: Reference::new(), memory }
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

    fn route(&mut self, logits: &HostBuffer, spec: RouterSpec, routing: &mut Routing) {
        self.reference.route(logits, spec, routing);
    }

    fn experts(
        &mut self,
        x: &HostBuffer,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &mut HostBuffer,
    ) {
        self.reference.experts(x, experts, uses, out);
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
    let mut session = engine.session().expect("a session");
    let mut all = Vec::new();
    for tokens in [&[5, 9, 2, 7, 7, 30, 4][..], &[11]] {
        let visit = |_, row: &[f32]| all.extend_from_slice(row);
        engine.evaluate(&mut session, tokens, |_| true, visit).expect("they can be computed");
    }
    all
}

#[test]
fn a_device_that_copies_gets_the_trunk_in_pieces() {
    let mut host = open(Reference::new(), &options()).expect("it opens");
    let mut device = open(Copying::new(Some(1 << 30)), &options()).expect("it opens");
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
