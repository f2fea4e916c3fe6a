//! The talk in a terminal: streamed Markdown, input with history, sessions that can be resumed, tools.
//!
//! [`talk`] is the whole of it; the parts are public so that they can be tried alone.

#![forbid(unsafe_code)]

pub mod command;
pub mod config;
mod input;
mod interrupt;
pub mod markdown;
pub mod partner;
pub mod paths;
mod screen;
pub mod sessions;
mod talk;
pub mod text;
pub mod tools;
mod view;

pub use screen::When;
pub use talk::{Models, Options, talk};
