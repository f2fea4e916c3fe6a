//! `flash-moe serve`: answers over HTTP.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use chat::ChatModel;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use engine::{Engine, PrefixCacheOptions, Scheduler, format_bytes};
use server::{Server, ServerOptions};

use crate::args::{EngineArgs, positive, size};
use crate::output::Progress;
use crate::{demo, run};

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// A checkpoint's directory or GGUF file, or `demo` for the built-in model.
    #[arg(default_value = demo::NAME)]
    pub model: String,
    /// Where to listen: an address or a name of this machine.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// A key that clients must show; can be repeated. FLASH_MOE_API_KEY gives one without others seeing it
    /// in the list of processes.
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// Listen where other machines reach the server without asking for a key.
    #[arg(long)]
    pub insecure: bool,
    /// A name of this machine that requests may be addressed to, beside localhost and addresses; can be
    /// repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// The origin of web pages that may use the server, such as `https://example.org`; can be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// A name by which clients ask for the model; can be repeated. Default: the checkpoint's.
    #[arg(long, value_name = "NAME")]
    pub model_name: Vec<String>,
    /// Requests that are answered at once; each takes memory for a whole context.
    #[arg(long, value_name = "N", default_value = "4", value_parser = positive)]
    pub parallel: usize,
    /// Requests that may wait for their turn.
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    pub queue: usize,
    /// Longest time that a request may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = seconds())]
    pub deadline: u64,
    /// How long a shutdown waits for answers under way.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = seconds())]
    pub grace: u64,
    /// Longest body of a request, such as 16M.
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = size)]
    pub max_body: u64,
    /// Memory for what was computed of conversations, so that their next turns read only what is new; part
    /// of --memory. 0 keeps nothing.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub prompt_cache: u64,
    /// A directory to keep that in for later runs, too.
    #[arg(long, value_name = "DIRECTORY")]
    pub cache_dir: Option<PathBuf>,
    /// Bound of the files in that directory.
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = size, requires = "cache_dir")]
    pub cache_size: u64,
    /// Where it is kept which experts were used much; default: as for run.
    #[arg(long, value_name = "FILE|off")]
    pub heat_map: Option<PathBuf>,
    /// Write no line for each request.
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Runs the command.
pub fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let directory = demo::resolve(&args.model)?;
    let server = server_options(&args)?;
    let mut options = args.engine.options();
    options.sessions = args.parallel;
    // Any request may ask for a form.
    options.beside = chat::GRAMMAR_MEMORY;
    if args.model == demo::NAME && options.memory.is_none() && options.expert_cache.is_none() {
        options.expert_cache = Some(demo::EXPERT_CACHE_BYTES);
    }
    options.prefix_cache = prefix_cache(&args)?;
    options.heat_map = run::heat_map_place(args.heat_map.as_deref(), &args.model);

    let mut progress = Progress::new();
    progress.show(&format!("loading {} ...", args.model));
    let engine = Engine::open(&directory, &options);
    progress.clear();
    let engine = engine.with_context(|| format!("opening {}", args.model))?;
    run::warn_of_unknown_tensors(&engine);
    run::tell_of_lossy(&engine);
    let tokenizer = engine.tokenizer()?;
    let chat = match ChatModel::open(&directory, engine.chat_template(), tokenizer) {
        Ok(chat) => Some(chat.with_stop_tokens(engine.stop_tokens())),
        Err(error) => {
            eprintln!("warning: only texts can be continued, because {error}");
            None
        }
    };
    let plan = engine.plan();
    let about = format!(
        "{} on {}: {} of memory, {} of {} routed-expert bytes in slots, {} requests of {} tokens at once",
        args.model,
        engine.device_name(),
        format_bytes(plan.total),
        format_bytes(plan.experts),
        format_bytes(plan.all_experts),
        args.parallel,
        plan.context,
    );
    let names = server.model_names.join(", ");
    let server = Server::bind(Scheduler::new(engine), chat, server)?;
    eprintln!("{about}\nserving {names} at http://{}", server.address());
    server.run_until_signal()?;
    Ok(ExitCode::SUCCESS)
}

/// What is kept of conversations.
fn prefix_cache(args: &ServeArgs) -> anyhow::Result<Option<PrefixCacheOptions>> {
    if args.prompt_cache == 0 {
        if args.cache_dir.is_some() {
            bail!("--cache-dir keeps what --prompt-cache has in memory, which is nothing");
        }
        return Ok(None);
    }
    Ok(Some(PrefixCacheOptions {
        memory_bytes: args.prompt_cache,
        directory: args.cache_dir.clone(),
        disk_bytes: args.cache_size,
    }))
}

/// Times up to a year: later ones have no place on the system's clock.
fn seconds() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(..=365 * 24 * 3600)
}

fn server_options(args: &ServeArgs) -> anyhow::Result<ServerOptions> {
    let mut api_keys = args.api_key.clone();
    api_keys.extend(std::env::var("FLASH_MOE_API_KEY").ok().filter(|key| !key.is_empty()));
    let mut hosts = args.allow_host.clone();
    hosts.push(args.host.clone());
    Ok(ServerOptions {
        address: address(&args.host, args.port)?,
        model_names: match args.model_name.is_empty() {
            true => vec![model_name(&args.model)],
            false => args.model_name.clone(),
        },
        api_keys,
        insecure: args.insecure,
        hosts,
        cors_origins: args.cors_origin.clone(),
        queue: args.queue,
        body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        deadline: Duration::from_secs(args.deadline),
        grace: Duration::from_secs(args.grace),
        log: !args.quiet,
        ..ServerOptions::default()
    })
}

fn address(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let host = host.trim_matches(['[', ']']);
    let found = (host, port).to_socket_addrs().with_context(|| format!("finding {host}"))?;
    let all: Vec<SocketAddr> = found.collect();
    // A name can have several addresses; the older family is what clients try first.
    match all.iter().find(|address| address.is_ipv4()).or(all.first()) {
        Some(&address) => Ok(address),
        None => bail!("{host} has no address"),
    }
}

/// The name of a checkpoint's directory or file, without what tells only its format.
fn model_name(model: &str) -> String {
    let name = Path::new(model).file_name().unwrap_or(model.as_ref()).to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn models_are_named_after_their_files() {
        assert_eq!(model_name("demo"), "demo");
        assert_eq!(model_name("models/qwen3.5-35b-a3b/"), "qwen3.5-35b-a3b");
        assert_eq!(model_name("a/qwen3-Q4_K_M.gguf"), "qwen3-Q4_K_M");
    }

    #[test]
    fn options_that_serve_nobody_are_refused() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: ServeArgs,
        }
        let read = |option: &str| Line::try_parse_from(["serve", option]).map(|line| line.args);
        assert_eq!(read("--queue=1").expect("it is sound").queue, 1);
        assert_eq!(read("--deadline=31536000").expect("it is sound").deadline, 31_536_000);
        for option in ["--queue=0", "--deadline=18446744073709551615", "--grace=31536001"] {
            assert!(read(option).is_err(), "{option}");
        }
    }

    #[test]
    fn addresses_are_found() {
        assert_eq!(address("127.0.0.1", 80).ok(), Some(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(address("[::1]", 80).is_ok_and(|address| address.is_ipv6()));
    }
}
