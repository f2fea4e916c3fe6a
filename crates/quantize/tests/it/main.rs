//! Quantising and packing small checkpoints, through the crate's face.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::{Checkpoint, safetensors_file::SafetensorsFile};
use engine::{Engine, EngineOptions, Inventory};
use quantize::{
    Budget, CalibrationText, Changes, Error, Method, Options, Placement, Recipe, Report, Stage,
    Width, pack, quantize,
};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// An empty directory that is removed at the end of the test.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("quantize-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn recipe(name: &str) -> Recipe {
    Recipe::named(name).expect("the recipe is known")
}

/// Every tensor of a checkpoint but those that only fill gaps: its name, shape and bytes.
fn tensors(directory: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(directory).expect("it opens");
    let files: Vec<SafetensorsFile> = checkpoint
        .files()
        .iter()
        .map(|file| SafetensorsFile::open(&file.path).expect("it opens"))
        .collect();
    let wanted = |name: &str| !name.starts_with(checkpoint::PADDING_PREFIX);
    let tensors = checkpoint.tensors().iter().filter(|tensor| wanted(&tensor.name));
    tensors
        .map(|tensor| {
            let file = &files[tensor.extent.file.0 as usize];
            let bytes = file.read(&tensor.name).expect("it can be read");
            (tensor.name.clone(), (tensor.shape.clone(), bytes))
        })
        .collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("it is there")).expect("it is JSON")
}

/// The best next tokens of a model after a few.
fn said(model: &Path) -> Vec<u32> {
    let options = EngineOptions {
        memory: Some(1 << 30),
        precise: true,
        direct_io: false,
        ..EngineOptions::default()
    };
    let mut engine = Engine::open(model, &options).expect("it opens");
    let mut session = engine.session().expect("a session");
    let mut best = Vec::new();
    let tokens: Vec<u32> = (1..24).collect();
    engine
        .evaluate(&mut session, &tokens, |_| true, |_, logits| best.push(engine::best(logits)))
        .expect("it runs");
    best
}

/// llama.cpp's converter lays delta nets in another order; the copy has that of Hugging Face again. What is
/// expected was made by mlx-lm from the checkpoint that the GGUF file was made from.
#[test]
fn rounding_a_gguf_file_writes_what_mlx_writes_of_its_source() {
    let temp = TempDir::new();
    let out = temp.join("out");
    let options = Options { placement: Placement::Stacked, ..Options::new(recipe("8bit")) };
    let source = fixture("gguf/qwen35moe-mini-bf16.gguf");
    quantize(&source, &out, &options, &mut |_| {}).expect("it can be quantised");
    let theirs = fixture("qwen35moe-mini-mlx-8bit");
    let (ours, wanted) = (tensors(&out), tensors(&theirs));
    assert_eq!(ours.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, (shape, bytes)) in &wanted {
        let (our_shape, our_bytes) = &ours[name];
        let len = |shape: &[usize]| shape.iter().product::<usize>();
        assert_eq!(len(our_shape), len(shape), "{name}");
        if our_bytes == bytes {
            continue;
        }
        // The file has vectors in 32 bits, and the decay as -exp of what is expected.
        let our_values = our_bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let near = our_values
            .zip(values(bytes, len(shape)))
            .all(|(ours, wanted)| (ours - wanted).abs() <= wanted.abs() / 256.0);
        assert!(near && our_bytes.len() == 4 * len(shape), "{name} is the same");
    }
    let [ours, wanted] = [&out, &theirs].map(|path| json(&path.join("config.json")));
    assert_eq!(ours["quantization"], wanted["quantization"]);
    let fields = wanted["text_config"].as_object().expect("an object");
    for (field, value) in ours["text_config"].as_object().expect("an object") {
        let known = fields.get(field).is_none_or(|wanted| wanted == value);
        assert!(known || field == "rope_parameters", "{field} is {value}");
    }
}

