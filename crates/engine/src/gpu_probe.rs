//! What a GPU's kernels reach on their own, for reports of machines that nobody here has.

use crate::error::Error;

/// How fast a kernel reads weights.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRate {
    /// What it computes.
    pub name: &'static str,
    /// Bytes of weights a second.
    pub bytes_per_second: f64,
}

/// What was measured of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuProbe {
    /// Seconds from handing over a small kernel until its result is on the host.
    pub meeting_seconds: f64,
    /// Products of a token with experts and with the head.
    pub kernels: Vec<KernelRate>,
}

/// Measures the GPU of a number; some seconds, and up to 600 MB of its memory.
#[cfg(feature = "gpu")]
pub fn probe_gpu(index: usize) -> Result<GpuProbe, Error> {
    use checkpoint::{Affine, BlockType, FloatType, Format};
    use gpu::measure::{ProductCase, meeting_seconds, product_rate, scaled};
    use gpu::{Device, DeviceOptions, GpuError, Tuning};

    let measure = || -> Result<GpuProbe, GpuError> {
        let adapters = gpu::adapters();
        let available = adapters.len();
        let adapter = adapters.get(index).ok_or(GpuError::NoSuchAdapter { index, available })?;
        let options = DeviceOptions { checked: false, ..DeviceOptions::default() };
        let device = Device::open(adapter, options)?;
        let four_bits = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
        let q4k = Format::Block(BlockType::Q4K);
        let kernels = [
            ("gate and up of 10 experts, 1024 x 4096, 4 bits", four_bits, 1024, 4096, 10, 120),
            ("gate and up of 8 experts, 512 x 2048, Q4_K", q4k, 512, 2048, 8, 480),
            ("head, 65536 x 4096, 4 bits", four_bits, 65_536, 4096, 1, 1),
        ];
        let kernels = kernels.map(|(name, format, rows, cols, experts, pool)| {
            let is_fused = experts > 1;
            let (rows, pool) = scaled(&device, rows, pool, experts);
            let case = ProductCase { format, rows, cols, experts, pool, is_fused, n_x: 1 };
            let rate = product_rate(&device, case, Tuning::of(&device))?;
            Ok(KernelRate { name, bytes_per_second: rate.bytes as f64 / rate.seconds })
        });
        let kernels = kernels.into_iter().collect::<Result<_, GpuError>>()?;
        // As long as decoding waits without sleeping.
        let spin = std::time::Duration::from_micros(200);
        Ok(GpuProbe { meeting_seconds: meeting_seconds(&device, spin)?, kernels })
    };
    measure().map_err(|error| Error::Gpu(error.to_string()))
}

/// There are none.
#[cfg(not(feature = "gpu"))]
pub fn probe_gpu(_: usize) -> Result<GpuProbe, Error> {
    Err(Error::Gpu("this program was built without its GPU backend".to_owned()))
}
