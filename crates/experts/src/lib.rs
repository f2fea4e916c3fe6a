//! Where each expert lies, and how its bytes move into memory slots under a budget.
//!
//! [`ExpertStore`] holds a fixed number of slots. A layer's request is answered expert by expert, each
//! as soon as its bytes are there; reads go past the page cache ([`DataFiles`]), so that what a process
//! uses is what it was given. Nothing here knows what an expert computes.

#![deny(unsafe_code)]

mod files;
mod heat_map;
mod memory;
mod options;
mod page_cache;
mod plan;
mod policy;
mod prefault;
mod probe;
mod reader;
mod simulate;
mod store;
mod trace;

pub use crate::trace::{Trace, TraceError, TracedRequest};
pub use files::{DataFiles, IoError, IoMode};
pub use heat_map::{HeatMap, HeatMapError, identity};
pub use memory::{
    BadSize, GroupLimit, MemoryLimits, UnknownMemory, parse_size, peak_resident_bytes,
    process_resident_bytes, reset_peak_resident,
};
pub use options::{Stats, StoreError, StoreOptions};
pub use page_cache::{evict_pages, resident_share};
pub use plan::{MAX_PARTS, ReadPlan};
pub use policy::{Belady, Clock, Frecency, Lfu, Lru, Policy, PolicyKind};
pub use probe::{DriveProbe, DriveSpeed};
pub use reader::{ReaderKind, ReaderProbe, ReaderReport};
pub use simulate::{Residents, SimulatedHits, simulate, simulate_belady, simulate_watched};
pub use store::{ExpertStore, LookAhead};
