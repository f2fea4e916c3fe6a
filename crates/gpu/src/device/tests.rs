//! Recording, from the outside: what is read is what was recorded, in its order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compute::memory::Arena;
use trace::{Kind, Recorder};

use crate::device::{Buffer, Device, DeviceOptions, GpuError, Kernel, Part, adapters};
use crate::kernel::KernelSource;
use crate::testing::{Random, devices};

/// `y = 3 x + n`, element by element.
const STEP: &str = "
struct Params { n: u32 }
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
var<immediate> params: Params;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if (at.x < arrayLength(&y)) { y[at.x] = 3u * x[at.x] + params.n; }
}";

/// Elements of a buffer: more than a workgroup, and no whole number of them.
const LEN: usize = 1000;

fn source<'a>(name: &'a str, parts: &'a [&'a str]) -> KernelSource<'a> {
    KernelSource { name, parts, constants: &[], flags: &[], writes: &[false, true], teams: None }
}

fn step(device: &Device, kernel: &Kernel, x: &Buffer, y: &Buffer, n: u32) {
    device.dispatch(kernel, &[x, y], &[n], [(LEN as u32).div_ceil(64), 1, 1]);
}

fn words(device: &Device, buffer: &Buffer) -> Vec<u32> {
    let mut bytes = Vec::new();
    device.read(buffer, 0, buffer.bytes(), &mut bytes);
    device.check().expect("the device did not fail");
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn results_are_those_of_the_order_of_recording() {
    for device in devices() {
        let kernel = device.kernel(&source("step", &[STEP]));
        let mut random = Random::new(11);
        let mut below = |n: usize| (random.numbers(1)[0].abs() * 1e6) as usize % n;
        let mut expected = vec![vec![0_u32; LEN]; 5];
        let buffers: Vec<_> = expected.iter().map(|_| device.buffer(4 * LEN as u64)).collect();
        // More dispatches than are handed over at once, with copies and writes between them.
        for round in 0..300 {
            let (x, y) = (below(5), below(5));
            match below(8) {
                _ if x == y => {}
                0 => {
                    device.copy((&buffers[x], 0), (&buffers[y], 0), 4 * LEN as u64);
                    expected[y] = expected[x].clone();
                }
                1 => {
                    let at = below(LEN - 3);
                    let values = [round, 7, 9];
                    device.write(&buffers[y], 4 * at as u64, &bytes_of(&values));
                    expected[y][at..at + 3].copy_from_slice(&values);
                }
                _ => {
                    step(&device, &kernel, &buffers[x], &buffers[y], round);
                    let after = |x: &u32| x.wrapping_mul(3).wrapping_add(round);
                    expected[y] = expected[x].iter().map(after).collect();
                }
            }
        }
        for (buffer, expected) in buffers.iter().zip(&expected) {
            assert_eq!(words(&device, buffer)[..LEN], *expected);
        }
    }
}

#[test]
fn writes_of_any_size_arrive() {
    for device in devices() {
        let buffer = device.buffer(3 << 20);
        assert!(words(&device, &buffer).iter().all(|word| *word == 0), "memory begins as zeros");
        let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
        // Larger than all staging memory of a test, then parts of it, the last padded.
        device.write(&buffer, 0, &bytes);
        device.write(&buffer, 4, &bytes[1..200_000]);
        device.write(&buffer, 300_000, &[1, 2, 3, 4, 5]);
        let mut expected = bytes.clone();
        expected[4..200_003].copy_from_slice(&bytes[1..200_000]);
        expected[200_003] = 0;
        expected[300_000..300_008].copy_from_slice(&[1, 2, 3, 4, 5, 0, 0, 0]);
        let mut read = Vec::new();
        device.read(&buffer, 0, 3 << 20, &mut read);
        assert!(read == expected, "the whole buffer, in pieces");
        device.read(&buffer, 299_996, 12, &mut read);
        assert_eq!(read, expected[299_996..300_008], "a part of it");
        device.finish_writes();
    }
}

#[test]
fn memory_is_kept_until_the_device_is_done_with_it() {
    for device in devices() {
        let kernel = device.kernel(&source("step", &[STEP]));
        let mut last = device.buffer_with(&bytes_of(&[1; LEN]));
        // Each buffer is let go of while work on it is not even handed over.
        for _ in 0..100 {
            let next = device.buffer(4 * LEN as u64);
            step(&device, &kernel, &last, &next, 0);
            last = next;
        }
        drop(kernel);
        let expected = (0..100).fold(1_u32, |x, _| x.wrapping_mul(3));
        assert_eq!(words(&device, &last)[..LEN], [expected; LEN]);
    }
}

#[test]
fn meetings_are_counted_and_may_sleep() {
    for device in devices() {
        let kernel = device.kernel(&source("step", &[STEP]));
        let [x, y] = [1, 2].map(|word| device.buffer_with(&bytes_of(&[word; LEN])));
        for spin in [Duration::ZERO, Duration::from_secs(10)] {
            device.set_spin(spin);
            let before = device.counts();
            step(&device, &kernel, &x, &y, 5);
            assert_eq!(words(&device, &y)[..LEN], [8; LEN]);
            let after = device.counts();
            let told = [
                after.dispatches - before.dispatches,
                after.submissions - before.submissions,
                after.waits - before.waits,
            ];
            assert_eq!(told, [1, 1, 1]);
        }
    }
}

#[test]
fn failures_are_told_and_hang_nothing() {
    for device in devices() {
        let kernel = device.kernel(&source("step", &[STEP]));
        let [x, y] = [1, 2].map(|word| device.buffer_with(&bytes_of(&[word; LEN])));
        step(&device, &kernel, &x, &y, 5);
        device.fail("it burnt");
        device.fail("and then some");
        step(&device, &kernel, &x, &y, 5);
        device.write(&x, 0, &[1, 2, 3, 4]);
        let mut bytes = vec![1];
        device.read(&y, 0, 16, &mut bytes);
        assert_eq!(bytes, [0; 16], "no results");
        device.wait();
        let error = device.check().expect_err("it failed");
        assert_eq!(error.to_string(), "the GPU failed: it burnt");
    }
}

#[test]
fn what_cannot_be_had_is_explained() {
    for device in devices().into_iter().take(1) {
        let _huge = device.buffer(1 << 50);
        let error = device.check().expect_err("there is no such memory").to_string();
        assert!(error.contains(&(1_u64 << 50).to_string()), "{error}");
    }
    for device in devices().into_iter().take(1) {
        let kernel = device.kernel(&source("nonsense", &["fn main() { let x = ; }"]));
        let [x, y] = [device.buffer(16), device.buffer(16)];
        device.dispatch(&kernel, &[&x, &y], &[], [1; 3]);
        let error = device.check().expect_err("it is no kernel").to_string();
        assert!(error.contains("kernel nonsense"), "{error}");
    }
}

#[test]
fn uploads_arrive_beside_work_and_after_what_they_overwrite() {
    for device in devices() {
        let kernel = device.kernel(&source("step", &[STEP]));
        let slot_bytes = 4 * LEN as u64;
        let buffer = device.buffer_with(&bytes_of(&[5; LEN]));
        let mut expected = vec![5_u32; LEN];
        for round in 0..40 {
            // Reads the slot, in work that may not even be handed over when the upload begins.
            let out = device.buffer(slot_bytes);
            step(&device, &kernel, &buffer, &out, round);
            let read = device.moment();
            let next = vec![1000 + round; LEN];
            let upload = device.upload(&buffer, 0, &bytes_of(&next), read);
            let beside = device.buffer_with(&bytes_of(&[round; LEN]));
            let between = device.buffer(slot_bytes);
            step(&device, &kernel, &beside, &between, 1);
            device.after_upload(upload);
            let after = device.buffer(slot_bytes);
            step(&device, &kernel, &buffer, &after, 0);
            assert_eq!(words(&device, &out)[..LEN], [3 * expected[0] + round; LEN], "before");
            assert_eq!(words(&device, &between)[..LEN], [3 * round + 1; LEN], "beside");
            assert_eq!(words(&device, &after)[..LEN], [3 * next[0]; LEN], "after");
            assert!(device.has_arrived(upload));
            expected = next;
        }
    }
}

#[test]
fn uploads_of_any_size_arrive_and_keep_their_memory() {
    for device in devices() {
        let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 241) as u8).collect();
        let buffer = device.buffer(3 << 20);
        device.upload(&buffer, 0, &bytes, Default::default());
        let last = device.upload(&buffer, 8, &bytes[..11], Default::default());
        // Another upload whose buffer is let go of while it is under way.
        let dropped = device.buffer(3 << 20);
        device.upload(&dropped, 0, &bytes, device.moment());
        drop(dropped);
        device.after_upload(last);
        let mut expected = bytes.clone();
        expected[8..19].copy_from_slice(&bytes[..11]);
        expected[19] = 0;
        let mut read = Vec::new();
        device.read(&buffer, 0, 3 << 20, &mut read);
        assert!(read == expected);
        device.check().expect("the device did not fail");
    }
}

