//! `flash-moe run`: answers a prompt.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use chat::{ChatModel, ChatRequest, Message, ReplyParser};
use engine::{
    Constraint, Engine, FinishReason, GenerateOptions, HeatMapPlace, Lossy, Sampling, Step, Usage,
    format_bytes,
};
use serde_json::{Value, json};

use crate::args::{RunArgs, Switch};
use crate::cache;
use crate::demo;
use crate::form::{self, ReplyPrinter};
use crate::output::{self, Progress};
use crate::timing;
use crate::trace::Trace;

/// Runs the command.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (model, prompt) = model_and_prompt(args.model.as_deref(), args.prompt.as_deref())?;
    let directory = demo::resolve(&model)?;
    let mut options = args.engine.options();
    if model == demo::NAME && options.memory.is_none() && options.expert_cache.is_none() {
        options.expert_cache = Some(demo::EXPERT_CACHE_BYTES);
    }
    options.heat_map = heat_map_place(args.heat_map.as_deref(), &model);
    if form::needs_grammar(&args.form) {
        options.beside = chat::GRAMMAR_MEMORY;
    }
    let prompt = match prompt {
        Some(prompt) => prompt,
        None => prompt_from_stdin()?,
    };

    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    options.recorder = trace.as_ref().map(|trace| trace.recorder().clone());

    let mut progress = Progress::new();
    progress.show(&format!("loading {model} ..."));
    let mut engine =
        Engine::open(&directory, &options).with_context(|| format!("opening {model}"))?;
    progress.clear();
    warn_of_unknown_tensors(&engine);
    tell_of_lossy(&engine);
    let Asked { tokens, constraint, mut parser } = ask(&args, &engine, &directory, &prompt)?;
    let sampling = args.sampling.apply(engine.default_sampling());
    let generate = GenerateOptions {
        sampling: sampling.clone(),
        max_tokens: args.tokens,
        stop: args.stop.clone(),
        stop_tokens: if args.ignore_eos { Vec::new() } else { engine.stop_tokens().to_vec() },
        logprobs: args.logprobs,
        show_special: args.raw || parser.is_some(),
        cancel: Some(Arc::new(AtomicBool::new(false))),
    };

    if let Some(path) = &args.trace_routing {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        engine.record_trace(Box::new(BufWriter::new(file)));
    }
    let is_held = constraint.is_some();
    let mut session = engine.session()?;
    let mut answer = Answer::default();
    progress.show(&format!("reading {} prompt tokens ...", tokens.len()));
    let mut reply = ReplyPrinter::new();
    for step in engine.generate_constrained(&mut session, &tokens, generate, constraint)? {
        let step = step?;
        progress.clear();
        match &mut parser {
            Some(parser) => reply.add(&parser.push(&step.text), !args.json)?,
            None if args.json => {}
            None => output::stream(&step.text)?,
        }
        answer.add(step);
    }
    if let Some(parser) = &mut parser {
        reply.add(&parser.finish(), !args.json)?;
    }
    if let Some(path) = &args.trace_routing {
        engine.finish_trace().with_context(|| format!("writing {}", path.display()))?;
    }
    if let Err(error) = engine.save_heat_map() {
        eprintln!("warning: {error}");
    }
    if args.json {
        let mut object = answer.to_json(&args, &engine, &model, &tokens, &sampling);
        if parser.is_some() {
            object["calls"] = reply.calls().into();
        }
        output::json(&object)?;
    } else if parser.is_some() {
        reply.line_break()?;
    } else if !answer.text.ends_with('\n') {
        output::stream("\n")?;
    }
    if is_held && answer.finish == Some(FinishReason::Length) {
        eprintln!(
            "warning: the limit of tokens was reached; what had to be whole may be cut short"
        );
    }
    if args.timing {
        let plan = engine.plan();
        eprintln!(
            "\n{model} on {}: {} of memory, {} of {} routed-expert bytes in slots",
            engine.device_name(),
            format_bytes(plan.total),
            format_bytes(plan.experts),
            format_bytes(plan.all_experts),
        );
        if let Some(device) = &plan.device {
            let [used, total, experts] =
                [device.fixed(), device.total, device.experts].map(format_bytes);
            let whose = if device.is_shared { ", in the host's memory" } else { "" };
            eprintln!("{used} of {total} on the device{whose}, {experts} left for routed experts");
        }
        if let Some(reason) = engine.device_reason() {
            eprintln!("this device, because {reason}");
        }
        if let Some(placement) = engine.placement() {
            eprintln!("{placement}");
        }
        eprintln!("{}", timing::reader_line(engine.reader()));
        if let Some(report) = engine.heat_map() {
            eprintln!("{}", timing::heat_map_line(report));
        }
        timing::print(&answer.prompt, &answer.decode, answer.steps.get(1..).unwrap_or_default());
        if let Some(report) = trace.as_ref().and_then(|trace| trace.recorder().kernels()) {
            timing::print_kernels(&report);
        }
    }
    if let Some(trace) = trace {
        trace.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Two arguments are a model and a prompt. One is a model when it looks like a path, so that a
/// mistyped path is reported as one; else it is a prompt for the demo model.
fn model_and_prompt(
    first: Option<&str>,
    second: Option<&str>,
) -> anyhow::Result<(String, Option<String>)> {
    let (model, prompt) = match (first, second) {
        (Some(model), Some(prompt)) => (model, Some(prompt)),
        (Some(one), None) if is_model(one) => (one, None),
        (Some(prompt), None) => (demo::NAME, Some(prompt)),
        (None, _) => (demo::NAME, None),
    };
    if prompt.is_some_and(|prompt| prompt.is_empty()) {
        bail!("the prompt is empty");
    }
    Ok((model.to_owned(), prompt.map(str::to_owned)))
}

/// Where the heat map is kept: where the user says, else where the system wants such files.
pub fn heat_map_place(asked: Option<&Path>, model: &str) -> HeatMapPlace {
    match asked {
        Some(path) if path == Path::new("off") => HeatMapPlace::Off,
        Some(path) => HeatMapPlace::File(path.to_owned()),
        None if model == demo::NAME => HeatMapPlace::Off,
        None => cache::directory().map_or(HeatMapPlace::Off, HeatMapPlace::Directory),
    }
}

/// Tells that the output is not the model's own.
pub fn tell_of_lossy(engine: &Engine) {
    if engine.lossy().is_on() {
        eprintln!("note: the output is lossy: {}", engine.lossy());
    }
}

/// What is lossy, for JSON.
pub fn lossy_json(lossy: &Lossy) -> Option<String> {
    lossy.is_on().then(|| lossy.to_string())
}

/// Tells that a checkpoint holds what is not used.
pub fn warn_of_unknown_tensors(engine: &Engine) {
    if let [first, rest @ ..] = engine.unknown_tensors() {
        let more =
            if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        eprintln!("warning: the checkpoint holds unknown tensors that are not used: {first}{more}");
    }
}

fn is_model(argument: &str) -> bool {
    let has_space = argument.contains(char::is_whitespace);
    let like_path = argument.contains(['/', '\\']) && !has_space;
    argument == demo::NAME || like_path || (!has_space && Path::new(argument).exists())
}

fn prompt_from_stdin() -> anyhow::Result<String> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        bail!("there is no prompt\nhint: flash-moe run [MODEL] \"PROMPT\", or pipe the prompt in");
    }
    let mut prompt = String::new();
    stdin.read_to_string(&mut prompt).context("reading the prompt from standard input")?;
    if prompt.trim().is_empty() {
        bail!("the prompt on standard input is empty");
    }
    Ok(prompt)
}

