//! What can go wrong between messages and tokens.

use std::io;
use std::path::PathBuf;

/// Why a prompt cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The checkpoint has no template.
    #[error(
        "{} has no chat template: neither chat_template.jinja nor one in tokenizer_config.json\n\
         hint: use --raw to continue a text without one",
        .path.display()
    )]
    NoTemplate {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The template cannot be understood.
    #[error("the chat template {} cannot be read: {reason}", .path.display())]
    Malformed {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The template refuses the conversation.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template fails on the conversation.
    #[error("the chat template fails: {0}")]
    Failed(String),
    /// A message cannot be shown to the template.
    #[error("a message is not sound: {0}")]
    Message(#[from] serde_json::Error),
    /// The prompt cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// Tools are offered to a model that has no form for calls.
    #[error(
        "tools are offered, but this model's chat template knows no form of tool calls that this \
         program reads: neither <function=...> nor JSON within <tool_call>\n\
         hint: leave the tools out, or use a checkpoint whose template has one"
    )]
    NoToolFormat,
    /// A part of the request cannot be used.
    #[error("{field}: {reason}")]
    Request {
        /// Which part, as a path into the request.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// An error about a part of the request.
    pub(crate) fn request(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Request { field: field.into(), reason: reason.into() }
    }
}
