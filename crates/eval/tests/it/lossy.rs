//! Savings that change what the model says, on the demo model.

use std::fs;
use std::path::Path;

use engine::{Device, Engine, EngineOptions, LookAhead, Lossy};
use eval::Cost;

use crate::{demo, documents, repository, two_bit};

/// Loss, bytes used and bytes read on some documents, token by token with few experts in memory.
fn measure(engine: &mut Engine) -> (f64, u64, u64) {
    let documents = documents(engine, "tale", 3);
    let mut sums = (0.0, 0, 0);
    for document in &documents {
        let unit = eval::score_document(engine, document, None).expect("it runs");
        sums.0 += unit.loss / unit.counted as f64;
        sums.1 += unit.cost.used_bytes;
        sums.2 += unit.cost.read_bytes;
    }
    sums
}

fn with(lossy: Lossy) -> Engine {
    demo(EngineOptions {
        lossy,
        prompt_chunk: Some(1),
        expert_cache: Some(4 << 20),
        look_ahead: LookAhead::Off,
        ..EngineOptions::default()
    })
}

#[test]
fn each_saving_saves_what_it_says_and_costs_something() {
    let (faithful, used, read) = measure(&mut with(Lossy::default()));
    let fewer = Lossy { experts_per_token: Some(3), ..Lossy::default() };
    let (loss, used_by_fewer, _) = measure(&mut with(fewer));
    assert_eq!(used_by_fewer * 2, used, "3 of 6 experts");
    assert!(loss > faithful, "{loss} beside {faithful}");

    let drop = Lossy { expert_drop: 0.1, ..Lossy::default() };
    let (loss, used_without, _) = measure(&mut with(drop));
    assert!(used_without < used && used_without > used / 6, "{used_without} of {used}");
    assert!(loss != faithful && loss < 1.1 * faithful, "{loss} beside {faithful}");

    let bias = Lossy { cache_bias: 0.5, ..Lossy::default() };
    let (loss, used_by_bias, read_by_bias) = measure(&mut with(bias));
    assert_eq!(used_by_bias, used, "as many experts, but others");
    assert!(read_by_bias < read, "{read_by_bias} of {read}");
    assert!(loss != faithful && loss < 1.2 * faithful, "{loss} beside {faithful}");

    // All of them count as options that were given; none of them changes a thing at its least.
    let all = Lossy { experts_per_token: Some(6), expert_drop: 1e-9, ..Lossy::default() };
    let (same, ..) = measure(&mut with(all));
    assert_eq!(same.to_bits(), faithful.to_bits());
}

#[test]
fn what_cannot_be_had_is_refused() {
    let open = |lossy| {
        let options = EngineOptions { lossy, memory: Some(1 << 30), ..EngineOptions::default() };
        let opened = Engine::open(&repository("models/demo"), &options);
        opened.err().expect("it is refused").to_string()
    };
    let more = open(Lossy { experts_per_token: Some(7), ..Lossy::default() });
    assert!(more.contains("from 1 to 6"), "{more}");
    assert!(open(Lossy { cache_bias: -1.0, ..Lossy::default() }).contains("--cache-bias"));

    let fewer = Lossy { experts_per_token: Some(2), ..Lossy::default() };
    let mut engine = demo(EngineOptions { lossy: fewer, ..EngineOptions::default() });
    let golden = repository("models/demo/golden.safetensors");
    let error = engine::verify::verify(&mut engine, &golden).expect_err("it is not faithful");
    assert!(error.to_string().contains("experts-per-token=2"), "{error}");
}

/// Experts that a token uses.
const USES: u64 = 8 * 6;

/// Loss and cost of some documents.
fn whole(engine: &mut Engine) -> (f64, Cost) {
    let (mut loss, mut cost) = (0.0, Cost::default());
    for document in &documents(engine, "tale", 2) {
        let unit = eval::score_document(engine, document, None).expect("it runs");
        loss += unit.loss;
        cost += &unit.cost;
    }
    (loss, cost)
}

