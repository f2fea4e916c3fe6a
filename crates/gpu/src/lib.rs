//! The operations a model is made of, on a GPU.
//!
//! One set of kernels in WGSL (`kernels/`) serves Vulkan, Metal and DX12 through `wgpu`. [`Gpu`]
//! implements [`compute::Backend`]: an operation is recorded, and the device begins when somebody waits
//! for a result or enough was recorded.
//!
//! Every output element has one order of additions, whatever the batch: the same bits come out of a row
//! alone and of a row of a long prompt. Between devices the last bits may differ.

#![deny(unsafe_code)]

mod attention;
mod backend;
mod bandwidth;
pub mod baseline;
mod best;
mod buffers;
mod delta_net;
mod delta_state;
mod device;
mod expert_kernels;
mod experts;
mod formats;
mod gemm;
mod gpu;
mod groups;
mod host;
mod in_place;
mod kernel;
mod kv_cache;
pub mod measure;
mod names;
mod product;
mod rowwise;
mod scratch;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tune;
mod weights;

pub use bandwidth::read_bandwidth;
pub use buffers::{Activations, Constant};
pub use delta_state::DeltaState;
pub use device::{Adapter, Device, DeviceOptions, GpuError, adapters};
pub use gemm::Tile;
pub use gpu::Gpu;
pub use kv_cache::KvCache;
pub use product::Tuning;
pub use tune::{Compared, tune};
pub use weights::{ModelNeeds, Weights, WeightsError};
