//! The heat map of an engine's experts: where it lies, what came of it at the start, its writing at the
//! end.

use std::path::PathBuf;

use checkpoint::ExpertTable;
use experts::{ExpertStore, HeatMap, HeatMapError};

/// Where the heat map of a checkpoint is kept between two runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HeatMapPlace {
    /// Nowhere: every run begins with nothing in memory and leaves nothing.
    #[default]
    Off,
    /// In this directory, in a file with a name of its own.
    Directory(PathBuf),
    /// In this file. Another file than a heat map is never overwritten.
    File(PathBuf),
}

/// What came of the heat map when an engine was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeatReport {
    /// Its file.
    pub path: PathBuf,
    /// Number of experts that it says were used; `None` when there was none, or it was ignored.
    pub n_used: Option<usize>,
    /// Why it was ignored, if one was there.
    pub ignored: Option<String>,
}

/// Why a heat map could not be saved. Nothing but the speed of the next start depends on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeatSaveError {
    /// The system refused.
    #[error("the heat map {} could not be written: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else is in the place that was given.
    #[error("{} is no heat map and was left as it is", .path.display())]
    NotOne {
        /// The file.
        path: PathBuf,
    },
}

/// The heat map of an engine.
pub(crate) struct Heat {
    identity: u64,
    /// Whether the name is ours, so that whatever has it can be replaced.
    is_own_name: bool,
    report: HeatReport,
    /// Experts asked for until it was last saved.
    n_saved: u64,
}

impl Heat {
    /// For a checkpoint with such files and layers; `None` when it shall or can be kept nowhere.
    pub(crate) fn new(
        place: &HeatMapPlace,
        files: &[PathBuf],
        layers: &[ExpertTable],
    ) -> Option<(Self, Option<HeatMap>)> {
        if *place == HeatMapPlace::Off {
            return None;
        }
        // Files that were opened a moment ago and cannot be asked for their size now are about to
        // trouble others.
        let identity = experts::identity(files, layers).ok()?;
        let (path, is_own_name) = match place {
            HeatMapPlace::Off => return None,
            HeatMapPlace::Directory(directory) => {
                (directory.join(format!("heat-{identity:016x}")), true)
            }
            HeatMapPlace::File(path) => (path.clone(), false),
        };
        let (map, ignored) = match HeatMap::load(&path, identity, layers) {
            Ok(map) => (Some(map), None),
            Err(HeatMapError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                (None, None)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let n_used = map.as_ref().map(HeatMap::n_used);
        let report = HeatReport { path, n_used, ignored };
        Some((Self { identity, is_own_name, report, n_saved: 0 }, map))
    }

    pub(crate) fn report(&self) -> &HeatReport {
        &self.report
    }

    /// Writes what a store knows, if it knows more than when that was done last.
    pub(crate) fn save(&mut self, store: &ExpertStore) -> Result<(), HeatSaveError> {
        let n_asked = store.stats().hits + store.stats().misses;
        if n_asked == self.n_saved {
            return Ok(());
        }
        // Who was told of a failure need not be told again.
        self.n_saved = n_asked;
        let path = &self.report.path;
        if !self.is_own_name && !HeatMap::may_replace(path) {
            return Err(HeatSaveError::NotOne { path: path.clone() });
        }
        let map = store.heat_map();
        map.save(path, self.identity)
            .map_err(|source| HeatSaveError::Io { path: path.clone(), source })
    }
}
