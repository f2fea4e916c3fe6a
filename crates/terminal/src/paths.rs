//! Where the user's own files lie: what was said, and what is configured.

use std::path::PathBuf;

/// The directory of sessions and history, if the system has one: `$FLASH_MOE_DATA`, else where the platform keeps
/// a program's data.
pub fn data_directory() -> Option<PathBuf> {
    let platform =
        || user_directory("APPDATA", APPLICATION_SUPPORT, "XDG_DATA_HOME", ".local/share");
    variable("FLASH_MOE_DATA").or_else(platform)
}

/// The configuration file, there or not.
pub fn config_file() -> Option<PathBuf> {
    let directory = user_directory("APPDATA", APPLICATION_SUPPORT, "XDG_CONFIG_HOME", ".config");
    directory.map(|directory| directory.join("config.toml"))
}

const APPLICATION_SUPPORT: &str = "Library/Application Support";

/// This program's part of a directory that the platform has for each user: where a variable says on Windows,
/// under the home directory on macOS, and elsewhere where a variable of the XDG base directories says, or
/// under the home directory.
pub fn user_directory(windows: &str, macos: &str, xdg: &str, home: &str) -> Option<PathBuf> {
    let under_home = |path: &str| variable("HOME").map(|home| home.join(path));
    let directory = if cfg!(windows) {
        variable(windows)
    } else if cfg!(target_os = "macos") {
        under_home(macos)
    } else {
        // A relative path there is to be ignored, says the specification.
        variable(xdg).filter(|path| path.is_absolute()).or_else(|| under_home(home))
    };
    directory.map(|directory| directory.join("flash-moe"))
}

/// The path that an environment variable holds, if it holds one.
pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
