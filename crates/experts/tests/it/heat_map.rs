//! The heat map: what one run leaves for the next.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use experts::{ExpertStore, HeatMap, HeatMapError, IoMode, LookAhead, StoreOptions, identity};

use crate::{EXPERTS, LAYERS, Model, READERS, deliver};

/// A path that is removed in the end.
struct Place(PathBuf);

impl Place {
    fn beside(model: &Model) -> Self {
        Self(model.path.with_extension("heat"))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// A map in which experts 1, 4 and 6 of every layer are hot, the last one most.
pub fn trained(model: &Model) -> HeatMap {
    let mut store = model.store(6, StoreOptions::default(), IoMode::Direct);
    for round in 0..12 {
        for layer in 0..LAYERS {
            deliver(model, &mut store, layer, if round % 2 == 0 { &[1, 4, 6] } else { &[6] });
        }
    }
    store.heat_map()
}

fn identity_of(model: &Model) -> u64 {
    identity(std::slice::from_ref(&model.path), &model.tables).expect("the file is there")
}

#[test]
fn what_was_saved_is_loaded() {
    let model = Model::new();
    let (map, place, id) = (trained(&model), Place::beside(&model), identity_of(&model));
    assert_eq!(map.n_used(), 3 * LAYERS);
    assert!(HeatMap::may_replace(place.path()));
    map.save(place.path(), id).expect("it can be written");
    assert!(HeatMap::may_replace(place.path()));
    assert_eq!(HeatMap::load(place.path(), id, &model.tables).expect("it is right"), map);
    assert!(!HeatMap::may_replace(&model.path), "other files are left alone");
    // A store that begins with it and does nothing ends with it.
    let mut store = model.store(6, StoreOptions::default(), IoMode::Direct);
    assert!(store.recall(&map));
    assert_eq!(store.heat_map(), map);
}

#[test]
fn damage_of_any_byte_is_found() {
    let model = Model::new();
    let (place, id) = (Place::beside(&model), identity_of(&model));
    trained(&model).save(place.path(), id).expect("it can be written");
    let load = |bytes: &[u8]| {
        fs::write(place.path(), bytes).expect("it can be written");
        HeatMap::load(place.path(), id, &model.tables)
    };
    let bytes = fs::read(place.path()).expect("it is there");
    assert_eq!(bytes.len(), 24 + 4 * LAYERS + LAYERS * EXPERTS + 8);
    for len in 0..bytes.len() {
        assert!(load(&bytes[..len]).is_err(), "cut to {len} bytes");
    }
    assert!(matches!(load(&[&bytes[..], b"x"].concat()), Err(HeatMapError::Length { .. })));
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(load(&damaged).is_err(), "bit {bit} was flipped");
    }
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(matches!(load(&newer), Err(HeatMapError::Version { found: 2 })));
    assert!(load(&bytes).is_ok());
}

#[test]
fn the_map_of_another_checkpoint_is_refused() {
    let (model, other) = (Model::new(), Model::new());
    let (place, id) = (Place::beside(&model), identity_of(&model));
    assert_ne!(id, identity_of(&other), "another path");
    let map = trained(&model);
    map.save(place.path(), id).expect("it can be written");
    for (id, tables) in [(id + 1, &model.tables[..]), (id, &model.tables[1..])] {
        let result = HeatMap::load(place.path(), id, tables);
        assert!(matches!(result, Err(HeatMapError::OtherCheckpoint)), "{result:?}");
    }
    assert_ne!(id, identity(std::slice::from_ref(&model.path), &model.tables[1..]).expect("it is"));
    model.cut(model.bytes.len() as u64 - 1);
    assert_ne!(id, identity_of(&model), "another length");
    let directory = HeatMap::load(Path::new(env!("CARGO_TARGET_TMPDIR")), id, &model.tables);
    assert!(matches!(directory, Err(HeatMapError::NotOne)));

    let files = experts::DataFiles::open(std::slice::from_ref(&other.path), IoMode::Direct);
    let options = StoreOptions { cache_bytes: 1 << 20, ..StoreOptions::default() };
    let files = std::sync::Arc::new(files.expect("it can be opened"));
    let mut store = ExpertStore::new(files, other.tables[1..].to_vec(), &options).expect("a store");
    assert!(!store.recall(&map), "it has other layers");
}

#[test]
fn empty_slots_are_filled_with_the_hottest() {
    let model = Model::new();
    let map = trained(&model);
    for (reader, io_threads) in READERS {
        for n_slots in [2, 3, 5, 9, 100] {
            let options = StoreOptions { reader, io_threads, ..StoreOptions::default() };
            let mut store = model.store(n_slots, options, IoMode::Direct);
            assert!(store.recall(&map));
            let n_hot = 3 * LAYERS as u64;
            // An expert that is no part of the map leaves time for those that are. Threads may be late.
            for _ in 0..if n_slots < 100 { 100 } else { 100_000 } {
                deliver(&model, &mut store, LAYERS - 1, &[0]);
                if store.stats().warm_reads == n_hot {
                    break;
                }
                std::thread::yield_now();
            }
            let warm_reads = store.stats().warm_reads;
            if n_slots < 100 {
                assert!(warm_reads <= n_hot.min(n_slots), "{warm_reads} for {n_slots} slots");
                continue;
            }
            assert_eq!(warm_reads, n_hot, "{:?}", store.stats());
            let (hits, misses) = (store.stats().hits, store.stats().misses);
            for layer in 0..LAYERS {
                deliver(&model, &mut store, layer, &[1, 4, 6]);
            }
            let stats = store.stats();
            assert_eq!(stats.warm_useful, stats.warm_reads);
            assert_eq!(stats.hits - hits + stats.misses - misses, n_hot);
            // The last of them may still be on their way, or be taken back and read now.
            assert!(stats.misses - misses < n_hot, "{stats:?}");
        }
    }
}

#[test]
fn who_has_time_can_fill_all_slots() {
    let model = Model::new();
    let map = trained(&model);
    let minute = Duration::from_secs(60);
    for (reader, io_threads) in READERS {
        for n_slots in [2, 5, 100] {
            let options = StoreOptions { reader, io_threads, ..StoreOptions::default() };
            let mut store = model.store(n_slots, options, IoMode::Direct);
            assert!(store.warm_up(minute), "there is nothing to do");
            assert!(store.recall(&map));
            assert!(n_slots < 100 || !store.warm_up(Duration::ZERO), "there was no time");
            assert!(store.warm_up(minute));
            let n_hot = n_slots.min(3 * LAYERS as u64);
            assert_eq!(store.stats().warm_reads, n_hot);
            // Expert 6 of each layer is the hottest.
            let n_hottest = n_slots.min(LAYERS as u64) as usize;
            for layer in 0..n_hottest {
                deliver(&model, &mut store, layer, &[6]);
            }
            let stats = store.stats();
            let expected = (n_hottest as u64, 0, n_hottest as u64);
            assert_eq!((stats.hits, stats.misses, stats.warm_useful), expected);
        }
    }
}

#[test]
fn without_looking_ahead_only_the_policy_remembers() {
    let model = Model::new();
    let map = trained(&model);
    let options = StoreOptions { look_ahead: LookAhead::Off, ..StoreOptions::default() };
    let mut store = model.store(3, options, IoMode::Direct);
    assert!(store.recall(&map));
    deliver(&model, &mut store, 0, &[6]);
    for expert in [0, 2, 3, 5, 7, 0, 2] {
        deliver(&model, &mut store, 1, &[expert]);
    }
    let hits = store.stats().hits;
    deliver(&model, &mut store, 0, &[6]);
    assert_eq!((store.stats().hits, store.stats().warm_reads), (hits + 1, 0));
}

#[test]
fn a_hot_expert_that_cannot_be_read_harms_nobody() {
    for (reader, io_threads) in READERS {
        let model = Model::new();
        let map = trained(&model);
        model.cut(model.tables[2].get(0).gate.data.offset);
        let options = StoreOptions { reader, io_threads, ..StoreOptions::default() };
        let mut store = model.store(100, options, IoMode::Direct);
        assert!(store.recall(&map));
        for round in 0..40 {
            deliver(&model, &mut store, round % 2, &[round as u32 % 6, 6]);
        }
        store.request(2, crate::once(&[6])).expect("a request");
        assert!(store.next_ready(&mut Vec::new()).is_err());
        deliver(&model, &mut store, 1, &[0, 1, 2]);
    }
}
