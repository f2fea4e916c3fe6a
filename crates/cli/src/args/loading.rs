//! What a model is loaded with and computed by, as typed, and the engine's options made from it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use engine::{Device, EngineOptions, Isa, KvType, LookAhead, Lossy, ReaderKind};

use crate::args::{positive, size};

/// What every command that loads a model takes.
#[derive(Args, Debug)]
pub struct EngineArgs {
    /// Bound of all memory that the process uses, such as 8G; default: nine tenths of what is free.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Bound of the memory for routed experts within that; default: all that is left.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub expert_cache: Option<u64>,
    /// Threads that compute; default: all cores.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// How experts are read.
    #[arg(long, value_enum, default_value_t = ReaderArg::Auto)]
    pub reader: ReaderArg,
    /// Read experts before they are asked for, while the drive is idle; auto: while that pays.
    #[arg(long, value_enum, default_value_t = LookAheadArg::Auto)]
    pub look_ahead: LookAheadArg,
    /// Threads that read from the drive, where threads do.
    #[arg(long, value_name = "N", default_value = "4", value_parser = positive)]
    pub io_threads: usize,
    /// Longest sequence in tokens; default: what the budget allows.
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub context: Option<usize>,
    /// Most prompt tokens in one forward pass; default: what the budget allows.
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub prompt_chunk: Option<usize>,
    /// What computes: cpu, gpu, or gpu:N with a number from `flash-moe devices`; auto takes the GPU if it
    /// reads its memory faster than the CPU and the model's trunk fits into that. For tests: reference,
    /// which is slow and what everything is compared with, and the CPU with certain instructions,
    /// cpu-scalar, cpu-avx2, cpu-avx512, cpu-neon, cpu-neon-dotprod.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: Device,
    /// Bound of what is kept in the memory of a GPU, within that the trunk and as many routed experts as
    /// fit; default: nine tenths of it.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub vram: Option<u64>,
    /// Bound of the memory of a GPU for routed experts within that; default: all that is left. Experts beyond it
    /// are kept in the host's memory as far as there is room, and moved when they are used.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub expert_vram: Option<u64>,
    /// Copy experts to a GPU whose memory is the host's instead of letting it read them where they are: to compare.
    #[arg(long)]
    pub copy_experts: bool,
    /// Multiply low-bit weights with activations in 32-bit floats instead of 8-bit integers: slower, and
    /// as near to the reference implementation as rounding allows.
    #[arg(long)]
    pub precise: bool,
    /// How the CPU stores keys and values of attention; default: f16, or f32 with --precise. GPUs have f16.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub kv_type: Option<KvTypeArg>,
    /// Read through the system's page cache instead of past it.
    #[arg(long)]
    pub buffered_io: bool,
    #[command(flatten)]
    pub lossy: LossyArgs,
}

/// Savings that change what the model says; `flash-moe eval` measures what they cost.
#[derive(Args, Debug)]
#[command(next_help_heading = "Lossy savings, off by default")]
pub struct LossyArgs {
    /// Use only the best K experts of each token, fewer than the model was trained with.
    #[arg(long, value_name = "K", value_parser = positive)]
    pub experts_per_token: Option<usize>,
    /// Leave out experts with less than this share of a token's routed weight, such as 0.05.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub expert_drop: f32,
    /// Let an expert in memory replace one that is not, if its router logit is at most so much smaller, such
    /// as 0.5. The output then depends on what was computed before.
    #[arg(long, value_name = "LOGITS", default_value_t = 0.0)]
    pub cache_bias: f32,
    /// With a GPU: let the CPU compute experts that are in the host's memory when that is measured to be sooner than
    /// moving them to the GPU. The output then depends on which those are, within rounding.
    #[arg(long)]
    pub device_split: bool,
    /// A checkpoint of the same model with fewer bits, such as `flash-moe quantize` makes: with --twin-share,
    /// its experts are used in the place of those that are not in memory and weigh little.
    #[arg(long, value_name = "DIR", requires = "twin_share")]
    pub twin: Option<PathBuf>,
    /// Use the twin of an expert that is not in memory if it has at most this share of a token's routed weight,
    /// such as 0.1. The output then depends on what was computed before.
    #[arg(long, value_name = "SHARE", requires = "twin")]
    pub twin_share: Option<f32>,
}

