//! Where the user's own files lie: what was said, and what is configured.

use std::path::PathBuf;

/// The directory of sessions and history, if the system has one: `$FLASH_MOE_DATA`, else where the platform keeps
/// a program's data.
pub fn data_directory() -> Option<PathBuf> {
    if let Some(data) = variable("FLASH_MOE_DATA") {
        return Some(data);
    }
    let home = variable("HOME");
    let data = if cfg!(windows) {
        variable("APPDATA")
    } else if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library/Application Support"))
    } else {
        // A relative path there is to be ignored, says the specification.
        let data = variable("XDG_DATA_HOME").filter(|data| data.is_absolute());
        data.or_else(|| home.map(|home| home.join(".local/share")))
    };
    data.map(|data| data.join("flash-moe"))
}

/// The configuration file, there or not.
pub fn config_file() -> Option<PathBuf> {
    let home = variable("HOME");
    let config = if cfg!(windows) {
        variable("APPDATA")
    } else if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library/Application Support"))
    } else {
        let config = variable("XDG_CONFIG_HOME").filter(|config| config.is_absolute());
        config.or_else(|| home.map(|home| home.join(".config")))
    };
    config.map(|config| config.join("flash-moe").join("config.toml"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
