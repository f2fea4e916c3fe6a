//! Numbers about the prefix cache, for people.

use crate::prefix_cache::file::FileError;

/// What the prefix cache holds, and what it was worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixCacheStats {
    /// Sequences that were looked for.
    pub lookups: u64,
    /// Those of which a part was found.
    pub hits: u64,
    /// Tokens that were looked for.
    pub tokens: u64,
    /// Those that were found.
    pub cached_tokens: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Entries in memory.
    pub entries: usize,
    /// Entries that left memory because it was full.
    pub evictions: u64,
    /// Bytes of files in the directory, of all models and processes, when it was last written to.
    pub disk_bytes: u64,
    /// Files read.
    pub disk_reads: u64,
    /// Files written.
    pub disk_writes: u64,
    /// Times that nothing was written because another process was writing, or the system refused.
    pub disk_skips: u64,
    /// Files that were not used, and deleted unless the system refused to read them.
    pub ignored: Ignored,
}

/// Numbers of files that were not used, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// The system could not read them.
    pub unreadable: u64,
    /// They are no entries of a prefix cache.
    pub not_one: u64,
    /// They have another version.
    pub version: u64,
    /// They are of another model or build.
    pub other_model: u64,
    /// They are other entries than their names say.
    pub misnamed: u64,
    /// They have the wrong length.
    pub length: u64,
    /// Their checksums are wrong.
    pub damaged: u64,
}

impl Ignored {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { unreadable, not_one, version, other_model, misnamed, length, damaged } = *self;
        unreadable + not_one + version + other_model + misnamed + length + damaged
    }

    pub(crate) fn count(&mut self, error: &FileError) {
        let count = match error {
            FileError::Io(_) => &mut self.unreadable,
            FileError::NotOne => &mut self.not_one,
            FileError::Version => &mut self.version,
            FileError::OtherModel => &mut self.other_model,
            FileError::Misnamed => &mut self.misnamed,
            FileError::Length => &mut self.length,
            FileError::Damaged => &mut self.damaged,
        };
        *count += 1;
    }
}