/// A prompt, and what its answer needs.
struct Asked {
    tokens: Vec<u32>,
    constraint: Option<Box<dyn Constraint>>,
    /// Reads the answer, where it may hold calls.
    parser: Option<ReplyParser>,
}

/// The prompt: in the model's chat template, or as it is.
fn ask(args: &RunArgs, engine: &Engine, directory: &Path, prompt: &str) -> anyhow::Result<Asked> {
    let tokenizer = engine.tokenizer()?;
    if args.raw {
        let tokens = tokenizer.encode_trusted(prompt)?;
        return Ok(Asked { tokens, constraint: None, parser: None });
    }
    let model = ChatModel::open(directory, engine.chat_template(), tokenizer)?
        .with_stop_tokens(engine.stop_tokens());
    let system = args.system.as_deref().map(Message::system);
    let request = ChatRequest {
        messages: system.into_iter().chain([Message::user(prompt)]).collect(),
        tools: form::tools(&args.form)?,
        format: form::format(&args.form)?,
        enable_thinking: args.think.map(|think| think == Switch::On),
        ..ChatRequest::default()
    };
    let prompt = model.prompt(tokenizer, &request)?;
    let parser = args.form.tools.is_some().then_some(prompt.parser);
    Ok(Asked { tokens: prompt.tokens, constraint: prompt.constraint, parser })
}

