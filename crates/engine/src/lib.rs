//! The library's face: open a checkpoint, hold sessions, generate.
//!
//! ```no_run
//! use engine::{Engine, EngineOptions, GenerateOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = EngineOptions { memory: Some(8 << 30), ..EngineOptions::default() };
//! let mut engine = Engine::open("models/qwen3.5-35b-a3b".as_ref(), &options)?;
//! let prompt = engine.tokenizer()?.encode("Once upon a time")?;
//! let mut session = engine.session()?;
//! for step in engine.generate(&mut session, &prompt, GenerateOptions::default())? {
//!     print!("{}", step?.text);
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod budget;
mod constraint;
mod device;
mod engine;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod generate;
mod gpu_probe;
mod heat;
mod held;
mod inventory;
mod layerwise;
pub mod measure;
mod options;
mod pace;
mod prefix_cache;
mod resume;
mod runner;
mod sampler;
mod scheduler;
mod session;
mod stop;
#[cfg(test)]
mod test_device;
mod trunk;
mod twin;
mod usage;
pub mod verify;
mod writer;

pub use budget::{DevicePlan, MemoryPlan, format_bytes};
pub use compute::best;
pub use constraint::{Constraint, ConstraintError};
pub use device::{DeviceInfo, HAS_GPUS, gpus, tune_gpus};
pub use engine::{Engine, Part, plan_memory, settle_device};
pub use error::Error;
pub use generate::{FinishReason, GenerateOptions, Generation, Step};
pub use heat::{HeatMapPlace, HeatReport, HeatSaveError};
pub use inventory::{Inventory, TensorClass, TrunkLocation, TrunkTensor};
pub use options::{Beside, Device, EngineOptions};
pub use prefix_cache::PrefixCacheOptions;
pub use prefix_cache::stats::{Ignored, PrefixCacheStats};
pub use runner::LayerValues;
pub use sampler::{Sampling, TokenLogprob};
pub use scheduler::{Event, Request, RequestId, Scheduler, SchedulerStats};
pub use session::Session;
pub use stop::StopMatcher;
pub use twin::Twin;
pub use usage::Usage;

/// Eviction policies on recorded routing, without a model.
pub mod cache {
    pub use experts::{
        Frecency, Policy, PolicyKind, Residents, SimulatedHits, Trace, TraceError, TracedRequest,
        simulate, simulate_belady, simulate_watched,
    };
}

pub use compute::{Isa, KvType, Routing};
pub use experts::{LookAhead, ReaderKind, ReaderProbe, ReaderReport, parse_size};
pub use model::{LayerPass, Lossy, ObserveExperts, Phase, RoutedLayer};
pub use trace::{DEFAULT_SPANS, KernelReport, Recorder};