/// Values of 16-bit or 32-bit floats.
fn values(bytes: &[u8], len: usize) -> Vec<f32> {
    match bytes.len() / len {
        2 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

#[test]
fn rounding_writes_what_mlx_writes() {
    let temp = TempDir::new();
    let out = temp.join("out");
    let options = Options { placement: Placement::Stacked, ..Options::new(recipe("4bit")) };
    let mut stages = Vec::new();
    let report = quantize(&fixture("qwen35moe-tiny"), &out, &options, &mut |progress| {
        if stages.last() != Some(&progress.stage) {
            stages.push(progress.stage);
        }
    });
    let report = report.expect("it can be quantised");
    assert_eq!(stages, [Stage::Write, Stage::Verify]);
    assert_eq!(report.widths, [(4, 4 * 12)]);
    let theirs = fixture("qwen35moe-tiny-mlx-4bit");
    let (ours, wanted) = (tensors(&out), tensors(&theirs));
    let names = |tensors: &BTreeMap<String, _>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&wanted));
    for (name, (shape, bytes)) in &wanted {
        let (our_shape, our_bytes) = &ours[name];
        assert_eq!(our_shape, shape, "{name}");
        // mlx-lm rounds vectors of 32-bit floats to bf16. Here they stay as they are.
        let rounded = || -> Vec<u8> {
            let values = our_bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
        };
        let same = our_bytes == bytes || (shape.len() == 1 && rounded() == *bytes);
        assert!(same, "{name} has the same bytes");
    }
    let [ours, wanted] = [&out, &theirs].map(|path| json(&path.join("config.json")));
    assert_eq!(ours["quantization"], wanted["quantization"]);
    assert_eq!(ours["quantization_config"], ours["quantization"]);
    assert_eq!(ours["text_config"], wanted["text_config"]);
    assert_eq!(ours.get("model_file"), None);
    assert!(out.join("chat_template.jinja").exists(), "the template was carried over");
}

#[test]
fn an_expert_that_lies_apart_is_one_aligned_read() {
    let temp = TempDir::new();
    let out = temp.join("out");
    let options = Options { shard_bytes: 300_000, ..Options::new(recipe("2bit")) };
    let report = quantize(&fixture("qwen35moe-tiny"), &out, &options, &mut |_| {});
    let report = report.expect("it can be quantised");
    assert!(report.files > 1, "the shards are small");
    let inventory = Inventory::read(&out).expect("it opens");
    assert_eq!(inventory.problems, Vec::<String>::new());
    assert_eq!(inventory.leftover, checkpoint::Leftover::default());
    for table in &inventory.experts {
        for expert in (0..table.len()).map(|expert| table.get(expert)) {
            let extents = expert.matrices().into_iter().flat_map(|matrix| matrix.extents());
            let extents: Vec<_> = extents.collect();
            assert_eq!(extents[0].offset % 4096, 0, "an expert begins with a block");
            for pair in extents.windows(2) {
                assert_eq!(pair[0].file, pair[1].file);
                assert_eq!(pair[0].offset + pair[0].len, pair[1].offset, "parts are neighbours");
            }
        }
    }
    assert_eq!(report.expert_bytes, inventory.expert_bytes());
    assert_eq!(said(&out).len(), 23, "it runs");
}

#[test]
fn packing_keeps_every_bit_there_and_back() {
    for name in ["qwen35moe-tiny-mlx-4bit", "qwen35moe-tiny", "qwen3next-tiny"] {
        let temp = TempDir::new();
        let (apart, back) = (temp.join("apart"), temp.join("back"));
        let source = fixture(name);
        pack(&source, &apart, Placement::Apart, 1 << 30, &mut |_| {}).expect("it can be packed");
        pack(&apart, &back, Placement::Stacked, 1 << 30, &mut |_| {}).expect("and back");
        let (before, after) = (tensors(&source), tensors(&back));
        assert_eq!(said(&source), said(&apart), "{name}: the model says the same");
        assert_eq!(said(&source), said(&back), "{name}: and again");
        let is_expert = |name: &str| name.contains(".experts.") || name.contains(".switch_mlp.");
        for (tensor, stored) in before.iter().filter(|(tensor, _)| !is_expert(tensor)) {
            assert!(&after[tensor] == stored, "{name}: {tensor} is the same");
        }
        if name == "qwen35moe-tiny-mlx-4bit" {
            assert!(before == after, "stacks come back bit by bit");
            let [ours, theirs] = [&back, &source]
                .map(|path| json(&path.join("config.json"))["quantization"].clone());
            assert_eq!(ours, theirs);
        }
    }
}

