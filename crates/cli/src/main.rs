//! `flash-moe`: run Mixture-of-Experts language models larger than memory.
//!
//! This crate parses, calls the library and prints; it knows no tensors.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod cache;
mod cache_sim;
mod chat;
mod demo;
mod devices;
mod eval;
mod form;
mod inspect;
mod output;
mod quantize;
mod routing;
mod run;
mod serve;
mod svg;
mod synth;
mod timing;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let result = match command {
        Command::Chat(args) => chat::chat(args),
        Command::Run(args) => run::run(args),
        Command::Serve(args) => serve::serve(args),
        Command::Bench(args) => bench::bench(args),
        Command::Devices(args) => devices::devices(args),
        Command::Eval(args) => eval::eval(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Verify(args) => verify::verify(args),
        Command::Quantize(args) => quantize::quantize(args),
        Command::Pack(args) => quantize::pack(args),
        Command::Synth(args) => synth::synth(args),
        Command::CacheSim(args) => cache_sim::cache_sim(args),
        Command::Routing(args) => routing::routing(args),
    };
    match result {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", output::error(&error));
            ExitCode::FAILURE
        }
    }
}
