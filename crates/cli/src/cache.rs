//! Where files are kept that can be made anew.

use std::path::PathBuf;

/// The directory that the user or the system has for this program's cache, if there is one.
pub fn directory() -> Option<PathBuf> {
    if let Some(cache) = variable("FLASH_MOE_CACHE") {
        return Some(cache);
    }
    let home = variable("HOME");
    let cache = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library/Caches"))
    } else {
        // A relative path there is to be ignored, says the specification.
        let cache = variable("XDG_CACHE_HOME").filter(|cache| cache.is_absolute());
        cache.or_else(|| home.map(|home| home.join(".cache")))
    };
    cache.map(|cache| cache.join("flash-moe"))
}

/// Whether the user has said where the cache is to be.
pub fn is_chosen() -> bool {
    variable("FLASH_MOE_CACHE").is_some()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