#[test]
fn other_families_and_quantised_sources_can_be_quantised() {
    let sources = [
        "qwen3moe-tiny",
        "gguf/qwen3moe-tiny-bf16.gguf",
        "gguf/qwen3next-tiny-q8_0.gguf",
        "gguf/qwen35moe-k256-q4_k_m.gguf",
        "qwen3next-tiny",
        "qwen35moe-tiny-mlx-4bit",
    ];
    for name in sources {
        let temp = TempDir::new();
        let out = temp.join("out");
        let changes = Changes { group: Some(32), ..Changes::default() };
        let recipe = recipe("8bit").changed(&changes).expect("it is sound");
        quantize(&fixture(name), &out, &Options::new(recipe), &mut |_| {}).expect("it can be done");
        let (before, after) = (said(&fixture(name)), said(&out));
        let same = before.iter().zip(&after).filter(|(before, after)| before == after).count();
        assert!(same >= 15, "{name} in 8 bits says nearly the same: {same} of 23");
    }
}

/// Calibration with text of a few tokens in a row.
fn calibration(temp: &TempDir, method: Method, budget: Option<Budget>) -> Options {
    let text = temp.join("text.jsonl");
    let line = "Once upon a time there was a small fox who lived in a wood. It had 3 friends: ";
    fs::write(&text, format!("{{\"text\": \"{}\"}}\n", line.repeat(3))).expect("it can be written");
    Options {
        method,
        budget,
        calibration: vec![CalibrationText::File(text), CalibrationText::Sampled],
        calibration_tokens: 400,
        calibration_directory: Some(temp.join("rows")),
        engine: EngineOptions {
            memory: Some(1 << 30),
            direct_io: false,
            ..EngineOptions::default()
        },
        ..Options::new(recipe("experts-2bit"))
    }
}

fn calibrated(temp: &TempDir, method: Method, budget: Option<Budget>) -> (PathBuf, Report) {
    let out = temp.join(&format!("{method:?}-{}", budget.is_some()));
    let options = calibration(temp, method, budget);
    let report = quantize(&fixture("qwen35moe-tiny"), &out, &options, &mut |_| {});
    (out, report.expect("it can be quantised"))
}

