//! Recording, reading and simulating routing.

use std::io::Write;
use std::sync::{Arc, Mutex};

use experts::{
    ExpertStore, IoMode, PolicyKind, StoreOptions, Trace, TraceError, TracedRequest, simulate,
    simulate_belady,
};
use proptest::prelude::*;

use crate::{LAYERS, Model, next_ready};

/// Bytes that stay readable after the writer is gone.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A trace of some passes that use popular experts more.
fn record(model: &Model, store: &mut ExpertStore) -> Vec<u8> {
    let out = Shared::default();
    store.record_trace(Box::new(out.clone()));
    for pass in 0..40_u32 {
        for layer in 0..LAYERS {
            let experts = [0, 1 + pass % 2, 3 + (pass * 7 + layer as u32) % 5];
            let uses = if pass == 0 { 3 } else { 1 };
            store.request(layer, experts.map(|expert| (expert, uses))).expect("a request");
            loop {
                let ready = next_ready(store).expect("all can be read");
                if ready.is_empty() {
                    break;
                }
                ready.iter().for_each(|expert| model.check(layer, expert.index, &expert.weights));
            }
        }
    }
    store.finish_trace().expect("memory takes all");
    std::mem::take(&mut out.0.lock().expect("nobody panics"))
}

#[test]
fn what_was_recorded_is_read_and_hits_as_the_store_did() {
    let model = Model::new();
    // CLOCK is not here: it depends on the order in which reads end.
    for policy in [PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Frecency] {
        for n_slots in [5, 9, 14] {
            let options = StoreOptions { policy, ..StoreOptions::default() };
            let mut store = model.store(n_slots, options, IoMode::Direct);
            let trace = Trace::read(record(&model, &mut store).as_slice()).expect("a trace");
            assert_eq!(trace.slot_bytes, ExpertStore::slot_bytes(&model.tables));
            assert_eq!(trace.experts, [8; LAYERS]);
            assert_eq!(trace.requests.len(), 40 * LAYERS);
            let first = TracedRequest { layer: 0, experts: vec![(0, 3), (1, 3), (3, 3)] };
            assert_eq!(trace.requests[0], first);
            let simulated =
                simulate(&trace, policy.build(8 * LAYERS).as_mut(), n_slots as usize, 0);
            let stats = store.stats();
            assert_eq!((simulated.hits, simulated.misses), (stats.hits, stats.misses));
            let best = simulate_belady(&trace, n_slots as usize, 0);
            assert!(best.hits >= simulated.hits, "{}", policy.name());
        }
    }
}

#[test]
fn a_damaged_trace_is_refused_by_line() {
    let good = "flash-moe routing 1\nslot_bytes 4096\nexperts 4 0 4\n0 1 3*20\n2 0\n";
    assert_eq!(Trace::read(good.as_bytes()).expect("a trace").requests.len(), 2);
    let damaged = |from: &str, to: &str| {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good);
        match Trace::read(text.as_bytes()).expect_err(&text) {
            TraceError::Line { line, .. } => line,
            TraceError::NotATrace => 1,
            error => panic!("{error}"),
        }
    };
    assert_eq!(damaged("routing 1", "routing 2"), 1);
    assert_eq!(damaged("4096", "0"), 2);
    assert_eq!(damaged("4 0 4", "4 x 4"), 3);
    assert_eq!(damaged("4 0 4", "4 0 4000000000"), 3);
    assert_eq!(damaged("3*20", "4"), 4);
    assert_eq!(damaged("3*20", "3*0"), 4);
    assert_eq!(damaged("3*20", "1"), 4);
    assert_eq!(damaged("\n2 0", "\n1 0"), 5);
    assert_eq!(damaged("\n2 0", "\n3 0"), 5);
    assert_eq!(damaged("\n2 0\n", "\n2 0"), 5);
    let long = format!("{good}0{}\n", " 1".repeat(1 << 20));
    assert!(matches!(Trace::read(long.as_bytes()), Err(TraceError::Line { line: 6, .. })));
    assert!(matches!(Trace::read(b"".as_slice()), Err(TraceError::NotATrace)));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        index in 0_usize..70,
        replacement in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let mut bytes =
            b"flash-moe routing 1\nslot_bytes 4096\nexperts 4 0 4\n0 1 3*20\n2 0\n".to_vec();
        let index = index.min(bytes.len());
        let end = (index + 2).min(bytes.len());
        bytes.splice(index..end, replacement);
        if let Ok(trace) = Trace::read(bytes.as_slice()) {
            let n_keys = trace.experts.iter().sum::<u32>() as usize;
            simulate(&trace, PolicyKind::Frecency.build(n_keys).as_mut(), 2, 0);
        }
    }
}
