//! Integration tests of the `checkpoint` crate.

mod codec;
mod config;
mod directory;
mod support;
mod synth;
