//! The file of an entry (`docs/prefix-cache.md`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use model::{SavedParts, SavedShape};

use crate::prefix_cache::key::{Key, VERSION};
use crate::prefix_cache::{EntryId, Kind};

/// The first bytes of a file.
const MAGIC: [u8; 8] = *b"FM-PREFX";
/// Bytes before the parts.
const HEADER_BYTES: usize = 96;
/// Bytes of the checksum at the end.
const CHECKSUM_BYTES: usize = 32;

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no entry of a prefix cache")]
    NotOne,
    #[error("it has another version")]
    Version,
    #[error("it is of another model or build")]
    OtherModel,
    #[error("it is another entry than its name says")]
    Misnamed,
    #[error("it has the wrong length")]
    Length,
    #[error("it is damaged")]
    Damaged,
}

/// Length of the file of an entry.
pub(crate) fn file_bytes(shape: SavedShape) -> u64 {
    shape.bytes() + (HEADER_BYTES + CHECKSUM_BYTES) as u64
}

/// All bytes before the parts.
pub(crate) fn header(identity: &Key, id: EntryId, shape: SavedShape) -> [u8; HEADER_BYTES] {
    let kind: u32 = match id.kind {
        Kind::KeysAndValues => 0,
        Kind::Recurrent => 1,
    };
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&kind.to_le_bytes());
    header[16..48].copy_from_slice(&identity.0);
    header[48..80].copy_from_slice(&id.key.0);
    header[80..88].copy_from_slice(&(shape.n_parts as u64).to_le_bytes());
    header[88..96].copy_from_slice(&(shape.part_bytes as u64).to_le_bytes());
    header
}

/// Why a header is not the expected one; the same one is damaged nowhere.
fn compare(found: &[u8; HEADER_BYTES], expected: &[u8; HEADER_BYTES]) -> Result<(), FileError> {
    let differs = |range: std::ops::Range<usize>| found[range.clone()] != expected[range];
    match () {
        () if differs(0..8) => Err(FileError::NotOne),
        () if differs(8..12) => Err(FileError::Version),
        () if differs(16..48) => Err(FileError::OtherModel),
        () if differs(12..80) => Err(FileError::Misnamed),
        () if differs(80..HEADER_BYTES) => Err(FileError::Length),
        () => Ok(()),
    }
}

/// Reads the file of an entry.
pub(crate) fn read(
    path: &Path,
    identity: &Key,
    id: EntryId,
    shape: SavedShape,
) -> Result<SavedParts, FileError> {
    // To open a pipe would wait for a writer.
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Err(FileError::NotOne);
    }
    parse(&mut File::open(path)?, metadata.len(), identity, id, shape)
}

/// The parts in a file of so many bytes. Nothing of it is believed before the checksum was compared, and no more
/// memory is taken than an entry of this shape has bytes.
pub(crate) fn parse(
    file: &mut impl Read,
    len: u64,
    identity: &Key,
    id: EntryId,
    shape: SavedShape,
) -> Result<SavedParts, FileError> {
    let mut found = [0; HEADER_BYTES];
    read_exact(file, &mut found)?;
    compare(&found, &header(identity, id, shape))?;
    if len != file_bytes(shape) {
        return Err(FileError::Length);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&found);
    let mut parts = Vec::with_capacity(shape.n_parts);
    for _ in 0..shape.n_parts {
        let mut part = vec![0; shape.part_bytes];
        read_exact(file, &mut part)?;
        hasher.update(&part);
        parts.push(part);
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    read_exact(file, &mut checksum)?;
    match hasher.finalize() == checksum {
        true => Ok(parts),
        false => Err(FileError::Damaged),
    }
}

fn read_exact(file: &mut impl Read, out: &mut [u8]) -> Result<(), FileError> {
    file.read_exact(out).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FileError::Length,
        _ => FileError::Io(error),
    })
}

/// Writes the file of an entry: under another name first, so that nobody ever reads half of it. What a
/// crash of the machine leaves of it, the checksum finds.
pub(crate) fn write(
    path: &Path,
    partial: &Path,
    identity: &Key,
    id: EntryId,
    parts: &SavedParts,
) -> io::Result<()> {
    let part_bytes = parts.first().map_or(0, Vec::len);
    let header = header(identity, id, SavedShape { n_parts: parts.len(), part_bytes });
    let write = || -> io::Result<()> {
        let mut file =
            private(OpenOptions::new().write(true).create(true).truncate(true)).open(partial)?;
        let mut hasher = blake3::Hasher::new();
        for bytes in std::iter::once(&header[..]).chain(parts.iter().map(Vec::as_slice)) {
            hasher.update(bytes);
            file.write_all(bytes)?;
        }
        file.write_all(hasher.finalize().as_bytes())?;
        fs::rename(partial, path)
    };
    let result = write();
    if result.is_err() {
        // It may not even be there.
        drop(fs::remove_file(partial));
    }
    result
}

/// What was said is in the files: nobody else may read them, where the system knows of that.
pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}
