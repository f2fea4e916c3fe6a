//! Reading before anybody asks.

use compute::Routing;
use experts::{ExpertStore, IoMode, LookAhead, StoreOptions};

use crate::{EXPERTS, LAYERS, Model, READERS, deliver, next_ready, once};

/// The routing of a row that is as sure of each of its experts as of the last but one.
pub fn routing(experts: &[u32]) -> Routing {
    let mut weights = vec![0.2; experts.len()];
    weights[experts.len() - 1] = 0.05;
    Routing { top_k: experts.len(), experts: experts.to_vec(), weights }
}

fn options(look_ahead: LookAhead) -> StoreOptions {
    StoreOptions { look_ahead, ..StoreOptions::default() }
}

/// Bytes that reading these experts once takes.
fn bytes_of(model: &Model, layer: usize, experts: &[u32]) -> u64 {
    let mut store = model.store(8, options(LookAhead::Off), IoMode::Direct);
    let before = store.stats().bytes_read;
    deliver(model, &mut store, layer, experts);
    store.stats().bytes_read - before
}

#[test]
fn a_chunk_reads_every_expert_at_most_once() {
    let model = Model::new();
    let all: Vec<u32> = (0..EXPERTS as u32).collect();
    let whole: u64 = (0..LAYERS).map(|layer| bytes_of(&model, layer, &all)).sum();
    for (reader, io_threads) in READERS {
        for n_slots in [2, 3, 7, 12, 100] {
            let options = StoreOptions { reader, io_threads, ..options(LookAhead::Auto) };
            let mut store = model.store(n_slots, options, IoMode::Direct);
            let before = store.stats().bytes_read;
            for layer in 0..LAYERS {
                deliver(&model, &mut store, layer, &all);
            }
            assert_eq!(store.stats().bytes_read - before, whole, "{n_slots} slots");
            let stats = store.stats();
            assert_eq!(stats.ahead_useful, stats.ahead_reads, "a sweep reads nothing in vain");
            let before = store.stats().bytes_read;
            for layer in 0..LAYERS {
                deliver(&model, &mut store, layer, &all);
            }
            let again = store.stats().bytes_read - before;
            assert!(again <= if n_slots == 100 { 0 } else { whole }, "{again} of {whole}");
        }
    }
}

#[test]
fn a_short_prompt_reads_only_what_it_uses() {
    let model = Model::new();
    let some = [0, 2, 3, 5, 6];
    let whole: u64 = (0..LAYERS).map(|layer| bytes_of(&model, layer, &some)).sum();
    let mut store = model.store(100, options(LookAhead::Auto), IoMode::Direct);
    let before = store.stats().bytes_read;
    for layer in 0..LAYERS {
        deliver(&model, &mut store, layer, &some);
    }
    assert_eq!(store.stats().bytes_read - before, whole);
    assert_eq!(store.stats().ahead_reads, 0);
}

#[test]
fn a_chunk_reads_ahead_what_several_rows_are_predicted_to_use() {
    let model = Model::new();
    let some = [0, 2, 3, 5];
    let rows = |experts: [u32; 4]| Routing {
        top_k: 4,
        experts: experts.repeat(12),
        weights: vec![0.25; 48],
    };
    let whole: u64 = (0..LAYERS).map(|layer| bytes_of(&model, layer, &some)).sum();
    let mut store = model.store(100, options(LookAhead::Auto), IoMode::Direct);
    let before = store.stats().bytes_read;
    for layer in 0..LAYERS {
        assert!(store.wants_prediction(layer, 12), "nothing is in memory");
        store.look_ahead(layer, &rows(some), &|_| false);
        deliver(&model, &mut store, layer, &some);
    }
    assert_eq!(store.stats().bytes_read - before, whole);
    assert_eq!(store.stats().ahead_useful, store.stats().ahead_reads);
    // Predictions that fail end chunks' look-ahead, too.
    let mut store = model.store(2, options(LookAhead::Auto), IoMode::Direct);
    for round in 0..200 {
        let layer = round % LAYERS;
        if store.wants_prediction(layer, 12) {
            store.look_ahead(layer, &rows([1, 4, 6, 7]), &|_| false);
        }
        deliver(&model, &mut store, layer, &some);
    }
    let stats = store.stats();
    assert!(stats.ahead_reads - stats.ahead_useful <= 100, "{stats:?}");
}

/// Predicts and asks at once: reads that threads have not begun by then are taken back.
fn predict_and_ask(model: &Model, store: &mut ExpertStore, predicted: &[u32], asked: &[u32]) {
    for layer in 0..LAYERS {
        if store.wants_prediction(layer, 1) {
            store.look_ahead(layer, &routing(predicted), &|_| false);
        }
        deliver(model, store, layer, asked);
    }
}

