//! What a run is known by, so that what a killed one has left is used by the same one alone.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::UNIX_EPOCH;

use engine::Inventory;

use crate::error::{Error, io_at};

/// Bytes at the end of a file that are read. Its header and its length are those of every model of that shape, its
/// weights are not.
const TAIL_BYTES: u64 = 64 << 10;

/// A line that is the same only for the same program, source and choices (`what`). The source counts as its
/// configuration and tokenizer, and names, lengths, times and last bytes of its files; wherever it lies.
pub(crate) fn identity(inventory: &Inventory, what: &str) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    for file in inventory.checkpoint.files() {
        add_file(&mut hasher, &file.path).map_err(io_at(&file.path))?;
    }
    for name in ["config.json", "tokenizer.json"] {
        let path = inventory.checkpoint.path().join(name);
        if path.is_file() {
            let contents = fs::read(&path).map_err(io_at(&path))?;
            hasher.update(blake3::hash(&contents).as_bytes());
        }
    }
    hasher.update(what.as_bytes());
    Ok(format!("flash-moe {} {}\n", env!("CARGO_PKG_VERSION"), hasher.finalize()))
}

fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let len = metadata.len();
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    hasher.update(format!("{:?} {len} {modified:?}\n", path.file_name()).as_bytes());
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    hasher.update(&tail);
    Ok(())
}
