//! The CPU backend: threads and vector instructions.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod delta_net;
mod integer;
mod kernels;
mod kv_cache;
mod math;
mod matmul;
mod moe;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pool;
mod scalar;
mod scores;

pub use delta_net::DeltaState;
pub use kernels::Isa;
pub use kv_cache::{KvCache, KvType};

use crate::backend::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    KvValues, MoeOutputs, RouterSpec, Routing, ScratchNeeds, Span,
};
use crate::device::DeviceError;
use crate::host::{HostBuffer, route_rows};
use crate::matrix::{ExpertWeights, LoadedExpert, Matrix};
use crate::snapshots::STATE_BLOCK;
use crate::uses::ExpertUses;
use trace::Recorder;

use integer::QuantizedRows;
use kernels::Kernels;
use matmul::{Product, TASK_ROWS};
use pool::{Parts, Pool};

/// How a CPU backend works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the caller's among them; default: the cores that the process may use.
    pub threads: Option<usize>,
    /// Instructions; default: the best that the machine has.
    pub isa: Option<Isa>,
    /// Whether low-bit weights are multiplied with activations in `f32` instead of eight bits.
    pub precise: bool,
    /// How keys and values are stored; default: in 16-bit floats, in `f32` where `precise`.
    pub kv_type: Option<KvType>,
    /// Who is told what each thread did of each operation.
    pub recorder: Option<Recorder>,
}

impl CpuOptions {
    /// How keys and values are stored if nothing else is said.
    const fn default_kv_type(precise: bool) -> KvType {
        if precise { KvType::F32 } else { KvType::F16 }
    }
}

