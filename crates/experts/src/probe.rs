//! How fast the drive gives random pieces of the size of an expert: the yardstick of streaming.

use std::time::{Duration, Instant};

use checkpoint::{Extent, FileId};
use compute::memory::{Arena, BLOCK_ALIGNMENT, Block};

use crate::files::{DataFiles, IoError};
use crate::plan::ReadPlan;

/// What to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriveProbe {
    /// Bytes of each read, as large as an expert.
    pub read_bytes: u64,
    /// Bytes in flight: as many threads read at once as it takes, within bounds.
    pub in_flight_bytes: u64,
    /// Least time of the measurement.
    pub duration: Duration,
    /// Seed of the places.
    pub seed: u64,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriveSpeed {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Bytes read.
    pub bytes: u64,
    /// Threads that read at once.
    pub threads: usize,
    /// Whether the reads went past the page cache; if not, its speed was measured.
    pub direct: bool,
}

/// Fewest and most threads.
const THREADS: (u64, u64) = (4, 16);

impl DriveProbe {
    /// Reads at random places of files of the given lengths. Threads take their times themselves; the
    /// result is all bytes over the time from the first beginning to the last end.
    pub fn run(&self, files: &DataFiles, lens: &[u64]) -> Result<DriveSpeed, IoError> {
        let total: u64 = lens.iter().sum();
        let longest = lens.iter().copied().max().unwrap_or(0);
        let len = self.read_bytes.min(longest).max(1);
        let threads = (self.in_flight_bytes / len).clamp(THREADS.0, THREADS.1) as usize;
        // A read may begin and end inside a block.
        let room = (len as usize).next_multiple_of(BLOCK_ALIGNMENT) + BLOCK_ALIGNMENT;
        let arena = Arena::new(room * threads);
        let mut arena = arena.map_err(|source| {
            let path = files.path(FileId(0)).to_owned();
            IoError::System { path, offset: 0, source }
        })?;
        // As the slots of experts are: a read into small pages is many requests to the drive, and took more
        // than twice as long.
        arena.advise_huge_pages();
        let blocks: Vec<Block> = (0..threads).filter_map(|_| arena.take(room)).collect();
        let work = |thread: u64, mut block: Block| -> Result<(u64, Instant, Instant), IoError> {
            block.bytes_mut().fill(0);
            let begin = Instant::now();
            let mut bytes = 0;
            let mut counter = 0;
            while total > 0 && (counter == 0 || begin.elapsed() < self.duration) {
                let extent = place(random(self.seed ^ (thread << 32) ^ counter) % total, len, lens);
                bytes += files.read(&ReadPlan::new([extent]), block.bytes_mut())?;
                counter += 1;
            }
            Ok((bytes, begin, Instant::now()))
        };
        let results: Vec<(u64, Instant, Instant)> = std::thread::scope(|scope| {
            let work = &work;
            let spawn = |(thread, block)| scope.spawn(move || work(thread, block));
            let threads: Vec<_> = (0..).zip(blocks).map(spawn).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect::<Result<_, _>>()
        })?;
        let bytes = results.iter().map(|result| result.0).sum();
        let begin = results.iter().map(|result| result.1).min();
        let end = results.iter().map(|result| result.2).max();
        let seconds = begin.zip(end).map_or(0.0, |(begin, end)| (end - begin).as_secs_f64());
        let bytes_per_second = if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
        Ok(DriveSpeed { bytes_per_second, bytes, threads, direct: files.is_direct() })
    }
}

/// A read of `len` bytes, or of a whole shorter file, near a byte of all files end to end.
fn place(mut at: u64, len: u64, lens: &[u64]) -> Extent {
    let mut file = 0;
    while at >= lens[file] {
        at -= lens[file];
        file += 1;
    }
    let len = len.min(lens[file]);
    let last = (lens[file] - len) / BLOCK_ALIGNMENT as u64;
    let offset = (at / BLOCK_ALIGNMENT as u64).min(last) * BLOCK_ALIGNMENT as u64;
    Extent { file: FileId(file as u32), offset, len }
}

/// The SplitMix64 finaliser of a counter.
fn random(counter: u64) -> u64 {
    let mut x = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_inside_their_files() {
        let lens = [10_000, 100, 0, 1_000_000];
        for at in (0..1_010_100).step_by(997) {
            let Extent { file, offset, len } = place(at, 20_000, &lens);
            assert!(offset % BLOCK_ALIGNMENT as u64 == 0 && len > 0);
            assert!(offset + len <= lens[file.0 as usize], "{at}: {offset} + {len} in {file:?}");
        }
    }
}