#[test]
fn widths_fit_their_budget_and_the_result_runs() {
    let temp = TempDir::new();
    let (_, all_at_two) = calibrated(&temp, Method::Search, None);
    let asked = all_at_two.expert_bytes * 5 / 4;
    let (out, report) = calibrated(&temp, Method::Refine, Some(Budget::Size(asked)));
    assert!(report.expert_bytes <= asked, "{} of {asked} bytes", report.expert_bytes);
    assert!(report.expert_bytes * 100 > asked * 95, "the budget is used: {report:?}");
    assert!(report.widths.len() > 1, "experts differ: {report:?}");
    assert_eq!(said(&out).len(), 23, "it runs");
    let keep =
        recipe("4bit").changed(&Changes { experts: Some(Width::Keep), ..Changes::default() });
    let stacked =
        Options { placement: Placement::Stacked, ..Options::new(keep.expect("it is sound")) };
    let error = quantize(&out, &temp.join("stacked"), &stacked, &mut |_| {});
    let message = error.expect_err("stacks have one width").to_string();
    assert!(message.contains("different widths and cannot be stacked"), "{message}");
    let per_token = all_at_two.expert_bytes_per_token;
    let (_, report) =
        calibrated(&temp, Method::Search, Some(Budget::BytesPerToken(per_token * 3 / 2)));
    assert!(report.expert_bytes_per_token <= per_token * 3 / 2, "{report:?}");
    let options = Options {
        calibration: vec![CalibrationText::Sampled],
        calibration_tokens: 64,
        budget: Some(Budget::Size(10)),
        engine: EngineOptions { memory: Some(1 << 30), ..EngineOptions::default() },
        ..Options::new(recipe("experts-2bit"))
    };
    let error = quantize(&fixture("qwen35moe-tiny"), &temp.join("no"), &options, &mut |_| {});
    let message = error.expect_err("nothing fits ten bytes").to_string();
    assert!(message.contains("all experts at 2 bits"), "{message}");

    // Rows of which some were lost are not taken for all.
    let rows = temp.join("rows/layer-000.rows");
    let whole = fs::read(&rows).expect("they were recorded");
    fs::write(&rows, &whole[..whole.len() / 2]).expect("it can be written");
    let options = calibration(&temp, Method::Search, None);
    let error = quantize(&fixture("qwen35moe-tiny"), &temp.join("half"), &options, &mut |_| {});
    let message = error.expect_err("half of the rows are gone").to_string();
    assert!(message.contains("layer-000.rows: it has"), "{message}");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let temp = TempDir::new();
    let source = fixture("qwen35moe-tiny");
    let refuse = |options: &Options, out: &Path| {
        quantize(&source, out, options, &mut |_| {}).expect_err("it is refused").to_string()
    };
    let out = temp.join("out");
    let wide = Changes { group: Some(128), ..Changes::default() };
    let options = Options::new(recipe("4bit").changed(&wide).expect("it is sound"));
    assert!(refuse(&options, &out).contains("group is 128"), "experts are 64 wide");
    let options = Options { method: Method::Refine, ..Options::new(recipe("4bit")) };
    assert!(refuse(&options, &out).contains("without calibration"));
    let options = Options { budget: Some(Budget::Size(1 << 20)), ..Options::new(recipe("4bit")) };
    assert!(refuse(&options, &out).contains("a budget"));
    let keep = Changes { experts: Some(Width::Keep), ..wide };
    let keep = recipe("4bit").changed(&keep).expect("it is sound");
    let calibration = vec![CalibrationText::Sampled];
    let options = Options { calibration: calibration.clone(), ..Options::new(keep) };
    assert!(refuse(&options, &out).contains("those are kept"));
    let options = Options { budget: Some(Budget::Size(1 << 20)), ..options };
    assert!(refuse(&options, &out).contains("group is 128"), "a budget quantises, too");
    let calibration_tokens = usize::MAX;
    let options = Options { calibration, calibration_tokens, ..Options::new(recipe("4bit")) };
    assert!(refuse(&options, &out).contains("calibration tokens"));
    let options = Options { shard_bytes: 1, ..Options::new(recipe("4bit")) };
    assert!(refuse(&options, &out).contains("more than 500 files"));
    assert!(!out.exists() && !temp.join("out.partial").exists(), "nothing was begun");
    fs::create_dir_all(out.join("something")).expect("it can be made");
    assert!(refuse(&Options::new(recipe("4bit")), &out).contains("exists"));

    // What another run has begun is neither used nor removed.
    let other = temp.join("other");
    fs::create_dir_all(temp.join("other.partial")).expect("it can be made");
    fs::write(temp.join("other.partial/.identity"), "another\n").expect("it can be written");
    let error = quantize(&source, &other, &Options::new(recipe("4bit")), &mut |_| {});
    assert!(matches!(error, Err(Error::OtherRun { .. })), "{error:?}");
    let keep =
        recipe("4bit").changed(&Changes { experts: Some(Width::Keep), ..Changes::default() });
    let options = Options::new(keep.expect("it is sound"));
    let kept =
        quantize(&source, &temp.join("kept"), &options, &mut |_| {}).expect("it can be done");
    assert_eq!(kept.widths, [], "experts are as they were");
}

#[test]
fn a_run_that_ends_in_the_middle_leaves_nothing_and_goes_on() {
    let temp = TempDir::new();
    let (out, whole) = (temp.join("out"), temp.join("whole"));
    let source = fixture("qwen35moe-tiny");
    let options = Options::new(recipe("3bit"));
    quantize(&source, &whole, &options, &mut |_| {}).expect("it can be quantised");
    let mut n = 0;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        quantize(&source, &out, &options, &mut |_| {
            n += 1;
            assert!(n < 20, "the run ends here");
        })
    }));
    assert!(ended.is_err(), "it ended in the middle");
    assert!(!out.exists() && temp.join("out.partial").exists());
    quantize(&source, &out, &options, &mut |_| {}).expect("it goes on");
    assert!(!temp.join("out.partial").exists());
    assert!(tensors(&out) == tensors(&whole), "the result is that of one run");
}