#[test]
fn what_was_rightly_predicted_is_of_use() {
    let model = Model::new();
    for (reader, io_threads) in READERS {
        let options = StoreOptions { reader, io_threads, ..options(LookAhead::Auto) };
        let mut store = model.store(8, options, IoMode::Direct);
        for round in 0..40 {
            let experts = [round % 8, (round + 3) % 8, (round + 5) % 8];
            predict_and_ask(&model, &mut store, &experts, &experts);
        }
        let stats = store.stats();
        if store.reader().name == "io_uring" {
            assert!(stats.ahead_reads > 40, "{stats:?}");
        }
        assert_eq!(stats.ahead_useful, stats.ahead_reads);
    }
}

/// A device that brings choice and prediction together tells the prediction before the request is answered.
#[test]
fn a_prediction_in_the_midst_of_a_request_is_read_after_it() {
    let model = Model::new();
    for (reader, io_threads) in READERS {
        let options = StoreOptions { reader, io_threads, ..options(LookAhead::On) };
        let mut store = model.store(8, options, IoMode::Direct);
        store.request(0, once(&[0, 1, 2])).expect("a request");
        // The device has expert 4, so it will not be asked for.
        store.look_ahead(1, &routing(&[4, 5]), &|expert| expert == 4);
        assert_eq!(store.stats().ahead_reads, 0, "somebody waits for the drive");
        while !next_ready(&mut store).expect("experts").is_empty() {}
        assert_eq!(store.stats().ahead_reads, 1);
        assert!(!store.is_resident(1, 4) && store.is_resident(1, 5));
        deliver(&model, &mut store, 1, &[5]);
        assert_eq!(store.stats().ahead_useful, store.stats().ahead_reads);
    }
}

#[test]
fn what_a_device_has_makes_room_and_stays_hot() {
    let model = Model::new();
    let mut store = model.store(3, options(LookAhead::Off), IoMode::Direct);
    deliver(&model, &mut store, 0, &[0, 1, 2]);
    for _ in 0..4 {
        store.used_on_device(0, 1, 1);
    }
    let residents = |store: &ExpertStore| [0, 1, 2, 3].map(|expert| store.is_resident(0, expert));
    assert_eq!(residents(&store), [true, false, true, false]);
    deliver(&model, &mut store, 0, &[3]);
    assert_eq!(residents(&store), [true, false, true, true], "nobody had to leave");
    for others in [1, 4, 5, 6] {
        deliver(&model, &mut store, 0, &[others]);
    }
    assert!(store.is_resident(0, 1), "its uses on the device count");
    // What somebody holds stays.
    store.request(0, once(&[1])).expect("a request");
    let held = next_ready(&mut store).expect("an expert");
    store.used_on_device(0, 1, 1);
    assert!(store.is_resident(0, 1));
    drop(held);
    store.used_on_device(0, 1, 1);
    assert!(!store.is_resident(0, 1));
    deliver(&model, &mut store, 0, &[0, 1, 2, 3]);
}

#[test]
fn wrong_predictions_put_an_end_to_themselves() {
    let model = Model::new();
    let ask = |mode| {
        let mut store = model.store(4, options(mode), IoMode::Direct);
        for round in 0..400 {
            let asked = [round % 8, (round + 1) % 8];
            let predicted = [(round + 4) % 8, (round + 5) % 8];
            predict_and_ask(&model, &mut store, &predicted, &asked);
        }
        let wants = (0..LAYERS).any(|layer| store.wants_prediction(layer, 1));
        (store.stats().ahead_reads - store.stats().ahead_useful, wants)
    };
    let (in_vain, wants) = ask(LookAhead::Auto);
    assert!(in_vain < 60 && !wants, "{in_vain} reads in vain");
    let (in_vain, wants) = ask(LookAhead::On);
    assert!(in_vain > 100 && wants, "{in_vain} reads in vain");
    assert_eq!(ask(LookAhead::Off), (0, false));
}

#[test]
fn a_failed_read_ahead_harms_nobody() {
    for (reader, io_threads) in READERS {
        let model = Model::new();
        let options = StoreOptions { reader, io_threads, ..options(LookAhead::On) };
        let mut store = model.store(4, options, IoMode::Direct);
        deliver(&model, &mut store, 0, &[0, 1]);
        model.cut(model.tables[2].get(0).gate.data.offset);
        for _ in 0..3 {
            store.look_ahead(2, &routing(&[4, 5, 6]), &|_| false);
            deliver(&model, &mut store, 0, &[2, 0, 1]);
        }
        store.request(2, once(&[4])).expect("a request");
        assert!(store.next_ready(&mut Vec::new()).is_err());
        deliver(&model, &mut store, 1, &[0, 1, 2]);
    }
}