impl EngineArgs {
    /// The engine's options.
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            memory: self.memory,
            expert_cache: self.expert_cache,
            threads: self.threads,
            reader: self.reader.into(),
            look_ahead: self.look_ahead.into(),
            io_threads: self.io_threads,
            context: self.context,
            prompt_chunk: self.prompt_chunk,
            device: self.device,
            vram: self.vram,
            expert_vram: self.expert_vram,
            copy_experts: self.copy_experts,
            precise: self.precise,
            kv_type: self.kv_type.map(KvTypeArg::into),
            direct_io: !self.buffered_io,
            lossy: Lossy {
                experts_per_token: self.lossy.experts_per_token,
                expert_drop: self.lossy.expert_drop,
                cache_bias: self.lossy.cache_bias,
                device_split: self.lossy.device_split,
                twin_share: self.lossy.twin_share.unwrap_or(0.0),
            },
            twin: self.lossy.twin.clone(),
            kernel_cache: crate::cache::directory(),
            ..EngineOptions::default()
        }
    }
}

/// Names of readers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReaderArg {
    /// Whichever a short measurement finds better on this machine and this file.
    Auto,
    /// A pool of threads.
    Threads,
    /// Linux's io_uring, or threads where it cannot be had.
    Uring,
}

impl From<ReaderArg> for ReaderKind {
    fn from(reader: ReaderArg) -> Self {
        match reader {
            ReaderArg::Auto => Self::Auto,
            ReaderArg::Threads => Self::Threads,
            ReaderArg::Uring => Self::Uring,
        }
    }
}

/// Whether to look ahead.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LookAheadArg {
    /// While it pays.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl From<LookAheadArg> for LookAhead {
    fn from(look_ahead: LookAheadArg) -> Self {
        match look_ahead {
            LookAheadArg::Auto => Self::Auto,
            LookAheadArg::On => Self::On,
            LookAheadArg::Off => Self::Off,
        }
    }
}

/// The devices that have names of their own.
const DEVICES: [(&str, Device); 11] = [
    ("auto", Device::Auto),
    ("cpu", Device::Cpu),
    ("cpu-scalar", Device::CpuIsa(Isa::Scalar)),
    ("cpu-avx2", Device::CpuIsa(Isa::Avx2)),
    ("cpu-avx-vnni", Device::CpuIsa(Isa::AvxVnni)),
    ("cpu-avx512", Device::CpuIsa(Isa::Avx512)),
    ("cpu-neon", Device::CpuIsa(Isa::Neon)),
    ("cpu-neon-dotprod", Device::CpuIsa(Isa::NeonDotprod)),
    ("cpu-neon-i8mm", Device::CpuIsa(Isa::NeonI8mm)),
    ("gpu", Device::Gpu(None)),
    ("reference", Device::Reference),
];

fn device(text: &str) -> Result<Device, String> {
    let number = || text.strip_prefix("gpu:")?.parse().ok();
    let named = DEVICES.iter().find(|(name, _)| *name == text).map(|(_, device)| *device);
    named.or_else(|| number().map(|number| Device::Gpu(Some(number)))).ok_or_else(|| {
        let names = DEVICES.map(|(name, _)| name).join(", ");
        format!("must be one of {names}, or gpu:N with a number from `flash-moe devices`")
    })
}

/// Types of keys and values.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KvTypeArg {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// 8.5 bits a value: about half the memory of f16, for longer contexts.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<KvTypeArg> for KvType {
    fn from(kv_type: KvTypeArg) -> Self {
        match kv_type {
            KvTypeArg::F32 => Self::F32,
            KvTypeArg::F16 => Self::F16,
            KvTypeArg::Q8_0 => Self::Q8_0,
        }
    }
}
