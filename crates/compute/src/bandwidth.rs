//! How fast this machine reads memory: the yardstick of decoding, which reads every weight once a
//! token.

use std::hint::black_box;
use std::io;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::memory::{Arena, BLOCK_ALIGNMENT, Block};
use crate::prefetch::prefetch;

/// Bytes between two looks at the clock.
const PIECE_BYTES: usize = 4 << 20;
/// Bytes that are summed at once: eight registers of 16 bytes, enough to keep loads in flight.
const LANES: usize = 16;

/// Bytes a second that `n_threads` threads read together from `n_bytes` of memory, which should be more
/// than all caches hold, in at least `duration`.
///
/// Each thread has a part of its own and takes its times itself: on a busy machine a thread that only
/// waits for others wakes late, and would measure its own sleep. The result is all bytes over the time
/// from the first thread's beginning to the last one's end.
pub fn memory_bandwidth(n_threads: usize, n_bytes: usize, duration: Duration) -> io::Result<f64> {
    let n_threads = n_threads.max(1);
    let part = (n_bytes / n_threads).max(1).next_multiple_of(BLOCK_ALIGNMENT);
    let mut arena = Arena::new(part * n_threads)?;
    arena.advise_huge_pages();
    let blocks: Vec<Block> = (0..n_threads).filter_map(|_| arena.take(part)).collect();
    let barrier = Barrier::new(blocks.len());
    let work = |mut block: Block| {
        // The thread that reads also touches first, so that its pages are near.
        block.bytes_mut().fill(1);
        barrier.wait();
        let begin = Instant::now();
        let mut bytes = 0;
        while begin.elapsed() < duration {
            for piece in block.bytes().chunks(PIECE_BYTES) {
                black_box(checksum(piece));
                bytes += piece.len();
                if begin.elapsed() >= duration {
                    break;
                }
            }
        }
        (bytes, begin, Instant::now())
    };
    let results: Vec<(usize, Instant, Instant)> = std::thread::scope(|scope| {
        let threads: Vec<_> = blocks.into_iter().map(|block| scope.spawn(|| work(block))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    });
    let bytes: usize = results.iter().map(|result| result.0).sum();
    let begin = results.iter().map(|result| result.1).min();
    let end = results.iter().map(|result| result.2).max();
    let seconds = match (begin, end) {
        (Some(begin), Some(end)) => (end - begin).as_secs_f64(),
        _ => 0.0,
    };
    Ok(if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 })
}

/// Every byte's influence on one number, at the speed of loads.
fn checksum(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; LANES];
    for chunk in bytes.chunks_exact(8 * LANES) {
        // As kernels do: without it one core read 37 GB/s instead of 41 (Zen 5).
        prefetch(chunk, chunk.len());
        for (sum, word) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *sum ^= u64::from_ne_bytes(word.try_into().expect("chunks of eight bytes"));
        }
    }
    sums.iter().fold(0, |all, sum| all.rotate_left(1) ^ sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_gives_a_speed() {
        for n_threads in [1, 3] {
            let speed = memory_bandwidth(n_threads, 1 << 20, Duration::from_millis(2));
            assert!(speed.expect("a small arena") > 0.0);
        }
    }

    #[test]
    fn every_word_counts() {
        let mut bytes = vec![0; 256];
        let zero = checksum(&bytes);
        for index in [0, 7, 130, 255] {
            bytes[index] = 1;
            assert_ne!(checksum(&bytes), zero, "byte {index}");
            bytes[index] = 0;
        }
    }
}