/// Why a CPU backend cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The machine lacks instructions that were asked for.
    #[error("this CPU has no {} instructions; it has {}", .isa.name(), .available.join(", "))]
    NoSuchIsa {
        /// What was asked for.
        isa: Isa,
        /// What there is.
        available: Vec<&'static str>,
    },
    /// Threads could not be started.
    #[error("{threads} threads could not be started: {source}")]
    Threads {
        /// How many.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What operations run on: the inner loops of the instruction set, and threads.
pub(crate) struct Machine {
    kernels: &'static Kernels,
    pool: Pool,
    precise: bool,
    kv_type: KvType,
    /// The activations of the product that is being computed.
    quantized: QuantizedRows,
}

/// Working memory of a thread that does not grow with the batch: a panel of weights, pages of keys.
const THREAD_BYTES: u64 = 1 << 20;

/// Projections of one input in a call.
const MAX_PRODUCTS: usize = 8;

/// The CPU backend.
pub struct Cpu {
    machine: Machine,
    attention: attention::Scratch,
    delta_net: delta_net::Scratch,
    moe: moe::Scratch,
}

impl Cpu {
    /// Starts the threads and picks the instructions.
    pub fn new(options: CpuOptions) -> Result<Self, CpuError> {
        let available = Isa::available();
        let isa = options.isa.unwrap_or(available[0]);
        let kernels = Kernels::of(isa).ok_or_else(|| {
            let available = available.iter().map(|isa| isa.name()).collect();
            CpuError::NoSuchIsa { isa, available }
        })?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or_else(cores).max(1);
        let pool = Pool::new(threads, options.recorder)
            .map_err(|source| CpuError::Threads { threads, source })?;
        Ok(Self {
            machine: Machine {
                kernels,
                pool,
                precise: options.precise,
                kv_type: options.kv_type.unwrap_or(CpuOptions::default_kv_type(options.precise)),
                quantized: QuantizedRows::default(),
            },
            attention: attention::Scratch::default(),
            delta_net: delta_net::Scratch::default(),
            moe: moe::Scratch::default(),
        })
    }
}

impl Machine {
    /// What differs from the default mode, for names.
    fn modes(&self) -> String {
        let precise = if self.precise { ", precise" } else { "" };
        match self.kv_type {
            usual if usual == CpuOptions::default_kv_type(self.precise) => precise.to_owned(),
            kv_type => format!("{precise}, {} keys and values", kv_type.name()),
        }
    }
}

impl Backend for Cpu {
    type Buffer = HostBuffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type KvCache = KvCache;
    type DeltaState = DeltaState;

    fn name(&self) -> String {
        format!(
            "cpu {}, {} threads{}",
            self.machine.kernels.isa.name(),
            self.machine.pool.n_threads(),
            self.machine.modes()
        )
    }

    fn buffer(&self, max_rows: usize, width: usize) -> HostBuffer {
        HostBuffer::new(max_rows, width)
    }

    fn matrix(&self, stored: &Matrix) -> Result<Matrix, DeviceError> {
        Ok(stored.clone())
    }

    fn vector(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn kv_cache(&self, _: &AttentionSpec, max_positions: usize) -> KvCache {
        KvCache::new(max_positions, self.machine.kv_type)
    }

    fn delta_state(&self, spec: &DeltaNetSpec) -> DeltaState {
        DeltaState::new(spec)
    }

    fn kv_cache_bytes(&self, spec: &AttentionSpec, max_positions: usize) -> u64 {
        KvCache::bytes(spec, max_positions, self.machine.kv_type)
    }

    fn delta_state_bytes(&self, spec: &DeltaNetSpec) -> u64 {
        DeltaState::bytes(spec)
    }

    fn scratch_bytes(&self, needs: &ScratchNeeds<'_>) -> u64 {
        let attention =
            needs.attention.map_or(0, |spec| attention::scratch_bytes(spec, needs.context));
        let threads = self.machine.pool.n_threads() as u64;
        QuantizedRows::bytes(needs.rows, needs.widest)
            + moe::scratch_bytes(needs.hidden, needs.intermediate)
            + attention
            + threads * (THREAD_BYTES + (TASK_ROWS * size_of::<f32>() * needs.rows) as u64)
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut HostBuffer) {
        out.set_rows(tokens.len());
        for (row, &token) in tokens.iter().enumerate() {
            matmul::decode(self.machine.kernels, table, token as usize, 0, out.row_mut(row));
        }
    }

    fn rms_norm(&mut self, x: &HostBuffer, weight: &Vec<f32>, eps: f32, out: &mut HostBuffer) {
        out.set_rows(x.rows());
        let (kernels, width) = (self.machine.kernels, x.width());
        let out = Parts::new(out.values_mut());
        self.machine.pool.run("norm", x.rows(), |row| {
            let x = x.row(row);
            // SAFETY: each task has its own row.
            #[expect(unsafe_code, reason = "tasks write disjoint parts")]
            let out = unsafe { out.part(row * width, width) };
            let mean = (kernels.dot)(x, x) / width as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        });
    }

    fn project(&mut self, x: &HostBuffer, weights: &[&Matrix], outs: &mut [&mut HostBuffer]) {
        let mut products = [None; MAX_PRODUCTS];
        for ((product, matrix), out) in products.iter_mut().zip(weights).zip(outs) {
            assert_eq!((matrix.cols, matrix.rows), (x.width(), out.width()), "shapes agree");
            out.set_rows(x.rows());
            *product = Some(Product { matrix, out: Parts::new(out.values_mut()) });
        }
        assert!(weights.len() <= MAX_PRODUCTS, "no layer has so many projections of one input");
        matmul::multiply(&mut self.machine, x.values(), x.rows(), &products);
    }

    fn add(&mut self, x: &mut HostBuffer, y: &HostBuffer) {
        x.add(y);
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        inputs: AttentionInputs<'_, Self>,
        spans: &[Span],
        caches: &mut [&mut KvCache],
        out: &mut HostBuffer,
    ) {
        let AttentionInputs { query, key, value, query_norm, key_norm } = inputs;
        let inputs = attention::Inputs { query, key, value, query_norm, key_norm };
        let (machine, scratch) = (&mut self.machine, &mut self.attention);
        attention::attention(machine, scratch, spec, &inputs, spans, caches, out);
    }

    fn gated_delta_net(
        &mut self,
        spec: &DeltaNetSpec,
        inputs: DeltaNetInputs<'_, Self>,
        spans: &[Span],
        states: &mut [&mut DeltaState],
        out: &mut HostBuffer,
    ) {
        let DeltaNetInputs { qkv, z, b, a, conv, a_log, dt_bias, norm } = inputs;
        let inputs = delta_net::Inputs { qkv, z, b, a, conv, a_log, dt_bias, norm };
        let (machine, scratch) = (&mut self.machine, &mut self.delta_net);
        delta_net::gated_delta_net(machine, scratch, spec, &inputs, spans, states, out);
    }

    fn route(&mut self, logits: &HostBuffer, spec: RouterSpec, routing: &mut Routing) {
        route_rows(logits, spec, routing);
    }

    fn experts(
        &mut self,
        _: usize,
        x: &HostBuffer,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &mut HostBuffer,
    ) {
        moe::experts(&mut self.machine, &mut self.moe, x, experts, uses, out);
    }

    fn swiglu(&mut self, x: &HostBuffer, weights: &ExpertWeights, out: &mut HostBuffer) {
        out.set_rows(x.rows());
        moe::swiglu(&mut self.machine, &mut self.moe, x, weights, out);
    }

    fn combine(&mut self, x: &mut HostBuffer, outputs: MoeOutputs<'_, Self>) {
        moe::combine(&mut self.machine, x, &outputs);
    }

    fn gather(&mut self, x: &HostBuffer, rows: &[u32], out: &mut HostBuffer) {
        out.gather(x, rows);
    }

    fn set_rows(&self, buffer: &mut HostBuffer, rows: usize) {
        buffer.set_rows(rows);
    }

    fn download(&mut self, buffer: &HostBuffer, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(buffer.values());
    }

    fn numerics(&self) -> String {
        format!("cpu {}{}", self.machine.kernels.isa.name(), self.machine.modes())
    }

    fn kv_block_bytes(&self, spec: &AttentionSpec) -> usize {
        KvCache::bytes(spec, STATE_BLOCK, self.machine.kv_type) as usize
    }

    fn save_kv_block(&self, _: &AttentionSpec, cache: &KvCache, block: usize) -> Vec<u8> {
        cache.save_page(block)
    }

    fn load_kv_block(&self, spec: &AttentionSpec, cache: &mut KvCache, bytes: &[u8]) {
        cache.load_page(spec, bytes);
    }

    fn snapshot_bytes(&self, spec: &DeltaNetSpec) -> usize {
        DeltaState::snapshot_bytes(spec)
    }

    fn mark_snapshot(&self, state: &mut DeltaState, position: usize) {
        state.snapshots().mark(position);
    }

    fn take_snapshot(&self, state: &mut DeltaState, position: usize) -> Option<Vec<u8>> {
        state.snapshots().take(position)
    }

    fn load_snapshot(
        &self,
        _: &DeltaNetSpec,
        state: &mut DeltaState,
        position: usize,
        bytes: &[u8],
    ) {
        state.load_snapshot(position, bytes);
    }

    fn kv_values(&self, spec: &AttentionSpec, cache: &KvCache) -> KvValues {
        cache.contents(self.machine.kernels, spec)
    }

    fn delta_values(&self, spec: &DeltaNetSpec, state: &DeltaState) -> DeltaStateValues {
        state.contents(self.machine.kernels, spec)
    }
}
