//! What a caller may choose when opening an engine.

use std::path::PathBuf;

use experts::{LookAhead, ReaderKind};
use model::Lossy;
use trace::Recorder;

use crate::heat::HeatMapPlace;
use crate::prefix_cache::PrefixCacheOptions;

/// The device that computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU if a measurement finds that it reads its memory faster than the CPU does and the trunk fits
    /// into that, else the CPU.
    Auto,
    /// The CPU with the best instructions it has.
    #[default]
    Cpu,
    /// The CPU with certain instructions.
    CpuIsa(compute::Isa),
    /// The GPU of a number in the list of [`crate::gpus`], or the first.
    Gpu(Option<usize>),
    /// The plain scalar reference: slow, and the oracle that everything else is held to.
    Reference,
}

/// Memory that the caller needs beside the engine, as a part of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Bytes whatever the model.
    pub bytes: u64,
    /// Bytes for each token of the vocabulary.
    pub bytes_per_token: u64,
}

/// Choices; the default suits the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Bound of everything that the process makes resident, in bytes; default: measured.
    pub memory: Option<u64>,
    /// Bound of what the engine keeps in the memory of a device that has some of its own, in bytes;
    /// default: nine tenths of it.
    pub vram: Option<u64>,
    /// Bound of the routed experts within that, in bytes; default: all that is left.
    pub expert_vram: Option<u64>,
    /// Whether a device whose memory is the host's gets copies of experts, although it could read them there.
    pub copy_experts: bool,
    /// What the caller needs beside the engine; default: nothing.
    pub beside: Beside,
    /// Bound of the memory for routed experts within that, in bytes; default: all that is left.
    pub expert_cache: Option<u64>,
    /// Threads that compute; default: the cores.
    pub threads: Option<usize>,
    /// How experts are read.
    pub reader: ReaderKind,
    /// Whether experts are read before they are asked for.
    pub look_ahead: LookAhead,
    /// Where it is kept which experts were used much, for the next start.
    pub heat_map: HeatMapPlace,
    /// The directory where kernels that were compiled for a GPU are kept for the next start; default: none.
    pub kernel_cache: Option<PathBuf>,
    /// Whether sequences are kept for those that begin as they did.
    pub prefix_cache: Option<PrefixCacheOptions>,
    /// Threads that read from the drive, where threads do.
    pub io_threads: usize,
    /// Longest sequence in tokens; default: what the budget allows, up to the model's own.
    pub context: Option<usize>,
    /// Most prompt tokens in one forward pass; default: what the budget allows.
    pub prompt_chunk: Option<usize>,
    /// Sequences that can be live at once.
    pub sessions: usize,
    /// The device.
    pub device: Device,
    /// Whether low-bit weights are multiplied with activations in `f32` instead of eight bits: slower,
    /// and as near to the reference as rounding allows.
    pub precise: bool,
    /// Savings that change what the model says; default: none.
    pub lossy: Lossy,
    /// A checkpoint of the same model with fewer bits, whose experts are used as `lossy` says; default: none.
    pub twin: Option<PathBuf>,
    /// How the CPU stores keys and values; default: in 16-bit floats, in `f32` where `precise`.
    pub kv_type: Option<compute::KvType>,
    /// Whether to read past the system's page cache.
    pub direct_io: bool,
    /// Who is told of every phase, every read and what each thread computed; its memory is part of the budget.
    pub recorder: Option<Recorder>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            memory: None,
            vram: None,
            expert_vram: None,
            copy_experts: false,
            beside: Beside::default(),
            expert_cache: None,
            threads: None,
            reader: ReaderKind::default(),
            look_ahead: LookAhead::default(),
            heat_map: HeatMapPlace::default(),
            kernel_cache: None,
            prefix_cache: None,
            io_threads: 4,
            context: None,
            prompt_chunk: None,
            sessions: 1,
            device: Device::default(),
            precise: false,
            lossy: Lossy::default(),
            twin: None,
            kv_type: None,
            direct_io: true,
            recorder: None,
        }
    }
}
