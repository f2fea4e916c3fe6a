//! Requests and deliveries take no memory after warm-up. A test of its own, since it counts what the
//! whole process allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::{ExpertLocation, ExpertTable, Extent, FileId, FloatType, Format, MatrixLocation};
use experts::{DataFiles, ExpertStore, IoMode, ReaderKind, StoreOptions};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const EXPERTS: u32 = 64;

fn tables() -> Vec<ExpertTable> {
    let format = Format::Float(FloatType::F32);
    let mut offset = 0;
    let mut matrix = || {
        let len = (16 * format.row_bytes(64)) as u64;
        offset += len;
        let data = Extent { file: FileId(0), offset: offset - len, len };
        MatrixLocation { format, rows: 16, cols: 64, data, scales: None }
    };
    let mut expert = || ExpertLocation { gate: matrix(), up: matrix(), down: matrix() };
    (0..2).map(|_| ExpertTable::separate((0..EXPERTS).map(|_| expert()).collect())).collect()
}

fn main() {
    for reader in [ReaderKind::Threads, ReaderKind::Uring] {
        check(reader);
    }
}

fn check(reader: ReaderKind) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("experts-allocations-{}", std::process::id()));
    std::fs::write(&path, vec![0; 2 << 20]).expect("the file can be written");
    let files = DataFiles::open(std::slice::from_ref(&path), IoMode::Direct).expect("it opens");
    let tables = tables();
    let cache_bytes = 40 * ExpertStore::slot_bytes(&tables);
    let options = StoreOptions { cache_bytes, reader, ..StoreOptions::default() };
    let mut store = ExpertStore::new(Arc::new(files), tables, &options).expect("a store");
    // The more is late, the more comes at once.
    let mut ready = Vec::with_capacity(EXPERTS as usize);
    let mut pass = |round: u32| {
        for layer in 0..2 {
            let chosen =
                (0..EXPERTS).filter(|e| round == 0 || *e < 4 || (e * 7 + round).is_multiple_of(8));
            store.request(layer, chosen.map(|e| (e, 1))).expect("a request");
            loop {
                store.next_ready(&mut ready).expect("all can be read");
                if ready.is_empty() {
                    break;
                }
            }
        }
    };
    // A busy machine may start the reading threads late, and they take memory then.
    let mut rounds = 0..;
    let is_free = (0..20).any(|_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        rounds.by_ref().take(100).for_each(&mut pass);
        ALLOCATIONS.load(Ordering::Relaxed) == before
    });
    assert!(is_free, "a hundred passes take memory every time");
    assert!(store.stats().misses > 500 && store.stats().hits > 500);
    std::fs::remove_file(&path).expect("it was written");
}
