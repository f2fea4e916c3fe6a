//! What widths of their own gain where routing is uneven, on a model that was made so.

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, FloatType, encode_floats};
use engine::{EngineOptions, Inventory};

use super::*;
use crate::calibrate::{Calibration, Recording};
use crate::expert::Method;
use crate::recipe::Recipe;
use crate::source::Source;
use crate::text::Text;

/// A copy of a random model whose tokens share a large first channel, by which its routers like each expert
/// less than the one before.
fn uneven_model(out: &Path) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let source = fixtures.join("qwen35moe-tiny");
    for entry in fs::read_dir(source).expect("it is there") {
        let entry = entry.expect("it can be read");
        fs::copy(entry.path(), out.join(entry.file_name())).expect("it can be copied");
    }
    let checkpoint = Checkpoint::open(out).expect("it opens");
    for tensor in checkpoint.tensors() {
        let is_router = tensor.name.ends_with("mlp.gate.weight") && !tensor.name.contains("mtp");
        if !is_router && !tensor.name.ends_with("embed_tokens.weight") {
            continue;
        }
        let path = &checkpoint.files()[tensor.extent.file.0 as usize].path;
        let mut bytes = fs::read(path).expect("it can be read");
        for row in 0..tensor.shape[0] {
            let value = if is_router { -0.4 * row as f32 } else { 4.0 };
            let mut encoded = Vec::new();
            encode_floats(FloatType::Bf16, &[value], &mut encoded);
            let at = tensor.extent.offset as usize + 2 * row * tensor.shape[1];
            bytes[at..at + 2].copy_from_slice(&encoded);
        }
        fs::write(path, bytes).expect("it can be written");
    }
    out.to_owned()
}

/// Words that are none, of a generator with a seed.
fn text(seed: u64) -> Text {
    let mut state = seed;
    let letters = (0..4000).map(|_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b"abcdefghijklmnopqrstuvwxyz      "[(state >> 59) as usize] as char
    });
    Text::Documents { path: PathBuf::new(), documents: vec![letters.collect()] }
}

/// Widths are chosen by what one text records, and judged by the inputs of another, at equal bytes: of all
/// experts, and of those that a token uses.
#[test]
fn where_routing_is_uneven_widths_of_their_own_lose_less_than_one_for_all() {
    const BITS: u8 = 3;
    let base = std::env::temp_dir().join(format!("flash-moe-uneven-{}", std::process::id()));
    fs::create_dir_all(base.join("model")).expect("it can be made");
    let model = uneven_model(&base.join("model"));
    let inventory = Inventory::read(&model).expect("it can be read");
    let source = Source::open(&inventory.checkpoint).expect("it can be opened");
    let engine =
        EngineOptions { memory: Some(1 << 30), direct_io: false, ..EngineOptions::default() };
    let record = |name: &str, seed| {
        let recording = Recording {
            directory: &base.join(name),
            identity: name.to_owned(),
            model: &model,
            config: inventory.checkpoint.config(),
            texts: &[text(seed)],
            n_tokens: 800,
            engine: &engine,
        };
        Calibration::open(&recording, &mut |_, _| {}).expect("it can be recorded")
    };
    let (read, other) = (record("read", 1), record("other", 2));
    let loader = Loader { source: &source, inventory: &inventory, calibration: Some(&read) };
    let options = Options::new(Recipe::named("experts-3bit").expect("it is known"));
    let table = &inventory.experts[0];
    let affine = |bits| {
        let scales = scales_of(table.get(0).gate.format);
        Affine { bits, group: options.recipe.group, scales }
    };
    // The errors of all layers' outputs, as shares of their squares, and bytes of all and of a token's.
    let judge = |widths: &[Vec<u8>]| {
        let mut loss = 0.0;
        let [mut all, mut of_token] = [0.0; 2];
        for (layer, widths) in widths.iter().enumerate() {
            let (given, judged) = (read.layer(layer).unwrap(), other.layer(layer).unwrap());
            let (mut errors, mut squares) = (0.0, 0.0);
            let uses = given.uses(widths.len());
            for (expert, &bits) in widths.iter().enumerate() {
                let weights = loader.expert(layer, expert).expect("it can be read");
                let inputs = given.inputs(expert, None);
                let codes = weights.quantise(affine(bits), Method::Refine, Some(&inputs));
                let own = judged.own_inputs(expert, usize::MAX, None);
                let outputs = weights.outputs(&own.x);
                errors += own.loss(&outputs, &weights.with_codes(&codes).outputs(&own.x));
                squares += own.loss(&outputs, &vec![0.0; outputs.len()]);
                let matrices = table.get(expert);
                let bytes = matrices
                    .matrices()
                    .map(|matrix| Stored::Affine(affine(bits)).bytes(matrix.rows, matrix.cols));
                let bytes = bytes.iter().sum::<u64>() as f64;
                all += bytes;
                of_token += bytes * uses[expert] as f64 / given.len() as f64;
            }
            loss += errors / squares;
        }
        (loss / widths.len() as f64, all, of_token)
    };
    let uses = read.layer(1).expect("it was recorded").uses(table.len());
    let (most, least) = (uses.iter().max().unwrap(), uses.iter().min().unwrap());
    assert!(*most > 20 * (*least).max(1), "routing is uneven: {uses:?}");
    let (uniform, all, of_token) = judge(&vec![vec![BITS; table.len()]; inventory.experts.len()]);
    for (name, budget) in [
        ("size", Budget::Size(all as u64)),
        ("bytes of a token", Budget::BytesPerToken(of_token.ceil() as u64)),
    ] {
        let path = base.join(format!("{name}.json"));
        let widths = choose_widths(&loader, &options, budget, &path, &mut |_, _| {});
        let (mixed, mixed_all, mixed_of_token) = judge(&widths.expect("it fits"));
        println!("{name}: {uniform:.5} at {BITS} bits, {mixed:.5} mixed; uses {uses:?}");
        match budget {
            Budget::Size(_) => assert!(mixed_all <= all),
            Budget::BytesPerToken(_) => assert!(mixed_of_token <= of_token.ceil()),
        }
        assert!(mixed < uniform, "{name}: {mixed} at widths of their own, {uniform} at one");
    }
    fs::remove_dir_all(&base).expect("it can be removed");
}
