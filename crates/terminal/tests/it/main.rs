//! The talk's parts through their public faces.

mod command;
mod config;
mod markdown;
mod sessions;
mod support;
mod tools;
