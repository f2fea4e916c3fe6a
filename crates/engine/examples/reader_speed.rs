//! Measures how fast experts of a checkpoint are read: `cargo run --release --example reader_speed --
//! MODEL [SECONDS]`. Random experts of random layers, so many a request, through both readers in
//! turns; prints bytes and processor time a second. Numbers are kept in `docs/experiments.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::Inventory;
use experts::{DataFiles, ExpertStore, IoMode, PolicyKind, ReaderKind, StoreOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: reader_speed MODEL [SECONDS]")?;
    let seconds: f64 = args.next().map_or(Ok(2.0), |text| text.parse())?;
    let inventory = Inventory::read(Path::new(&model))?;
    let files = inventory.checkpoint.files().iter();
    let paths: Vec<PathBuf> = files.map(|file| file.path.clone()).collect();
    let slot_bytes = ExpertStore::slot_bytes(&inventory.experts);
    println!("experts of {slot_bytes} bytes; MB/s and share of a core");
    println!("{:>8}{:>22}{:>22}", "experts", "threads", "io_uring");
    for depth in [1, 2, 4, 8, 32] {
        let mut cells = [Vec::new(), Vec::new()];
        for turn in 0..6 {
            let kind = [ReaderKind::Threads, ReaderKind::Uring][turn % 2];
            let options = StoreOptions {
                cache_bytes: 2 * depth as u64 * slot_bytes,
                reader: kind,
                policy: PolicyKind::Lru,
                ..StoreOptions::default()
            };
            let files = Arc::new(DataFiles::open(&paths, IoMode::Direct)?);
            let mut store = ExpertStore::new(files, inventory.experts.clone(), &options)?;
            cells[turn % 2].push(measure(&mut store, &inventory, depth, seconds / 3.0)?);
        }
        let cell = |values: &mut Vec<(f64, f64)>| {
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (rate, core) = values[values.len() / 2];
            format!("{rate:.0} ({:.0} %)", 100.0 * core)
        };
        let [threads, uring] = &mut cells;
        println!("{depth:>8}{:>22}{:>22}", cell(threads), cell(uring));
    }
    Ok(())
}

fn measure(
    store: &mut ExpertStore,
    inventory: &Inventory,
    depth: usize,
    seconds: f64,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let mut random = std::process::id() as u64;
    let mut ready = Vec::new();
    let mut begin = (Instant::now(), 0, 0.0);
    // The first requests touch the slots' pages.
    for round in 0.. {
        if round == 4 {
            begin = (Instant::now(), store.stats().bytes_read, process_seconds());
        }
        if round > 4 && begin.0.elapsed().as_secs_f64() > seconds {
            break;
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let layer = (random >> 33) as usize % inventory.experts.len();
        let n_experts = inventory.experts[layer].len() as u32;
        let first = (random >> 45) as u32;
        // An odd step visits distinct experts.
        let experts = (0..depth as u32).map(|index| (first.wrapping_add(index * 37)) % n_experts);
        store.request(layer, experts.map(|expert| (expert, 1)))?;
        loop {
            store.next_ready(&mut ready)?;
            if ready.is_empty() {
                break;
            }
        }
    }
    let wall = begin.0.elapsed().as_secs_f64();
    let bytes = (store.stats().bytes_read - begin.1) as f64;
    Ok((bytes / wall / 1e6, (process_seconds() - begin.2) / wall))
}

/// Processor time of this process, where the system tells.
fn process_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
