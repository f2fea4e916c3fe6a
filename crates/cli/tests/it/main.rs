//! End-to-end tests: they drive the program as a user would.

mod bad_input;
mod bench;
mod cache_sim;
mod chat;
mod chat_server;
mod devices;
mod eval;
mod gguf;
mod heat_map;
mod inspect;
mod invariance;
mod memory;
mod quantize;
mod routing;
mod run;
mod serve;
mod support;
mod synth;
mod verify;
