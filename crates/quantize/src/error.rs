//! Why a checkpoint cannot be quantised or packed.

use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be quantised or packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something where the result should go.
    #[error("{} exists and is not an empty directory\nhint: give a new name", .path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// What another run has left cannot be continued by this one.
    #[error("{} is of an unfinished run with other options or another source\nhint: repeat that command to go on with it, or remove the directory", .path.display())]
    OtherRun {
        /// The directory.
        path: PathBuf,
    },
    /// Another run is writing there at this moment.
    #[error("{} is being written by another run\nhint: wait until that has ended, or give another name", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A recipe has a value that cannot be used.
    #[error("{field} is {found}, but must be {expected}")]
    Recipe {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A recipe is not one of those that have names.
    #[error("there is no recipe {name:?}\nhint: there are {known}, or give a .toml file")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The source lacks something, or has something that has no form in the result.
    #[error("{}: {what}", .path.display())]
    Source {
        /// The checkpoint.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// No widths of experts fit the budget.
    #[error(
        "{asked} bytes {of} are not between {least} (all experts at {least_bits} bits) and {most} (all at {most_bits})\nhint: give a budget in between, or no budget and one width for all"
    )]
    Budget {
        /// Bytes asked for.
        asked: u64,
        /// Of what.
        of: &'static str,
        /// The least possible.
        least: u64,
        /// The narrowest width.
        least_bits: u8,
        /// The most possible.
        most: u64,
        /// The widest width.
        most_bits: u8,
    },
    /// Rows that were recorded are of something else.
    #[error("{} holds what was recorded of another model or text\nhint: give another directory, or remove it", .path.display())]
    OtherCalibration {
        /// The directory.
        path: PathBuf,
    },
    /// The text for calibration cannot be used.
    #[error("{}: {what}", .path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A weight is infinite or not a number.
    #[error("{tensor} has values that are not finite")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// Weights span more than their scales can hold.
    #[error(
        "{tensor} has values too large for codes of {bits} bits with scales in {scales}\nhint: keep them"
    )]
    Range {
        /// The tensor.
        tensor: String,
        /// Width of the codes.
        bits: u8,
        /// Type of the scales.
        scales: &'static str,
    },
    /// What was written does not read back.
    #[error("{}: {tensor} does not read back as it was written\nhint: the drive or the memory is faulty; the same command writes it anew", .path.display())]
    Verify {
        /// The file.
        path: PathBuf,
        /// What was there.
        tensor: String,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The model cannot be run.
    #[error(transparent)]
    Engine(#[from] engine::Error),
}

/// Makes an error of what the system said about a file.
pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}
