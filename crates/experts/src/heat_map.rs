//! How hot each expert was, in a small file between two runs (`docs/heat-map.md`).
//!
//! A heat map changes which experts are in memory and never what is computed, so whatever is wrong with
//! one, it is left alone and the run begins cold. What it holds of an expert is what the eviction
//! policy holds: the number of its uses, each counted less as others follow it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use checkpoint::ExpertTable;

/// The first bytes of the file.
const MAGIC: [u8; 8] = *b"FM-HEAT\n";
/// The version of the layout.
const VERSION: u32 = 1;
/// Bytes before the numbers of experts.
const HEADER_BYTES: usize = 24;
/// Steps of heat to a doubling of uses.
const STEPS: f64 = 8.0;
/// The logarithm of the number of uses that a heat of 1 stands for: what is less is as good as never.
const COLDEST: f64 = -12.0;

/// How hot each expert is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeatMap {
    /// Number of experts of each layer.
    counts: Vec<u32>,
    /// Of all experts, layer by layer: 0 for one never used, else a logarithm.
    heat: Vec<u8>,
}

/// Why there is no heat map to be had from a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeatMapError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something else is there.
    #[error("it is no heat map")]
    NotOne,
    /// Another version of the program wrote it.
    #[error("it has version {found}, not {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// It was written for another checkpoint, or this one was changed.
    #[error("it is of another checkpoint")]
    OtherCheckpoint,
    /// It was cut, or something follows.
    #[error("it has not {expected} bytes")]
    Length {
        /// The right length.
        expected: usize,
    },
    /// Its checksum is wrong.
    #[error("it is damaged")]
    Damaged,
}

impl HeatMap {
    /// From what the uses of each expert are worth, as logarithms to base 2, layer by layer.
    pub(crate) fn new(layers: &[ExpertTable], worths: impl Iterator<Item = Option<f64>>) -> Self {
        let heat = worths.map(|worth| match worth {
            // The cast saturates.
            Some(worth) => ((STEPS * (worth - COLDEST)).round() as u8).saturating_add(1),
            None => 0,
        });
        Self { counts: counts(layers), heat: heat.collect() }
    }

    /// What the uses of each expert are worth.
    pub(crate) fn worths(&self) -> impl Iterator<Item = Option<f64>> {
        let worth = |heat: u8| COLDEST + f64::from(heat - 1) / STEPS;
        self.heat.iter().map(move |&heat| (heat > 0).then(|| worth(heat)))
    }

    /// Whether it is of a model with such layers.
    pub(crate) fn fits(&self, layers: &[ExpertTable]) -> bool {
        self.counts == counts(layers)
    }

    /// Number of experts that were ever used.
    pub fn n_used(&self) -> usize {
        self.heat.iter().filter(|&&heat| heat > 0).count()
    }

    /// Reads the heat map of a checkpoint with this [`identity`] and these layers.
    pub fn load(path: &Path, identity: u64, layers: &[ExpertTable]) -> Result<Self, HeatMapError> {
        // To open a pipe would wait for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(HeatMapError::NotOne);
        }
        let counts = counts(layers);
        let expected = file_bytes(&counts);
        let mut bytes = Vec::with_capacity(expected + 1);
        File::open(path)?.take(expected as u64 + 1).read_to_end(&mut bytes)?;
        Self::parse(&bytes, identity, counts)
    }

    fn parse(bytes: &[u8], identity: u64, counts: Vec<u32>) -> Result<Self, HeatMapError> {
        let expected = file_bytes(&counts);
        let rest = bytes.strip_prefix(&MAGIC).ok_or(HeatMapError::NotOne)?;
        let (version, _) = rest.split_first_chunk().ok_or(HeatMapError::Length { expected })?;
        let found = u32::from_le_bytes(*version);
        if found != VERSION {
            return Err(HeatMapError::Version { found });
        }
        let head = head(identity, &counts);
        match bytes.get(..head.len()) {
            Some(found) if found == head => {}
            Some(_) => return Err(HeatMapError::OtherCheckpoint),
            None => return Err(HeatMapError::Length { expected }),
        }
        if bytes.len() != expected {
            return Err(HeatMapError::Length { expected });
        }
        let (content, sum) = bytes.split_last_chunk().ok_or(HeatMapError::Length { expected })?;
        if u64::from_le_bytes(*sum) != hash([content]) {
            return Err(HeatMapError::Damaged);
        }
        Ok(Self { counts, heat: content[head.len()..].to_vec() })
    }

    /// Writes it for a checkpoint: under another name first, so that nobody ever reads half of it.
    /// Directories on the way are made.
    pub fn save(&self, path: &Path, identity: u64) -> io::Result<()> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut bytes = head(identity, &self.counts);
        bytes.extend_from_slice(&self.heat);
        bytes.extend_from_slice(&hash([&bytes[..]]).to_le_bytes());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let (process, count) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{process}.{count}.tmp"));
        let partial = PathBuf::from(partial);
        let result = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
        if result.is_err() {
            // It may not even be there.
            drop(fs::remove_file(&partial));
        }
        result
    }

    /// Whether a heat map may take the place of what is at a path: nothing, or a heat map of whatever
    /// checkpoint and version.
    pub fn may_replace(path: &Path) -> bool {
        let is_heat_map = |metadata: fs::Metadata| {
            let mut begin = [0; MAGIC.len()];
            metadata.is_file()
                && File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok()
                && begin == MAGIC
        };
        match fs::metadata(path) {
            Ok(metadata) => is_heat_map(metadata),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Tells checkpoints apart, and one from itself after a change: a hash of the canonical paths, lengths
/// and times of change of its files, and of the number of experts of each layer.
pub fn identity(files: &[PathBuf], layers: &[ExpertTable]) -> io::Result<u64> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for path in files {
        let path = fs::canonicalize(path)?;
        let metadata = fs::metadata(&path)?;
        let changed = metadata.modified().ok();
        let changed = changed.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let changed = changed.map_or(0, |time| time.as_nanos());
        let name = path.as_os_str().as_encoded_bytes();
        parts.push((name.len() as u64).to_le_bytes().to_vec());
        parts.push(name.to_vec());
        parts.push(metadata.len().to_le_bytes().to_vec());
        parts.push(changed.to_le_bytes().to_vec());
    }
    parts.extend(counts(layers).into_iter().map(|count| count.to_le_bytes().to_vec()));
    Ok(hash(parts.iter().map(Vec::as_slice)))
}

fn counts(layers: &[ExpertTable]) -> Vec<u32> {
    layers.iter().map(|table| table.len() as u32).collect()
}

/// All bytes before the heat.
fn head(identity: u64, counts: &[u32]) -> Vec<u8> {
    let mut head = Vec::with_capacity(file_bytes(counts));
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(counts.len() as u32).to_le_bytes());
    head.extend_from_slice(&identity.to_le_bytes());
    for count in counts {
        head.extend_from_slice(&count.to_le_bytes());
    }
    head
}

fn file_bytes(counts: &[u32]) -> usize {
    let n_experts: usize = counts.iter().map(|&count| count as usize).sum();
    HEADER_BYTES + size_of_val(counts) + n_experts + size_of::<u64>()
}

/// FNV-1a: finds accidents, and is not meant to find intent.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let bytes = parts.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
