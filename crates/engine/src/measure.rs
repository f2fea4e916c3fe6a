//! What a benchmark needs besides the engine: the machine's speeds, a cold cache, and how many bytes a
//! token must touch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use compute::Backend;
use experts::{DataFiles, ExpertStore, IoMode};

use crate::device::{OnDevice, on_device};
use crate::error::Error;
use crate::inventory::Inventory;
use crate::options::EngineOptions;

pub use crate::device::own_memory_bandwidth;
pub use crate::gpu_probe::{GpuProbe, KernelRate, probe_gpu};
pub use compute::memory_bandwidth;
pub use experts::{
    DriveProbe, DriveSpeed, MemoryLimits, evict_pages, peak_resident_bytes, reset_peak_resident,
    resident_share,
};

/// Bytes of memory that a decoded token reads at least once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeBytes {
    /// The trunk: all of it but the embedding table, of which it reads one row.
    pub dense: u64,
    /// Its routed experts, as many as it uses at most.
    pub experts: u64,
    /// Keys, values and recurrent states of the sequence before it.
    pub states: u64,
}

impl DecodeBytes {
    /// For a token after `position` others, on the options' device.
    pub fn of(
        inventory: &Inventory,
        options: &EngineOptions,
        position: usize,
    ) -> Result<Self, Error> {
        struct StateBytes<'a>(&'a Inventory, usize);
        impl OnDevice for StateBytes<'_> {
            type Output = u64;

            fn run<B: Backend>(self, backend: B) -> Result<u64, Error> {
                Ok(self.0.outline.sequence_state_bytes(&backend, self.1))
            }
        }
        let options = EngineOptions { threads: Some(1), recorder: None, ..options.clone() };
        let states = on_device(&options, StateBytes(inventory, position))?;
        let config = inventory.checkpoint.config();
        let embedding = inventory.trunk.iter().find(|t| t.name == "embed_tokens.weight");
        let embedding = embedding.map_or(0, |tensor| tensor.bytes());
        // A tied head reads the whole table in the place of one of its own.
        let unread = if config.tie_word_embeddings { 0 } else { embedding };
        let row = embedding / config.vocab_size.max(1) as u64;
        let dense = inventory.trunk_bytes() - unread + row;
        let top_k = config.moe.top_k;
        let experts = inventory.expert_bytes_per_token() / top_k.max(1) as u64;
        let experts = experts * options.lossy.top_k(top_k) as u64;
        Ok(Self { dense, experts, states })
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.dense + self.experts + self.states
    }
}

/// A checkpoint's data files, open for measurements of their drive.
pub struct Drive {
    files: Arc<DataFiles>,
    paths: Vec<PathBuf>,
    lens: Vec<u64>,
    read_bytes: u64,
}

impl Drive {
    /// Opens the files of a checkpoint.
    pub fn open(inventory: &Inventory) -> Result<Self, Error> {
        let files = inventory.checkpoint.files();
        let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
        let lens = files.iter().map(|file| file.len).collect();
        let read_bytes = ExpertStore::slot_bytes(&inventory.experts);
        let files = Arc::new(DataFiles::open(&paths, IoMode::Direct)?);
        Ok(Self { files, paths, lens, read_bytes })
    }

    /// The files.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Direct random reads of an expert's size.
    pub fn measure(
        &self,
        in_flight_bytes: u64,
        duration: Duration,
        seed: u64,
    ) -> Result<DriveSpeed, Error> {
        let probe = DriveProbe { read_bytes: self.read_bytes, in_flight_bytes, duration, seed };
        Ok(probe.run(&self.files, &self.lens)?)
    }

    /// Bytes of each of those reads.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Asks the system to drop the files' pages from its cache; gives the share of their bytes that is
    /// still there, or why that cannot be known.
    pub fn make_cold(&self) -> std::io::Result<f64> {
        let mut resident = 0.0;
        for (path, &len) in self.paths.iter().zip(&self.lens) {
            evict_pages(path)?;
            resident += resident_share(path)? * len as f64;
        }
        let total: u64 = self.lens.iter().sum();
        Ok(if total > 0 { resident / total as f64 } else { 0.0 })
    }
}
