//! The configuration file.

use std::path::Path;

use terminal::config::{Config, ConfigError};

use crate::support::TempDir;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("config.toml"), text)
}

#[test]
fn everything_can_be_configured() {
    let config = parse(
        r#"
model = "/models/q"
system = "You are brief."
think = false
show_thinking = false
save = false
[sampling]
temperature = 0.5
seed = 3
[engine]
memory = "8G"
context = 8192
[tools]
shell = true
yes = ["ls *"]
timeout_seconds = 5
[mcp.files]
command = "mcp-files"
args = ["--root", "."]
env = { KEY = "value" }
"#,
    )
    .expect("the file is sound");
    assert_eq!(config.model.as_deref(), Some("/models/q"));
    assert_eq!(config.think, Some(false));
    assert_eq!(config.sampling.temperature, Some(0.5));
    assert_eq!(config.engine.memory.as_deref(), Some("8G"));
    assert!(config.tools.shell && config.tools.rounds > 0);
    assert_eq!(config.mcp["files"].args, ["--root", "."]);
    assert_eq!(parse("").expect("nothing is sound"), Config::default());
}

#[test]
fn what_is_wrong_is_named() {
    for (text, words) in [
        ("modle = 'x'", "modle"),
        ("[sampling]\ntemprature = 1", "temprature"),
        ("[engine]\nmemory = 'much'", "engine.memory"),
        ("[engine]\ncontext = 0", "engine.context"),
        ("[tools]\nrounds = 0", "tools.rounds"),
        ("[tools]\ntimeout_seconds = -1", "timeout_seconds"),
        ("[mcp.x]\nargs = []", "command"),
        ("think = 'yes'", "think"),
        ("model = ", "line 1"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(words) && error.contains("config.toml"), "{text}: {error}");
    }
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let directory = TempDir::new();
    let path = directory.path().join("missing.toml");
    let error = Config::load(Some(&path)).expect_err("it is missing").to_string();
    assert!(error.contains("missing.toml"), "{error}");
    std::fs::write(&path, [0xff, 0xfe]).expect("it can be written");
    assert!(matches!(Config::load(Some(&path)), Err(ConfigError::Io { .. })));
}