/// What was generated.
#[derive(Default)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<Value>,
    prompt: Usage,
    decode: Usage,
    finish: Option<FinishReason>,
    /// What each step cost: the first holds the prompt.
    steps: Vec<Usage>,
}

impl Answer {
    fn add(&mut self, step: Step) {
        // Tokens that follow by themselves may come before anything is computed.
        let usage = if self.prompt.tokens == 0 { &mut self.prompt } else { &mut self.decode };
        *usage += &step.usage;
        self.steps.push(step.usage);
        self.text.push_str(&step.text);
        self.tokens.extend(step.token);
        if let (Some(token), Some((logprob, top))) = (step.token, step.logprobs) {
            let top = top.iter().map(|t| json!({ "token": t.token, "logprob": t.logprob }));
            let top: Vec<Value> = top.collect();
            self.logprobs.push(json!({ "token": token, "logprob": logprob, "top": top }));
        }
        self.finish = step.finish;
    }

    fn to_json(
        &self,
        args: &RunArgs,
        engine: &Engine,
        model: &str,
        prompt_tokens: &[u32],
        sampling: &Sampling,
    ) -> Value {
        let finish = self.finish.map(|finish| match finish {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        });
        let plan = engine.plan();
        let mut object = json!({
            "model": model,
            "device": engine.device_name(),
            "device_reason": engine.device_reason(),
            "lossy": lossy_json(engine.lossy()),
            "text": self.text,
            "finish_reason": finish,
            "prompt_tokens": prompt_tokens,
            "tokens": self.tokens,
            "sampling": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                "seed": sampling.seed,
            },
            "memory": {
                "budget_bytes": plan.total,
                "expert_slot_bytes": plan.experts,
                "all_expert_bytes": plan.all_experts,
                "context": plan.context,
                "prompt_chunk": plan.chunk,
            },
            "reader": timing::reader_json(engine.reader()),
            "heat_map": engine.heat_map().map(timing::heat_map_json),
            "timing": {
                "prompt": timing::to_json(&self.prompt),
                "decode": timing::to_json(&self.decode),
            },
        });
        if args.timing {
            let steps = self.steps.iter().map(timing::to_json);
            object["timing"]["steps"] = Value::Array(steps.collect());
        }
        if args.logprobs.is_some() {
            object["logprobs"] = Value::Array(self.logprobs.clone());
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_argument_is_a_prompt_unless_it_looks_like_a_path() {
        let parse = |first, second| model_and_prompt(first, second).expect("not empty");
        let pair =
            |model: &str, prompt: Option<&str>| (model.to_owned(), prompt.map(str::to_owned));
        assert_eq!(parse(None, None), pair("demo", None));
        assert_eq!(parse(Some("Tell me a story"), None), pair("demo", Some("Tell me a story")));
        assert_eq!(parse(Some("hello"), None), pair("demo", Some("hello")));
        assert_eq!(parse(Some("models/missing"), None), pair("models/missing", None));
        assert_eq!(parse(Some("either / or"), None), pair("demo", Some("either / or")));
        assert_eq!(parse(Some("a"), Some("b")), pair("a", Some("b")));
        assert!(model_and_prompt(Some("a"), Some("")).is_err());
    }
}
