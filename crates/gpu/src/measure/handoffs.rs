//! What it costs to have the device do something.

use std::time::{Duration, Instant};

use crate::buffers::Activations;
use crate::device::{Device, GpuError};
use crate::measure::median;
use crate::rowwise::{Addend, Rowwise};

/// Small kernels of a measurement.
const DISPATCHES: usize = 1000;

/// Median seconds of a meeting: a small kernel is handed over, and its result comes to the host. A thread
/// waits without sleeping for as long as `spin`.
pub fn meeting_seconds(device: &Device, spin: Duration) -> Result<f64, GpuError> {
    let mut rowwise = Rowwise::new(device);
    let (x, y) = (small(device), small(device));
    let mut out = Vec::new();
    let mut meet = || {
        let begin = Instant::now();
        rowwise.sum(device, &x, Addend::Rows(&y), None);
        device.read(&x.buffer, 0, 64, &mut out);
        begin.elapsed().as_secs_f64()
    };
    device.set_spin(spin);
    (0..20).for_each(|_| {
        meet();
    });
    let times = (0..200).map(|_| meet()).collect();
    device.check()?;
    Ok(median(times))
}

/// What a dispatch of a small kernel takes among many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DispatchCost {
    /// Median seconds of the thread that records and hands over.
    pub recording: f64,
    /// Median seconds until it is done, of which recording is a part.
    pub wall: f64,
}

/// Measures dispatches of a kernel that does little: each on the result of the one before, or on memory of
/// its own.
pub fn dispatch_cost(device: &Device, is_chain: bool) -> Result<DispatchCost, GpuError> {
    let mut rowwise = Rowwise::new(device);
    let xs: Vec<_> = (0..if is_chain { 1 } else { 64 }).map(|_| small(device)).collect();
    let y = small(device);
    let n_xs = xs.len();
    let mut run = || {
        let begin = Instant::now();
        for index in 0..DISPATCHES {
            rowwise.sum(device, &xs[index % n_xs], Addend::Rows(&y), None);
        }
        device.submit();
        let recording = begin.elapsed().as_secs_f64();
        device.wait();
        [recording, begin.elapsed().as_secs_f64()].map(|seconds| seconds / DISPATCHES as f64)
    };
    run();
    let times: Vec<_> = (0..9).map(|_| run()).collect();
    device.check()?;
    let median_of = |part: usize| median(times.iter().map(|times| times[part]).collect());
    Ok(DispatchCost { recording: median_of(0), wall: median_of(1) })
}

fn small(device: &Device) -> Activations {
    let mut activations = Activations::new(device, 1, 256);
    activations.set_rows(1);
    activations
}
