//! Integration tests of the expert store: real files, real threads.

mod heat_map;
mod look_ahead;
mod trace;
mod twins;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::{
    Affine, ExpertLocation, ExpertTable, Extent, FileId, FloatType, Format, MatrixLocation,
};
use compute::{ExpertWeights, LoadedExpert};
use experts::{
    DataFiles, ExpertStore, IoError, IoMode, LookAhead, PolicyKind, ReadPlan, ReaderKind,
    StoreError, StoreOptions,
};
use proptest::prelude::*;

const LAYERS: usize = 3;
const EXPERTS: usize = 8;
const ROWS: usize = 64;
const COLS: usize = 128;

/// Readers; io_uring becomes threads where it cannot be had.
const READERS: [(ReaderKind, usize); 4] = [
    (ReaderKind::Threads, 1),
    (ReaderKind::Threads, 4),
    (ReaderKind::Uring, 1),
    (ReaderKind::Auto, 2),
];

/// A file of bytes that look random, with experts at odd places of it.
struct Model {
    path: PathBuf,
    bytes: Vec<u8>,
    tables: Vec<ExpertTable>,
}

impl Model {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("experts-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let affine = Affine { bits: 4, group: 64, scales: FloatType::Bf16 };
        let formats = [Format::Float(FloatType::Bf16), Format::Affine(affine)];
        let mut offset = 13;
        let mut place = |len: usize| {
            let extent = Extent { file: FileId(0), offset, len: len as u64 };
            // Gaps of all sizes, so that some parts share blocks and others lie far apart.
            offset += extent.len + (offset * 7919) % 9001;
            extent
        };
        let mut tables = Vec::new();
        for layer in 0..LAYERS {
            let format = formats[layer % 2];
            let mut matrix = |rows: usize, cols: usize| {
                let scale_bytes = rows * format.scale_row_bytes(cols);
                MatrixLocation {
                    format,
                    rows,
                    cols,
                    data: place(rows * format.row_bytes(cols)),
                    scales: (scale_bytes > 0).then(|| [place(scale_bytes), place(scale_bytes)]),
                }
            };
            let mut expert = || ExpertLocation {
                gate: matrix(ROWS, COLS),
                up: matrix(ROWS, COLS),
                down: matrix(COLS, ROWS),
            };
            tables.push(ExpertTable::separate((0..EXPERTS).map(|_| expert()).collect()));
        }
        // The last expert ends with the file, at no multiple of anything.
        let last = tables[LAYERS - 1].get(EXPERTS - 1).down;
        let len = last.extents().map(|extent| extent.offset + extent.len).max();
        // Exponents of bf16 scales stay finite: no byte has all of its upper bits set.
        let byte = |index: u64| ((index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 0x7f) as u8;
        let bytes: Vec<u8> = (0..len.expect("there are extents")).map(byte).collect();
        fs::write(&path, &bytes).expect("the file can be written");
        Self { path, bytes, tables }
    }

    fn store(&self, n_slots: u64, options: StoreOptions, mode: IoMode) -> ExpertStore {
        let files = DataFiles::open(std::slice::from_ref(&self.path), mode)
            .expect("the file can be opened");
        let cache_bytes = n_slots * ExpertStore::slot_bytes(&self.tables);
        let options = StoreOptions { cache_bytes, ..options };
        ExpertStore::new(Arc::new(files), self.tables.clone(), &options).expect("a store")
    }

    #[track_caller]
    fn check(&self, layer: usize, expert: u32, weights: &ExpertWeights) {
        let location = self.tables[layer].get(expert as usize);
        let matrices = [&weights.gate, &weights.up, &weights.down];
        for (matrix, location) in matrices.into_iter().zip(location.matrices()) {
            let parts = [matrix.data(), matrix.scales(), matrix.biases()];
            for (part, extent) in parts.into_iter().zip(location.extents()) {
                let begin = extent.offset as usize;
                let expected = &self.bytes[begin..begin + extent.len as usize];
                assert!(part == expected, "expert {expert} of layer {layer} has wrong bytes");
            }
        }
    }

    fn cut(&self, len: u64) {
        let file = OpenOptions::new().write(true).open(&self.path).expect("it can be opened");
        file.set_len(len).expect("it can be cut");
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Experts that a single row uses.
fn once(experts: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    experts.iter().map(|&expert| (expert, 1))
}

fn next_ready(store: &mut ExpertStore) -> Result<Vec<LoadedExpert>, StoreError> {
    let mut ready = Vec::new();
    store.next_ready(&mut ready)?;
    Ok(ready)
}

/// Delivers a whole request and checks every expert.
#[track_caller]
fn deliver(model: &Model, store: &mut ExpertStore, layer: usize, experts: &[u32]) {
    store.request(layer, once(experts)).expect("a request");
    let mut delivered = BTreeSet::new();
    loop {
        let ready = next_ready(store).expect("all can be read");
        if ready.is_empty() {
            break;
        }
        for LoadedExpert { index, weights } in ready {
            model.check(layer, index, &weights);
            assert!(delivered.insert(index), "expert {index} came twice");
        }
    }
    assert_eq!(delivered, experts.iter().copied().collect(), "each expert came");
}

#[test]
fn every_expert_arrives_whole_in_any_number_of_slots() {
    let model = Model::new();
    let all: Vec<u32> = (0..EXPERTS as u32).collect();
    for mode in [IoMode::Direct, IoMode::Buffered] {
        for n_slots in [2, 3, 5, 100] {
            for (reader, io_threads) in READERS {
                let options = StoreOptions { reader, io_threads, ..StoreOptions::default() };
                let mut store = model.store(n_slots, options, mode);
                assert_eq!(store.n_slots() as u64, n_slots.min((LAYERS * EXPERTS) as u64));
                for _ in 0..2 {
                    for layer in 0..LAYERS {
                        deliver(&model, &mut store, layer, &all);
                    }
                }
            }
        }
    }
}

#[test]
fn hits_and_misses_are_counted() {
    let model = Model::new();
    let options = StoreOptions { policy: PolicyKind::Lru, ..StoreOptions::default() };
    let mut store = model.store(4, options, IoMode::Direct);
    deliver(&model, &mut store, 0, &[0, 1, 2]);
    assert_eq!((store.stats().hits, store.stats().misses), (0, 3));
    deliver(&model, &mut store, 0, &[2, 0]);
    assert_eq!((store.stats().hits, store.stats().misses), (2, 3));
    // 1 is the least recently used of four, and leaves for the fifth.
    deliver(&model, &mut store, 1, &[0]);
    deliver(&model, &mut store, 1, &[1]);
    deliver(&model, &mut store, 0, &[2, 0]);
    assert_eq!((store.stats().hits, store.stats().misses), (4, 5));
    deliver(&model, &mut store, 0, &[1]);
    assert_eq!((store.stats().hits, store.stats().misses), (4, 6));
    let read = store.stats().bytes_read;
    assert!(read > 0);
    deliver(&model, &mut store, 0, &[1]);
    assert_eq!(store.stats().bytes_read, read, "a hit reads nothing");
}

#[test]
fn when_all_fit_nothing_leaves() {
    let model = Model::new();
    for policy in PolicyKind::ALL {
        let options = StoreOptions { policy, ..StoreOptions::default() };
        let mut store = model.store(1000, options, IoMode::Direct);
        for round in 0..3 {
            for layer in 0..LAYERS {
                deliver(&model, &mut store, layer, &[7, 0, 3, 1]);
            }
            assert_eq!(store.stats().hits, round * 12);
        }
    }
}

#[test]
fn what_is_held_is_never_overwritten() {
    let model = Model::new();
    let mut store = model.store(3, StoreOptions::default(), IoMode::Direct);
    store.request(0, once(&[5])).expect("a request");
    let held = next_ready(&mut store).expect("it can be read");
    for layer in 0..LAYERS {
        deliver(&model, &mut store, layer, &[0, 1, 2, 3, 4, 6, 7]);
    }
    model.check(0, held[0].index, &held[0].weights);
}

#[test]
fn a_caller_that_holds_all_slots_is_told() {
    let model = Model::new();
    let mut store = model.store(2, StoreOptions::default(), IoMode::Direct);
    store.request(0, once(&[0, 1, 2])).expect("a request");
    let mut held = Vec::new();
    while held.len() < 2 {
        held.extend(next_ready(&mut store).expect("it can be read"));
    }
    assert!(matches!(next_ready(&mut store), Err(StoreError::AllHeld { n_slots: 2 })));
    drop(held);
    deliver(&model, &mut store, 0, &[2, 3]);
}

#[test]
fn a_file_that_shrinks_fails_the_request_and_not_the_store() {
    for (reader, io_threads) in READERS {
        check_shrinking(StoreOptions { reader, io_threads, ..StoreOptions::default() });
    }
}

#[track_caller]
fn check_shrinking(options: StoreOptions) {
    let model = Model::new();
    let mut store = model.store(4, options, IoMode::Direct);
    deliver(&model, &mut store, 0, &[0, 1]);
    let middle = model.tables[1].get(4).gate.data.offset;
    model.cut(middle);
    store.request(1, once(&[0, 7, 1])).expect("a request");
    let error = loop {
        match next_ready(&mut store) {
            Ok(ready) => {
                assert!(!ready.is_empty(), "expert 7 is not in the file any more");
                for LoadedExpert { index, weights } in ready {
                    model.check(1, index, &weights);
                }
            }
            Err(error) => break error,
        }
    };
    let message = error.to_string();
    let file = model.path.file_name().and_then(|name| name.to_str()).expect("a name");
    for words in ["expert 7", "layer 1", file] {
        assert!(message.contains(words), "{words} is in: {message}");
    }
    deliver(&model, &mut store, 0, &[2, 0, 1]);
    deliver(&model, &mut store, 1, &[0, 1, 2]);
}

#[test]
fn the_reader_is_chosen_by_a_short_measurement_where_there_is_a_choice() {
    let model = Model::new();
    let store = |reader, mode| {
        let options = StoreOptions { reader, ..StoreOptions::default() };
        model.store(8, options, mode)
    };
    let threads = store(ReaderKind::Threads, IoMode::Direct);
    assert_eq!((threads.reader().name, threads.reader().probe), ("threads", None));
    // Reads through the page cache would block whoever serves the ring.
    let buffered = store(ReaderKind::Uring, IoMode::Buffered);
    assert_eq!(buffered.reader().name, "threads");
    assert!(buffered.reader().refusal.is_some());
    let auto = store(ReaderKind::Auto, IoMode::Direct);
    match (&auto.reader().probe, &auto.reader().refusal) {
        (Some(probe), None) => {
            assert!(probe.bytes > 0 && probe.threads > 0.0 && probe.uring > 0.0);
            assert_eq!(auto.stats().bytes_read, probe.bytes, "its bytes are counted");
        }
        (None, Some(_)) => assert_eq!(auto.reader().name, "threads"),
        both => panic!("measured or refused: {both:?}"),
    }
}

#[test]
fn a_store_can_go_while_reads_are_under_way() {
    let model = Model::new();
    for (reader, io_threads) in READERS {
        let options = StoreOptions { reader, io_threads, ..StoreOptions::default() };
        let mut store = model.store(20, options, IoMode::Direct);
        store.request(0, once(&[0, 1, 2, 3, 4, 5, 6, 7])).expect("a request");
    }
}

#[test]
fn an_abandoned_request_leaves_no_trace() {
    let model = Model::new();
    let mut store = model.store(3, StoreOptions::default(), IoMode::Direct);
    for round in 0..20 {
        store.request(round % LAYERS, once(&[0, 1, 2, 3, 4, 5])).expect("a request");
        deliver(&model, &mut store, (round + 1) % LAYERS, &[5, 1, 0]);
        deliver(&model, &mut store, round % LAYERS, &[0, 7]);
    }
}

#[test]
fn scales_that_are_not_finite_are_refused() {
    let model = Model::new();
    let scales = model.tables[1].get(2).down.scales.expect("layer 1 is quantised");
    let mut bytes = model.bytes.clone();
    let at = scales[1].offset as usize + 10;
    bytes[at..at + 2].copy_from_slice(&0x7f80_u16.to_le_bytes());
    fs::write(&model.path, bytes).expect("the file can be written");
    let mut store = model.store(4, StoreOptions::default(), IoMode::Direct);
    store.request(1, once(&[2])).expect("a request");
    let message = next_ready(&mut store).expect_err("a scale is infinite").to_string();
    assert!(message.contains("expert 2 of layer 1"), "{message}");
}

#[test]
fn too_little_memory_is_refused() {
    let model = Model::new();
    let files = DataFiles::open(std::slice::from_ref(&model.path), IoMode::Direct)
        .expect("it can be opened");
    let options = StoreOptions { cache_bytes: 100, ..StoreOptions::default() };
    let result = ExpertStore::new(Arc::new(files), model.tables.clone(), &options);
    assert!(matches!(result.err(), Some(StoreError::TooSmall { cache_bytes: 100, .. })));
}

#[test]
fn reads_end_where_files_end() {
    let model = Model::new();
    let len = model.bytes.len() as u64;
    for mode in [IoMode::Direct, IoMode::Buffered] {
        let files =
            DataFiles::open(std::slice::from_ref(&model.path), mode).expect("it can be opened");
        let read = |offset, len| {
            let plan = ReadPlan::new([Extent { file: FileId(0), offset, len }]);
            let mut arena = compute::memory::Arena::new(plan.bytes()).expect("memory");
            let mut block = arena.take(plan.bytes()).expect("it was sized for it");
            files.read(&plan, block.bytes_mut())?;
            let begin = plan.offset(0);
            Ok::<_, IoError>(block.bytes()[begin..begin + len as usize].to_vec())
        };
        assert_eq!(read(len - 5, 5).expect("the last bytes"), &model.bytes[len as usize - 5..]);
        let whole = read(3, len - 3).expect("nearly all bytes");
        assert!(whole == model.bytes[3..]);
        assert!(matches!(read(len - 5, 6), Err(IoError::Truncated { .. })));
        assert!(matches!(read(len + 50_000, 6), Err(IoError::Truncated { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_sequence_of_requests_delivers_the_right_bytes(
        n_slots in 2_u64..12,
        (reader, io_threads) in prop::sample::select(READERS.as_slice()),
        policy in prop::sample::select(PolicyKind::ALL.as_slice()),
        look_ahead in prop::sample::select(&[LookAhead::Auto, LookAhead::On, LookAhead::Off][..]),
        is_warm in prop::bool::ANY,
        requests in prop::collection::vec(
            (0..LAYERS, prop::collection::btree_set(0..EXPERTS as u32, 1..=EXPERTS), 0..6),
            1..12,
        ),
    ) {
        let model = Model::new();
        let options = StoreOptions { reader, io_threads, policy, look_ahead, ..StoreOptions::default() };
        let mut store = model.store(n_slots, options, IoMode::Direct);
        if is_warm {
            prop_assert!(store.recall(&heat_map::trained(&model)));
        }
        for (layer, experts, kind) in requests {
            let experts: Vec<u32> = experts.into_iter().collect();
            match kind {
                0 => store.request(layer, once(&experts)).expect("a request"),
                1 if store.wants_prediction(layer, 1) => {
                    store.look_ahead(layer, &look_ahead::routing(&experts), &|_| false);
                }
                4 => {
                    // A prediction for the next layer in the midst of a request, some of it held elsewhere.
                    store.request(layer, once(&experts)).expect("a request");
                    let next = (layer + 1) % LAYERS;
                    store.look_ahead(next, &look_ahead::routing(&experts), &|e| e % 3 == 0);
                    while !next_ready(&mut store).expect("experts").is_empty() {}
                }
                5 => experts.iter().for_each(|&expert| store.used_on_device(layer, expert, 1)),
                _ => deliver(&model, &mut store, layer, &experts),
            }
        }
    }
}
