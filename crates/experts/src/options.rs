//! What an expert store is told, what it tells, and what can go wrong with it.

use std::path::PathBuf;
use std::time::Duration;

use trace::Recorder;

use crate::files::IoError;
use crate::policy::PolicyKind;
use crate::reader::ReaderKind;
use crate::store::{ExpertStore, LookAhead};

/// How an expert store works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of all slots together, at most.
    pub cache_bytes: u64,
    /// How experts are read.
    pub reader: ReaderKind,
    /// Threads that read, where threads do.
    pub io_threads: usize,
    /// Which expert leaves.
    pub policy: PolicyKind,
    /// Who is told of every read.
    pub recorder: Option<Recorder>,
    /// Whether experts are read before they are asked for.
    pub look_ahead: LookAhead,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 0,
            reader: ReaderKind::default(),
            io_threads: 4,
            policy: PolicyKind::default(),
            recorder: None,
            look_ahead: LookAhead::default(),
        }
    }
}

/// What moving experts cost since the store was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Experts that were in memory when they were asked for.
    pub hits: u64,
    /// Experts that had to be read.
    pub misses: u64,
    /// Experts that were read before they were asked for.
    pub ahead_reads: u64,
    /// Those of them that the next request asked for.
    pub ahead_useful: u64,
    /// Experts that were read because a heat map says that they will be asked for some time.
    pub warm_reads: u64,
    /// Those of them that were asked for before they left.
    pub warm_useful: u64,
    /// Bytes of the experts that were asked for, each as often as rows use it.
    pub used_bytes: u64,
    /// How often rows used the twin of an expert in its place.
    pub twin_uses: u64,
    /// Bytes that those uses had less than the experts would have.
    pub twin_saved_bytes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Time that the caller waited for the drive.
    pub drive_wait: Duration,
    /// Time in which at least one expert was being read.
    pub drive_busy: Duration,
    /// Time that the caller spent on handing reads to the system.
    pub submitting: Duration,
    /// Time that the caller spent on requests and deliveries otherwise.
    pub bookkeeping: Duration,
}

impl Stats {
    /// Time that is no bookkeeping.
    pub(crate) fn elsewhere(&self) -> Duration {
        self.drive_wait + self.submitting
    }
}

/// Why the store cannot be made, or an expert not be delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Too little memory for even the fewest slots.
    #[error(
        "{cache_bytes} bytes hold fewer than {} experts of {slot_bytes} bytes",
        ExpertStore::MIN_SLOTS
    )]
    TooSmall {
        /// The bytes given.
        cache_bytes: u64,
        /// Bytes of a slot.
        slot_bytes: u64,
    },
    /// Memory or threads could not be had.
    #[error("the slots of {bytes} bytes or their reading threads could not be set up: {source}")]
    Setup {
        /// Bytes of all slots.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A read failed.
    #[error("expert {expert} of layer {layer} could not be read: {source}")]
    Read {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: u32,
        /// Why.
        source: IoError,
    },
    /// A scale or bias is infinite or not a number.
    #[error(
        "expert {expert} of layer {layer} has scales that are not finite, in {}\n\
         hint: the file is damaged; fetch it again",
        .path.display()
    )]
    NotFinite {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: u32,
        /// The file with its gate projection.
        path: PathBuf,
    },
    /// The caller holds every slot, so nothing can be read.
    #[error("all {n_slots} expert slots are held while another expert is wanted")]
    AllHeld {
        /// Number of slots.
        n_slots: usize,
    },
    /// No thread is left that could read.
    #[error("the reading threads have ended")]
    ReadersGone,
}
