//! The operations a model is made of, on a device.
//!
//! [`Backend`] is the one interface: a few fused operations over opaque buffers. [`Reference`] computes
//! them as the formulas are written; [`Cpu`] computes the same with threads and vector instructions.
//! Weights stay in the format in which they were stored ([`Matrix`]), in memory that drive reads land
//! in ([`memory`]).

#![deny(unsafe_code)]

mod backend;
mod bandwidth;
mod cpu;
mod device;
mod host;
mod matrix;
pub mod memory;
mod prefetch;
mod reference;
mod snapshots;
mod uses;

pub use backend::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    HeldMoe, KvValues, MoeOutputs, NextNorm, RouteAhead, RouterSpec, Routing, ScratchNeeds,
    SharedExpert, Span,
};
pub use bandwidth::memory_bandwidth;
pub use cpu::{Cpu, CpuError, CpuOptions, DeltaState, Isa, KvCache, KvType};
pub use device::{DeviceError, ExpertShape, Handoffs, MatrixShape, Memory};
pub use host::{HostBuffer, best, rotary_angles};
pub use matrix::{ExpertWeights, LoadedExpert, Matrix};
pub use reference::{PlainDeltaState, PlainKvCache, Reference};
pub use snapshots::STATE_BLOCK;
pub use uses::{ExpertUse, ExpertUses};