#[test]
fn a_walk_that_ends_in_the_middle_goes_on_to_the_same_result() {
    let temp = TempDir::new();
    let source = fixture("qwen35moe-tiny");
    let options = Options {
        method: Method::Sequential,
        calibration: vec![CalibrationText::Sampled],
        calibration_tokens: 200,
        calibration_directory: Some(temp.join("rows")),
        engine: EngineOptions {
            memory: Some(1 << 30),
            direct_io: false,
            ..EngineOptions::default()
        },
        ..Options::new(recipe("experts-3bit"))
    };
    let (out, whole) = (temp.join("out"), temp.join("whole"));
    quantize(&source, &whole, &options, &mut |_| {}).expect("it can be quantised");
    let mut n = 0;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        quantize(&source, &out, &options, &mut |progress| {
            n += usize::from(progress.stage == Stage::Write);
            assert!(n < 25, "the run ends here");
        })
    }));
    assert!(ended.is_err() && !out.exists(), "it ended in the middle");
    assert!(temp.join("out.partial/.stream").exists(), "it had left a layer");
    quantize(&source, &out, &options, &mut |_| {}).expect("it goes on");
    assert!(tensors(&out) == tensors(&whole), "the result is that of one run");
    assert!(!out.join(".stream").exists(), "nothing of the walk is left");
    assert_eq!(said(&out).len(), 23, "it runs");
}

/// Calibration text is part of what a run is: a file that was changed meanwhile makes another run of it.
#[test]
fn a_run_with_changed_calibration_text_is_another_run() {
    let temp = TempDir::new();
    let (source, out, text) = (fixture("qwen35moe-tiny"), temp.join("out"), temp.join("text.txt"));
    let options = Options {
        method: Method::Search,
        calibration: vec![CalibrationText::File(text.clone())],
        calibration_tokens: 50,
        engine: EngineOptions {
            memory: Some(1 << 30),
            direct_io: false,
            ..EngineOptions::default()
        },
        ..Options::new(recipe("experts-3bit"))
    };
    let run = |options: &Options| quantize(&source, &out, options, &mut |_| {});
    fs::write(&text, "One text, which is read by the model first.").expect("it can be written");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        quantize(&source, &out, &options, &mut |progress| {
            if progress.stage == Stage::Write {
                // While it runs, nobody else writes there.
                assert!(matches!(run(&options), Err(Error::InUse { .. })));
                panic!("the run ends here");
            }
        })
    }));
    assert!(ended.is_err() && temp.join("out.partial").exists(), "it ended in the middle");
    fs::write(&text, "Another text, of the same name.").expect("it can be written");
    assert!(matches!(run(&options), Err(Error::OtherRun { .. })));
    // What was recorded is the text's, not the name's.
    let renamed = temp.join("renamed.txt");
    fs::write(&renamed, "One text, which is read by the model first.").expect("it can be written");
    let options = Options { calibration: vec![CalibrationText::File(renamed)], ..options };
    let report = run(&options).expect("it is the same run");
    assert!(report.calibration_tokens > 5, "{report:?}");
    assert!(!out.join(".lock").exists(), "nothing of the run is left");

    let absent = vec![CalibrationText::File(temp.join("absent.txt"))];
    let options = Options { calibration: absent, ..options };
    let error = quantize(&source, &temp.join("no"), &options, &mut |_| {});
    assert!(error.expect_err("there is no text").to_string().contains("absent.txt"));
    assert!(!temp.join("no.partial").exists(), "it is read before anything is begun");
}

/// Finite weights, but the range of a group is beyond what a float can hold.
#[test]
fn weights_too_large_for_their_scales_are_an_error() {
    let temp = TempDir::new();
    let source = temp.join("source");
    fs::create_dir_all(&source).expect("it can be made");
    for entry in fs::read_dir(fixture("qwen35moe-tiny")).expect("it is there") {
        let entry = entry.expect("it can be listed");
        fs::copy(entry.path(), source.join(entry.file_name())).expect("it can be copied");
    }
    let checkpoint = Checkpoint::open(&source).expect("it opens");
    let tensor = checkpoint.tensors().iter().find(|tensor| tensor.name == "lm_head.weight");
    let begin = tensor.expect("it is there").extent.offset as usize;
    let path = source.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("it is there");
    let largest = [half::bf16::MAX, half::bf16::MIN].map(half::bf16::to_le_bytes);
    bytes[begin..begin + 4].copy_from_slice(&largest.concat());
    fs::write(&path, bytes).expect("it can be written");
    for method in [Method::Round, Method::Search] {
        let options = Options { method, ..Options::new(recipe("4bit")) };
        let error = quantize(&source, &temp.join(&format!("{method:?}")), &options, &mut |_| {});
        let message = error.expect_err("they do not fit").to_string();
        assert!(message.contains("lm_head has values too large"), "{message}");
    }
}
