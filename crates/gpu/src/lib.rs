//! The operations a model is made of, on a GPU.
//!
//! One set of kernels in WGSL (`kernels/`) serves Vulkan, Metal and DX12 through `wgpu`. [`Gpu`]
//! implements [`compute::Backend`]: an operation is recorded, and the device begins when somebody waits
//! for a result or enough was recorded ([`device`]).
//!
//! Every output element has one order of additions, whatever the batch and whatever the width of the
//! device's subgroups: the same bits come out of a row alone and of a row of a long prompt.

#![deny(unsafe_code)]

mod attention;
mod buffers;
mod delta_net;
mod delta_state;
mod device;
mod kernel;
mod kv_cache;
mod scratch;
#[cfg(test)]
mod testing;

pub use buffers::{Activations, Constant};
pub use delta_state::DeltaState;
pub use device::{Adapter, Counts, Device, DeviceOptions, GpuError, adapters};
pub use kv_cache::KvCache;