#[test]
fn twins_are_used_where_they_are_due_and_counted() {
    let two_bit = two_bit::write(&repository("models/demo"), "twins");
    // Few experts in memory; as decoding does, and in chunks that read ahead.
    let ways = [(1, LookAhead::Off), (1, LookAhead::On), (512, LookAhead::Auto)];
    for (prompt_chunk, look_ahead) in ways {
        let options = |twin_share: f32| EngineOptions {
            lossy: Lossy { twin_share, ..Lossy::default() },
            twin: Some(two_bit.0.clone()),
            prompt_chunk: Some(prompt_chunk),
            expert_cache: Some(4 << 20),
            look_ahead,
            ..EngineOptions::default()
        };
        let faithful = EngineOptions { twin: None, ..options(0.0) };
        let (loss, cost) = whole(&mut demo(faithful.clone()));
        assert_eq!(cost.twin_uses, 0);
        let mut off = demo(options(0.0));
        assert!(!off.lossy().is_on(), "a share of nothing is no saving");
        let (same, off) = whole(&mut off);
        assert_eq!((same.to_bits(), off.used_bytes), (loss.to_bits(), cost.used_bytes));

        // No expert is ever in memory, so all are twins: the model of the twins, bit by bit.
        let faithful = EngineOptions { memory: Some(1 << 30), ..faithful };
        let mut twin = Engine::open(&two_bit.0, &faithful).expect("the twin is a model");
        let (twin_loss, twin_cost) = whole(&mut twin);
        let mut all = demo(options(1.0));
        assert_eq!(all.lossy().to_string(), "twin-share=1");
        let (all_loss, all) = whole(&mut all);
        assert_eq!(all_loss.to_bits(), twin_loss.to_bits(), "{prompt_chunk}, {look_ahead:?}");
        assert_eq!(all.twin_uses, all.tokens * USES);
        assert_eq!(all.used_bytes, twin_cost.used_bytes);
        assert_eq!(all.twin_saved_bytes, cost.used_bytes - twin_cost.used_bytes);

        if prompt_chunk > 1 {
            continue;
        }
        let (some_loss, some) = whole(&mut demo(options(0.12)));
        assert!(some.twin_uses > 0 && some.twin_uses < all.twin_uses, "{some:?}");
        let saved = all.twin_saved_bytes / all.twin_uses;
        assert_eq!(some.twin_saved_bytes, saved * some.twin_uses, "experts are all alike");
        assert_eq!(some.used_bytes + some.twin_saved_bytes, cost.used_bytes);
        assert!(some.read_bytes < cost.read_bytes, "{some:?} beside {cost:?}");
        assert!(loss < some_loss && some_loss < twin_loss, "{loss}, {some_loss}, {twin_loss}");
    }
}

#[test]
fn another_model_is_no_twin() {
    let demo_model = repository("models/demo");
    let two_bit = two_bit::write(&demo_model, "no-twins");
    let options = |twin: &Path| EngineOptions {
        lossy: Lossy { twin_share: 0.1, ..Lossy::default() },
        twin: Some(twin.to_owned()),
        memory: Some(1 << 30),
        ..EngineOptions::default()
    };
    let refused = |model: &Path, twin: &Path| {
        let error = Engine::open(model, &options(twin)).err().expect("it is refused").to_string();
        assert!(error.contains(&twin.display().to_string()), "{error}");
        error
    };
    let fixture = |name: &str| repository("tests/fixtures").join(name);
    assert!(refused(&demo_model, &fixture("qwen3moe-tiny")).contains("family Qwen3-MoE"));
    assert!(refused(&demo_model, &fixture("qwen35moe-tiny")).contains("layers"));
    assert!(refused(&two_bit.0, &demo_model).contains("more than the model's"));
    refused(&demo_model, &fixture("nowhere"));

    let without = EngineOptions { twin: None, ..options(&two_bit.0) };
    let message = Engine::open(&demo_model, &without).err().expect("it is refused").to_string();
    assert!(message.contains("--twin"), "{message}");
    let on_gpu = EngineOptions { device: Device::Gpu(None), ..options(&two_bit.0) };
    let message = Engine::open(&demo_model, &on_gpu).err().expect("it is refused").to_string();
    assert!(message.contains("only the CPU"), "{message}");

    // The same shapes with another norm before the experts of a layer.
    let path = two_bit.0.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("it is there");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    let name = header.as_object().expect("an object").keys();
    let name = name.clone().find(|it| it.ends_with("layers.3.post_attention_layernorm.weight"));
    let entry = &header[name.expect("the layer has one")]["data_offsets"][0];
    let begin = 8 + len + entry.as_u64().expect("a number") as usize;
    bytes[begin..begin + 2].copy_from_slice(&0x4080_u16.to_le_bytes());
    fs::write(&path, bytes).expect("it can be written");
    let message = refused(&demo_model, &two_bit.0);
    assert!(message.contains("layers.3.post_attention_layernorm.weight"), "{message}");
}
