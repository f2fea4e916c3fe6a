//! Where files are kept that can be made anew.

use std::path::PathBuf;

use terminal::paths::{user_directory, variable};

/// The directory that the user or the system has for this program's cache, if there is one.
pub fn directory() -> Option<PathBuf> {
    let platform = || user_directory("LOCALAPPDATA", "Library/Caches", "XDG_CACHE_HOME", ".cache");
    variable("FLASH_MOE_CACHE").or_else(platform)
}

/// Whether the user has said where the cache is to be.
pub fn is_chosen() -> bool {
    variable("FLASH_MOE_CACHE").is_some()
}
