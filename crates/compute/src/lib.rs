//! The operations a model is made of, on a device.

mod backend;
mod matrix;
pub mod memory;

pub use backend::{
    AttentionInputs, AttentionSpec, Backend, DeltaNetInputs, DeltaNetSpec, DeltaStateValues,
    ExpertUse, KvValues, MoeOutputs, Routing, Span,
};
pub use matrix::{ExpertWeights, Matrix};
