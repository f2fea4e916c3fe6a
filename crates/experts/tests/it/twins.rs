//! Experts with twins of fewer bits in another file.

use std::sync::Arc;

use compute::LoadedExpert;
use experts::{DataFiles, ExpertStore, IoMode, LookAhead, StoreOptions};

use crate::{EXPERTS, Model, READERS};

/// What is delivered of one request, in order.
fn delivered(store: &mut ExpertStore, entries: &[u32]) -> Vec<LoadedExpert> {
    store.request(0, entries.iter().map(|&entry| (entry, 1))).expect("reads begin");
    let (mut all, mut ready) = (Vec::new(), Vec::new());
    loop {
        store.next_ready(&mut ready).expect("the files are whole");
        if ready.is_empty() {
            all.sort_by_key(|expert: &LoadedExpert| expert.index);
            return all;
        }
        all.append(&mut ready);
    }
}

#[test]
fn a_twin_is_never_taken_for_its_expert() {
    let n = EXPERTS as u32;
    // Layer 0 of the model is in bf16, layer 1 of the other in codes of 4 bits.
    let [model, other] = [Model::new(), Model::new()];
    let [full, small] = [model.tables[0].get(0).bytes(), other.tables[1].get(0).bytes()];
    assert!(small < full);
    for (reader, io_threads) in READERS {
        let files = DataFiles::open(&[model.path.clone(), other.path.clone()], IoMode::Direct);
        let table = model.tables[0].clone().with_twins(other.tables[1].clone().after_files(1));
        assert_eq!((table.len(), table.n_experts()), (2 * EXPERTS, EXPERTS));
        let tables = vec![table];
        let cache_bytes = 2 * u64::from(n) * ExpertStore::slot_bytes(&tables);
        let look_ahead = LookAhead::Auto;
        let options =
            StoreOptions { cache_bytes, reader, io_threads, look_ahead, ..StoreOptions::default() };
        let files = Arc::new(files.expect("the files can be opened"));
        let mut store = ExpertStore::new(files, tables, &options).expect("a store");
        // Expert 1 and the twin of 3, then both of 3, then all again: each has its own bytes.
        for (entries, hits) in [(&[1, n + 3][..], 0), (&[3, n + 3], 1), (&[1, 3, n + 1, n + 3], 4)]
        {
            for expert in delivered(&mut store, entries) {
                match expert.index.checked_sub(n) {
                    None => model.check(0, expert.index, &expert.weights),
                    Some(twin) => other.check(1, twin, &expert.weights),
                }
            }
            assert_eq!(store.stats().hits, hits, "{entries:?}");
        }
        assert!(store.is_resident(0, 3) && store.is_resident(0, n + 1));
        assert!(!store.is_resident(0, 2) && !store.is_resident(0, n + 2));
        let residents: Vec<Vec<bool>> = store.residents().map(Iterator::collect).collect();
        assert_eq!(residents, [(0..n).map(|e| [1, 3].contains(&e)).collect::<Vec<_>>()]);
        let stats = store.stats();
        assert_eq!(stats.used_bytes, 4 * full + 4 * small);
        assert_eq!((stats.twin_uses, stats.twin_saved_bytes), (4, 4 * (full - small)));

        // All experts but one are in memory after this, and all of their twins: nothing is whole.
        let twins: Vec<u32> = (n..2 * n).chain(0..n - 1).collect();
        assert_eq!(delivered(&mut store, &twins).len(), twins.len());
        assert!(store.wants_prediction(0, 100));
        delivered(&mut store, &[n - 1]);
        assert!(!store.wants_prediction(0, 100), "all experts are in memory");
    }
}
