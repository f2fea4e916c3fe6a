//! How fast bytes come to the device, alone and beside products.

use std::sync::Arc;
use std::time::Instant;

use compute::memory::{Arena, BLOCK_ALIGNMENT};

use super::{DISPATCHES, ProductCase, Stream};
use crate::device::{Device, GpuError, Moment, Part};
use crate::product::{Products, Tuning};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UploadRates {
    /// Bytes that were uploaded.
    pub bytes: u64,
    /// Seconds of the uploads alone.
    pub alone: f64,
    /// Seconds of products that take about as long, alone.
    pub products: f64,
    /// Seconds of both side by side until all is done.
    pub together: f64,
    /// Seconds until the uploads were done.
    pub uploads_together: f64,
    /// Whether what arrived is what was sent.
    pub is_right: bool,
}

/// Uploads `n` blocks of so many bytes to slots of their own, alone and beside products: from where they lie,
/// or through memory that they are taken into.
pub fn upload_rates(
    device: &Device,
    (block, n): (usize, usize),
    from_place: bool,
    case: ProductCase,
) -> Result<UploadRates, GpuError> {
    let slots = device.buffer((block * n) as u64);
    let mut stream = Stream::new(device, case);
    let mut products = Products::new(Tuning::of(device));
    // Words that tell where they belong.
    let word = |index: usize| (index as u32).wrapping_mul(0x9e37_79b9);
    let failed = |error| GpuError::Failed(format!("memory for a measurement: {error}"));
    let mut arena = Arena::new(n * block.next_multiple_of(BLOCK_ALIGNMENT)).map_err(failed)?;
    let mut fill = |slot: usize| {
        let mut memory = arena.take(block)?;
        let words = memory.bytes_mut().as_chunks_mut().0.iter_mut();
        words.zip(slot * block / 4..).for_each(|(bytes, index)| *bytes = word(index).to_le_bytes());
        Some(Arc::new(memory))
    };
    let blocks: Vec<_> = (0..n).filter_map(&mut fill).collect();
    let upload = |after: Moment| {
        let uploads = blocks.iter().zip(0_u64..).map(|(memory, slot)| {
            let (at, bytes) = (slot * block as u64, &memory.bytes()[..block]);
            if !from_place {
                return device.upload(&slots, at, bytes, after);
            }
            device.upload_parts(&slots, &[Part { at, bytes, block: Some(memory) }], after)
        });
        uploads.last().unwrap_or_default()
    };
    let arrive = |last| {
        device.submit();
        while !device.has_arrived(last) {
            std::thread::yield_now();
        }
        if !device.uploads_beside() {
            device.wait();
        }
    };
    device.wait();
    let mut measure = |n_rounds: usize, with_uploads: bool| {
        device.wait();
        let begin = Instant::now();
        let after = device.moment();
        for _ in 0..n_rounds {
            (0..DISPATCHES).for_each(|index| stream.record(device, &mut products, index));
        }
        device.submit();
        if with_uploads {
            arrive(upload(after));
        }
        let uploaded = begin.elapsed().as_secs_f64();
        device.wait();
        (uploaded, begin.elapsed().as_secs_f64())
    };
    // The first makes the memory there.
    measure(1, true);
    let alone = measure(0, true).1;
    let one_round = measure(1, false).1;
    let rounds = ((alone / one_round).ceil() as usize).clamp(1, 1 << 20);
    let products = measure(rounds, false).1;
    let (uploads_together, together) = measure(rounds, true);
    device.after_upload(upload(device.moment()));
    let mut is_right = true;
    let mut read = Vec::new();
    for (memory, slot) in blocks.iter().zip(0_u64..) {
        device.read(&slots, slot * block as u64, block as u64, &mut read);
        is_right &= read == memory.bytes()[..block];
    }
    device.check()?;
    let bytes = (block * n) as u64;
    Ok(UploadRates { bytes, alone, products, together, uploads_together, is_right })
}
