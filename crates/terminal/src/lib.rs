//! The talk in a terminal: streamed Markdown, input with history, sessions that can be resumed, tools.

#![forbid(unsafe_code)]

pub mod command;
pub mod config;
pub mod markdown;
pub mod paths;
pub mod sessions;
pub mod text;
pub mod tools;

