//! Savings that change what the model says, on the demo model.

use engine::{Engine, EngineOptions, Lossy};

use crate::{demo, documents};

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
        look_ahead: engine::LookAhead::Off,
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
        let opened = Engine::open(&crate::repository("models/demo"), &options);
        opened.err().expect("it is refused").to_string()
    };
    let more = open(Lossy { experts_per_token: Some(7), ..Lossy::default() });
    assert!(more.contains("from 1 to 6"), "{more}");
    assert!(open(Lossy { cache_bias: -1.0, ..Lossy::default() }).contains("--cache-bias"));

    let fewer = Lossy { experts_per_token: Some(2), ..Lossy::default() };
    let mut engine = demo(EngineOptions { lossy: fewer, ..EngineOptions::default() });
    let golden = crate::repository("models/demo/golden.safetensors");
    let error = engine::verify::verify(&mut engine, &golden).expect_err("it is not faithful");
    assert!(error.to_string().contains("experts-per-token=2"), "{error}");
}
