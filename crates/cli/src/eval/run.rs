//! One run: the reference, the texts, the requests.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use chat::ChatModel;
use engine::measure::DecodeBytes;
use engine::{Engine, EngineOptions, Inventory, Lossy, PrefixCacheOptions};
use eval::{
    Case, Document, Facts, Progress, Reference, Results, Summary, Unit, fingerprint, read_texts,
    run_case, score_document,
};
use serde_json::{Value, json};

use crate::args::Switch;
use crate::bench::{utc_now, version};
use crate::eval::EvalArgs;
use crate::{demo, output, run};

/// Memory for the prompt of a request.
const PROMPT_BYTES: u64 = 32 << 20;

/// Evaluates a model.
pub fn run(args: &EvalArgs, model: &str) -> anyhow::Result<Results> {
    let mut shown = output::Progress::new();
    let mut cases = Vec::new();
    for path in &args.tools {
        let all = Case::read_all(path)?;
        let n_cases = args.limit.unwrap_or(all.len());
        cases.extend(all.into_iter().take(n_cases));
    }
    let kept = args.against.as_deref().map(|against| kept_reference(args, against));
    let reference_is_kept = kept.as_ref().is_some_and(|(_, is_kept)| *is_kept);
    let reference = kept.map(|(path, _)| path);
    if let (Some(path), Some(against)) = (&reference, &args.against)
        && !Reference::is_at(Path::new(against))
    {
        record(args, against, path, &mut shown)?;
    }

    let directory = demo::resolve(model)?;
    let mut options = args.engine.options();
    if !cases.is_empty() {
        options.beside = chat::GRAMMAR_MEMORY;
        // A request's prompt is computed once for both replies.
        let (memory_bytes, directory, disk_bytes) = (PROMPT_BYTES, None, 0);
        options.prefix_cache = Some(PrefixCacheOptions { memory_bytes, directory, disk_bytes });
    }
    shown.show(&format!("loading {model} ..."));
    let mut inventory = Inventory::read(&directory).with_context(|| format!("opening {model}"))?;
    let trunk_bytes = DecodeBytes::of(&inventory, &options, 0)?.dense;
    let mut engine =
        Engine::open(&directory, &options).with_context(|| format!("opening {model}"))?;
    inventory.add_twin(&options)?;
    shown.clear();
    let documents = texts(args, &engine)?;
    let mut reference = reference
        .map(|path| Reference::open(&path, &documents, engine.config().vocab_size))
        .transpose()?;
    let facts = Facts {
        date: utc_now(),
        program: version(),
        model: model.to_owned(),
        device: engine.device_name(),
        lossy: run::lossy_json(engine.lossy()),
        twin: args.engine.lossy.twin.as_ref().map(|path| path.display().to_string()),
        expert_bytes: inventory.expert_bytes(),
        expert_slot_bytes: engine.plan().experts,
        trunk_bytes_per_token: trunk_bytes,
        reference: reference.as_ref().map(|reference| reference.model().to_owned()),
        reference_top: reference.as_ref().map(Reference::top),
        texts: names(&args.text),
        window: args.window,
        text_fingerprint: fingerprint(&documents),
        requests: names(&args.tools),
        request_fingerprint: request_fingerprint(&cases),
        thinking: Some(args.think == Switch::On),
    };
    let mut progress = match &args.out {
        Some(out) => Progress::open(&beside(out, "progress"), &identity(&facts, &inventory))?,
        None => Progress::in_memory(),
    };
    drop(inventory);

    let n_done = progress.units().len();
    for (index, document) in documents.iter().enumerate().skip(n_done) {
        shown.show(&format!("text {} of {} ({})", index + 1, documents.len(), document.source));
        let rows = reference.as_mut().map(|reference| reference.rows(index)).transpose()?;
        let unit = score_document(&mut engine, document, rows.as_deref())?;
        progress.push(&Unit::Document(unit))?;
    }
    answer(args, &mut engine, &directory, &cases, documents.len(), &mut progress, &mut shown)?;
    shown.clear();

    let units = progress.units().to_vec();
    let mut results = Results::new(facts, units);
    results.summary = serde_json::to_value(Summary::of(&results)).context("making JSON")?;
    if let Some(out) = &args.out {
        results.write(out)?;
    }
    progress.finish()?;
    if let (Some(reference), false) = (reference, reference_is_kept) {
        let path = reference.path().to_owned();
        drop(reference);
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(results)
}

/// Answers the requests that are not done yet.
fn answer(
    args: &EvalArgs,
    engine: &mut Engine,
    directory: &Path,
    cases: &[Case],
    n_documents: usize,
    progress: &mut Progress,
    shown: &mut output::Progress,
) -> anyhow::Result<()> {
    if cases.is_empty() {
        return Ok(());
    }
    let tokenizer = engine.shared_tokenizer()?;
    let model = ChatModel::open(directory, engine.chat_template(), &tokenizer)?
        .with_stop_tokens(engine.stop_tokens());
    let thinking = Some(args.think == Switch::On);
    let n_done = progress.units().len().saturating_sub(n_documents);
    let n_replies: usize = cases.iter().map(|case| case.ways().len()).sum();
    let numbered = cases.iter().enumerate();
    let work = numbered.flat_map(|case| case.1.ways().iter().map(move |&way| (case, way)));
    for (done, ((index, case), way)) in work.enumerate().skip(n_done) {
        shown.show(&format!("reply {} of {n_replies}", done + 1));
        let said = run_case(engine, &model, case, way, thinking)
            .with_context(|| format!("request {}", index + 1))?;
        progress.push(&Unit::Case(case.judge(index, way, &said)))?;
    }
    Ok(())
}

/// Where the reference's predictions are kept, and whether they stay there.
fn kept_reference(args: &EvalArgs, against: &str) -> (PathBuf, bool) {
    if Reference::is_at(Path::new(against)) {
        return (PathBuf::from(against), true);
    }
    match (&args.keep_reference, &args.out) {
        (Some(path), _) => (path.clone(), true),
        (None, Some(out)) => (beside(out, "reference"), false),
        (None, None) => {
            let name = format!("flash-moe-eval-{}.reference", std::process::id());
            (std::env::temp_dir().join(name), false)
        }
    }
}

/// Runs the reference, as faithfully as this program can, and keeps what it predicts.
fn record(
    args: &EvalArgs,
    against: &str,
    path: &Path,
    shown: &mut output::Progress,
) -> anyhow::Result<()> {
    shown.show(&format!("loading {against} ..."));
    let directory = demo::resolve(against)?;
    let lossy = Lossy::default();
    let options = EngineOptions { precise: true, lossy, twin: None, ..args.engine.options() };
    let mut engine =
        Engine::open(&directory, &options).with_context(|| format!("opening {against}"))?;
    let documents = texts(args, &engine)?;
    let told = |done: usize| {
        shown.show(&format!("reference: text {} of {}", done + 1, documents.len()));
    };
    eval::record_reference(&mut engine, &documents, path, against, args.reference_top, told)?;
    Ok(())
}

fn texts(args: &EvalArgs, engine: &Engine) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in &args.text {
        let all = read_texts(path, engine.tokenizer()?, args.window)?;
        let n_documents = args.limit.unwrap_or(all.len());
        documents.extend(all.into_iter().take(n_documents));
    }
    Ok(documents)
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

fn request_fingerprint(cases: &[Case]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in cases.iter().flat_map(|case| format!("{case:?}").into_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// Everything that units depend on.
fn identity(facts: &Facts, inventory: &Inventory) -> Value {
    let own = inventory.checkpoint.files().iter().map(|file| &file.path);
    let files = own.chain(inventory.twin.iter().flat_map(|twin| &twin.files)).map(|path| {
        let data = std::fs::metadata(path).ok();
        let changed = data.as_ref().and_then(|data| data.modified().ok());
        let changed = changed.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        json!([data.map_or(0, |data| data.len()), changed.map_or(0, |time| time.as_secs())])
    });
    json!({
        "files": files.collect::<Vec<_>>(),
        "program": facts.program,
        "model": facts.model,
        "device": facts.device,
        "lossy": facts.lossy,
        "twin": facts.twin,
        "reference": facts.reference,
        "reference_top": facts.reference_top,
        "window": facts.window,
        "texts": facts.text_fingerprint,
        "requests": facts.request_fingerprint,
        "thinking": facts.thinking,
    })
}

/// A file beside the results.
fn beside(out: &Path, what: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    PathBuf::from(name)
}
