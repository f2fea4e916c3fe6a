//! The talk's parts through their public faces.

mod command;
mod config;
mod markdown;
mod mcp;
mod sessions;
mod support;
mod tools;