#[test]
fn blocks_are_copied_from_where_they_lie_and_kept_until_then() {
    for device in devices() {
        let mut arena = Arena::new(1 << 20).expect("a small arena");
        let buffer = device.buffer(5 << 18);
        let mut expected = vec![0; 5 << 18];
        // Blocks that begin and end within what is made known to the device at a time, and across it; offsets
        // that are no multiples of anything.
        for (round, len) in [5_000, 200_000, 70_000, 300_000].into_iter().enumerate() {
            let mut block = arena.take(len).expect("there is room");
            let bytes = block.bytes_mut();
            bytes.iter_mut().zip(0_u32..).for_each(|(byte, at)| *byte = (at % 239) as u8);
            let block = Arc::new(block);
            let [head, tail] = [1..1 + 4 * (len / 8 - 2), len / 2 + 3..len].map(|range| {
                let at = (round << 18) as u64 + if range.start == 1 { 0 } else { 160 << 10 };
                let bytes = &block.bytes()[range];
                expected[at as usize..][..bytes.len()].copy_from_slice(bytes);
                Part { at, bytes, block: Some(&block) }
            });
            let last = device.upload_parts(&buffer, &[head, tail], device.moment());
            device.after_upload(last);
            let mut read = Vec::new();
            device.read(&buffer, 0, 5 << 18, &mut read);
            assert!(read == expected, "{len} bytes");
            // The next upload lets go of it.
            device.upload(&buffer, 0, &read[..4], device.moment());
            assert_eq!(Arc::strong_count(&block), 1, "nobody else keeps it");
        }
    }
}

