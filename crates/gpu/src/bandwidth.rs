//! How fast a device reads its memory: the yardstick of decoding, which reads every weight once a token.

use std::time::{Duration, Instant};

use crate::device::{Device, GpuError};
use crate::kernel::KernelSource;

/// Bytes that a workgroup reads: 256 lanes, 16 vectors of 16 bytes each.
const GROUP_BYTES: u64 = 256 * 16 * 16;
/// Bytes that are read between two looks at the clock, or a dispatch at least: long beside a meeting with
/// the device, which takes some 0.1 ms.
const BATCH_BYTES: u64 = 32 << 30;
/// The same where memory is slow.
const SOFTWARE_BATCH_BYTES: u64 = 256 << 20;

/// Bytes a second that a device reads from a buffer of `bytes`, which should be more than all caches hold,
/// in about `duration`; the best of several measurements, because other work only makes it slower.
pub fn read_bandwidth(device: &Device, bytes: u64, duration: Duration) -> Result<f64, GpuError> {
    let groups = (bytes.min(device.max_binding_bytes()) / GROUP_BYTES).clamp(1, 65_535) as u32;
    let bytes = u64::from(groups) * GROUP_BYTES;
    let kernel = device.kernel(&KernelSource {
        flags: &[],
        name: "bandwidth",
        parts: &[include_str!("kernels/bandwidth.wgsl")],
        constants: &[],
        writes: &[false, true],
        teams: None,
    });
    let (words, out) = (device.buffer(bytes), device.buffer(4));
    let read = |n_dispatches: u64| {
        let begin = Instant::now();
        for _ in 0..n_dispatches {
            device.dispatch(&kernel, &[&words, &out], &[0], [groups, 1, 1]);
        }
        device.wait();
        (n_dispatches * bytes) as f64 / begin.elapsed().as_secs_f64()
    };
    let batch = if device.is_software() { SOFTWARE_BATCH_BYTES } else { BATCH_BYTES };
    let begin = Instant::now();
    // The first makes the memory there.
    read(1);
    let mut n_dispatches = 1;
    let mut best: f64 = 0.0;
    while begin.elapsed() < duration || best == 0.0 {
        best = best.max(read(n_dispatches));
        n_dispatches = (2 * n_dispatches).min((batch / bytes).max(1));
    }
    device.check()?;
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceOptions, adapters};

    #[test]
    fn every_adapter_has_a_speed() {
        for adapter in adapters() {
            let device = Device::open(&adapter, DeviceOptions::default()).expect("it opens");
            let speed = read_bandwidth(&device, 1 << 20, Duration::from_millis(2));
            assert!(speed.expect("a small buffer") > 0.0, "{}", adapter.name());
        }
    }
}
