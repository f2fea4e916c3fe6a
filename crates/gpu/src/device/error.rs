//! Why a GPU cannot be used.

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No adapter at all.
    #[error(
        "no GPU was found: there is no driver for Vulkan, Metal or DX12; use `--device cpu`, or install the driver"
    )]
    NoAdapter,
    /// An adapter that is not there was asked for.
    #[error("there is no GPU {index}: `flash-moe devices` lists the {available} that there are")]
    NoSuchAdapter {
        /// What was asked for.
        index: usize,
        /// How many there are.
        available: usize,
    },
    /// The adapter lacks something that the kernels need.
    #[error("{adapter} cannot run the kernels: it has no {what}; use `--device cpu`")]
    Lacks {
        /// Its name.
        adapter: String,
        /// What is missing.
        what: &'static str,
    },
    /// The adapter cannot tell when each kernel runs.
    #[error("{adapter} has no timestamps between kernels: when they run cannot be recorded")]
    NoTimestamps {
        /// Its name.
        adapter: String,
    },
    /// The driver refused.
    #[error("{adapter} could not be opened: {reason}")]
    Refused {
        /// Its name.
        adapter: String,
        /// What the driver said.
        reason: String,
    },
    /// The device failed while it computed.
    #[error("the GPU failed: {0}")]
    Failed(String),
}

/// What a failure of the driver means for people.
pub(super) fn explain(error: &wgpu::hal::DeviceError) -> String {
    match error {
        wgpu::hal::DeviceError::OutOfMemory => {
            "it has too little memory; give experts less of it with `--vram`, or close what else uses it".into()
        }
        wgpu::hal::DeviceError::Lost => "the device was lost: its driver gave up or was restarted".into(),
        other => other.to_string(),
    }
}
