//! Which reader suits the machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::ExpertTable;
use compute::memory::{BLOCK_ALIGNMENT, Block};

use super::{Job, Reader, ThreadReader, Urgency};
use crate::files::DataFiles;

/// How experts are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReaderKind {
    /// Whichever a short measurement finds better on this machine and this file.
    #[default]
    Auto,
    /// A pool of threads that read by positional reads.
    Threads,
    /// Linux's `io_uring`; threads where it cannot be had.
    Uring,
}

/// Which reader was chosen, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct ReaderReport {
    /// A short name: `threads` or `io_uring`.
    pub name: &'static str,
    /// The measurement that chose, if there was one.
    pub probe: Option<ReaderProbe>,
    /// Why the reader that was asked for cannot be had.
    pub refusal: Option<String>,
}

/// What the measurement found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReaderProbe {
    /// Bytes a second through threads.
    pub threads: f64,
    /// Bytes a second through `io_uring`.
    pub uring: f64,
    /// Bytes that were read for it.
    pub bytes: u64,
    /// Time that it took.
    pub time: Duration,
}

/// Time for which each reader is measured, twice.
const PROBE_TIME: Duration = Duration::from_millis(8);
/// Bytes that the measurement keeps in flight, at least two experts.
const PROBE_BYTES: usize = 12 << 20;
/// How much faster the ring must be than threads to be preferred. The kernel prepares a read's memory in
/// whoever submits it: with a ring that is the thread that computes. On two cores (35B-A3B under 8 GiB)
/// decoding through threads was 1.4 to 1.7 times as fast, though the ring read as fast by itself.
const URING_LEADS: f64 = 1.5;

/// Makes the reader that is asked for. A measurement borrows the blocks of slots that nobody uses.
pub(crate) fn make_reader<'a>(
    kind: ReaderKind,
    files: &Arc<DataFiles>,
    n_slots: usize,
    n_threads: usize,
    layers: &[ExpertTable],
    blocks: impl Iterator<Item = (u32, &'a mut Option<Arc<Block>>)>,
) -> std::io::Result<(Box<dyn Reader>, ReaderReport)> {
    let threads = || ThreadReader::new(Arc::clone(files), n_slots, n_threads);
    let report = |name| ReaderReport { name, probe: None, refusal: None };
    if kind == ReaderKind::Threads {
        return Ok((Box::new(threads()?), report("threads")));
    }
    let mut uring = match uring(files, n_slots) {
        Ok(uring) => uring,
        Err(error) => {
            let refusal = Some(error.to_string());
            return Ok((Box::new(threads()?), ReaderReport { refusal, ..report("threads") }));
        }
    };
    if kind == ReaderKind::Uring {
        return Ok((uring, report("io_uring")));
    }
    let mut threads: Box<dyn Reader> = Box::new(threads()?);
    let probe = probe(&mut [threads.as_mut(), uring.as_mut()], layers, blocks);
    let is_better = probe.is_some_and(|probe| probe.uring >= URING_LEADS * probe.threads);
    let (reader, name) = if is_better { (uring, "io_uring") } else { (threads, "threads") };
    Ok((reader, ReaderReport { probe, ..report(name) }))
}

#[cfg(target_os = "linux")]
fn uring(files: &Arc<DataFiles>, n_slots: usize) -> std::io::Result<Box<dyn Reader>> {
    if !files.is_direct() {
        return Err(std::io::Error::other("reads through the page cache would block its caller"));
    }
    Ok(Box::new(super::uring::UringReader::new(Arc::clone(files), n_slots)?))
}

#[cfg(not(target_os = "linux"))]
fn uring(_: &Arc<DataFiles>, _: usize) -> std::io::Result<Box<dyn Reader>> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Measures both readers in turns on experts from all over the files; `None` when a read fails.
fn probe<'a>(
    readers: &mut [&mut dyn Reader; 2],
    layers: &[ExpertTable],
    blocks: impl Iterator<Item = (u32, &'a mut Option<Arc<Block>>)>,
) -> Option<ReaderProbe> {
    let begin = Instant::now();
    let mut borrowed: Vec<(u32, &mut Option<Arc<Block>>)> = Vec::new();
    let mut bytes = 0;
    for (slot, block) in blocks {
        // The first touch of a page is not the drive's time.
        let place = Arc::get_mut(block.as_mut()?)?.bytes_mut();
        place.iter_mut().step_by(BLOCK_ALIGNMENT).for_each(|byte| *byte = 0);
        bytes += place.len();
        borrowed.push((slot, block));
        if bytes >= PROBE_BYTES && borrowed.len() >= 2 {
            break;
        }
    }
    let mut random = 1_u64;
    let layers: Vec<&ExpertTable> = layers.iter().filter(|table| !table.is_empty()).collect();
    let mut job = |slot, block| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let table = layers[(random >> 33) as usize % layers.len()];
        let location = table.get((random >> 40) as usize % table.len());
        Job { slot, location, block, urgency: Urgency::Demand }
    };
    if layers.is_empty() {
        return None;
    }
    let mut totals = [(0, Duration::ZERO); 2];
    let mut has_failed = false;
    for turn in 0..4 {
        let (reader, total) = (&mut readers[turn % 2], &mut totals[turn % 2]);
        let begin = Instant::now();
        let mut n_flying = 0;
        for (slot, place) in &mut borrowed {
            reader.submit(job(*slot, place.take()?));
            n_flying += 1;
        }
        reader.begin();
        while n_flying > 0 {
            let completion = reader.wait()?;
            n_flying -= 1;
            match completion.result {
                Ok(bytes) => total.0 += bytes,
                Err(_) => has_failed = true,
            }
            let (slot, block) = (completion.slot, completion.block);
            if begin.elapsed() < PROBE_TIME && !has_failed {
                reader.submit(job(slot, block));
                reader.begin();
                n_flying += 1;
            } else if let Some((_, place)) = borrowed.iter_mut().find(|(lent, _)| *lent == slot) {
                **place = Some(block);
            }
        }
        total.1 += begin.elapsed();
    }
    let rate = |(bytes, time): (u64, Duration)| bytes as f64 / time.as_secs_f64().max(1e-9);
    let bytes = totals[0].0 + totals[1].0;
    let [threads, uring] = totals.map(rate);
    (!has_failed).then(|| ReaderProbe { threads, uring, bytes, time: begin.elapsed() })
}
