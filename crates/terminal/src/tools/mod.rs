//! What the model may call: the shell, with the user's consent, and the tools of configured servers.

mod consent;
mod mcp;
mod shell;

pub use consent::{Consent, matches};
pub use mcp::{McpServer, McpTool, shortened};
pub use shell::{Limits, Ran, run};

use serde_json::{Value, json};

/// The name of the shell among the tools.
pub const SHELL: &str = "shell";

/// The shell as it is offered to the model, in the form of the OpenAI API.
pub fn shell_definition() -> Value {
    json!({
        "type": "function",
        "function": {
            "name": SHELL,
            "description": "Run a command in the user's shell and return its output. The user is asked first.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": { "type": "string", "description": "The command line to run" },
                },
                "required": ["command"],
                "additionalProperties": false,
            },
        },
    })
}

/// The command line in the arguments of a call of the shell.
pub fn shell_command(arguments: &str) -> Result<String, String> {
    let arguments = chat::read_json(arguments)
        .map_err(|error| format!("the arguments are not JSON: {error}"))?;
    match arguments.get("command").and_then(Value::as_str) {
        Some(command) if command.contains('\0') => Err("a command has no zero bytes".to_owned()),
        Some(command) if !command.trim().is_empty() => Ok(command.to_owned()),
        _ => Err("the argument \"command\" must be a text that is not empty".to_owned()),
    }
}