/// Rounds of a kernel on what the last one gave, with meetings in between; gives the result.
fn rounds(device: &Device, kernel: &Kernel, n_rounds: u32) -> Vec<u32> {
    let buffers = [0, 1].map(|_| device.buffer(4 * LEN as u64));
    for round in 0..n_rounds {
        let (x, y) = ((round % 2) as usize, ((round + 1) % 2) as usize);
        step(device, kernel, &buffers[x], &buffers[y], round);
        if round % 50 == 7 {
            device.wait();
        }
    }
    words(device, &buffers[(n_rounds % 2) as usize])
}

/// The best device, telling a recorder of its kernels. `None` where tests are without devices, or where the device
/// has no timestamps: then that is said.
fn traced(recorder: &Recorder) -> Option<Device> {
    if devices().is_empty() {
        return None;
    }
    let adapter = adapters().into_iter().next()?;
    let options = DeviceOptions { checked: true, ..DeviceOptions::default() };
    let device = Device::open_traced(&adapter, options, recorder.clone());
    if !adapter.has_timestamps() {
        assert!(matches!(device, Err(GpuError::NoTimestamps { .. })), "{device:?}");
        return None;
    }
    Some(device.expect("it opens"))
}

#[test]
fn every_dispatch_has_a_span_and_results_are_the_same() {
    let recorder = Recorder::new(10_000);
    let Some(device) = traced(&recorder) else { return };
    let begin = Instant::now();
    let kernel = device.kernel(&source("step", &[STEP]));
    let result = rounds(&device, &kernel, 300);
    let end = Instant::now();
    for plain in devices() {
        let kernel = plain.kernel(&source("step", &[STEP]));
        assert_eq!(rounds(&plain, &kernel, 300), result, "with a clock and without");
    }

    let spans = recorder.spans();
    assert_eq!(spans.len() as u64, device.counts().dispatches, "of each dispatch one");
    assert_eq!(spans.len(), 300);
    let firsts = spans.iter().filter(|span| span.kind == Kind::Kernel { is_first: true }).count();
    assert!((2..=device.counts().submissions as usize).contains(&firsts), "{firsts}");
    let mut last = None;
    for span in &spans {
        assert!(matches!(span.kind, Kind::Kernel { .. }));
        assert_eq!(span.name, "step");
        assert!(span.begin <= span.end && last.is_none_or(|last| last <= span.begin));
        let slack = Duration::from_nanos(span.amount);
        assert!(span.begin + slack >= begin && span.end <= end + slack, "within its uncertainty");
        last = Some(span.end);
    }
    assert!(spans.last().is_some_and(|span| span.end > spans[0].begin), "the clock goes on");
}

#[test]
fn the_record_of_kernels_is_bounded_and_may_pause() {
    let recorder = Recorder::new(10);
    let Some(device) = traced(&recorder) else { return };
    let kernel = device.kernel(&source("step", &[STEP]));
    recorder.set_recording(false);
    rounds(&device, &kernel, 100);
    assert_eq!(recorder.counts(), (0, 0), "nobody wanted to know");
    recorder.set_recording(true);
    rounds(&device, &kernel, 100);
    assert_eq!(recorder.counts(), (10, 90));
}
