//! Where weights come from.

use std::ops::Range;

use checkpoint::VectorKind;
use compute::{ExpertUses, LoadedExpert, Routing};

/// Gives the trunk's weights by canonical name: the Hugging Face name of the text model's tensor
/// without its prefix, such as `layers.3.self_attn.q_proj.weight`.
pub trait WeightSource {
    /// A matrix, or a placeholder for it.
    type Matrix;
    /// A vector, or a placeholder for it.
    type Vector;
    /// Why a weight cannot be had.
    type Error;

    /// The matrix of shape (rows, cols).
    fn matrix(&mut self, name: &str, rows: usize, cols: usize)
    -> Result<Self::Matrix, Self::Error>;

    /// The matrix that some rows of a stored matrix of another shape (rows, cols) make, in the given
    /// order.
    fn matrix_of_rows(
        &mut self,
        name: &str,
        stored_shape: (usize, usize),
        rows: Vec<Range<usize>>,
    ) -> Result<Self::Matrix, Self::Error>;

    /// The vector of `len` values.
    fn vector(
        &mut self,
        name: &str,
        len: usize,
        kind: VectorKind,
    ) -> Result<Self::Vector, Self::Error>;
}

/// Why experts could not be delivered.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Delivers routed experts, each as soon as its bytes are in memory.
pub trait ExpertSource {
    /// Asks for the experts of a layer that are used; reads of those that are not in memory start at
    /// once.
    fn request(&mut self, layer: usize, uses: &ExpertUses) -> Result<(), SourceError>;

    /// Tells that an expert that a device holds was used there by so many rows, so that it was not asked for.
    fn used_on_device(&mut self, layer: usize, expert: u32, n_rows: usize);

    /// Replaces what `ready` held by the experts of the request that are in memory and were not
    /// delivered yet, in any order. Waits for the drive when none is; leaves `ready` empty when all
    /// were delivered. An expert's memory is free again when its weights are dropped.
    fn next_ready(&mut self, ready: &mut Vec<LoadedExpert>) -> Result<(), SourceError>;

    /// Whether requests are recorded, so that all experts must be asked for, those on the device, too.
    fn records_requests(&self) -> bool;

    /// Whether an expert of a layer is in memory, or on its way there.
    fn is_resident(&self, layer: usize, expert: u32) -> bool;

    /// Whether a prediction of the routing of so many rows in a layer to come would be of use.
    fn wants_prediction(&mut self, layer: usize, n_rows: usize) -> bool;

    /// Tells the predicted routing of a layer to come, so that its experts can be read before they are
    /// asked for; `is_held` tells which a device has, so that they will not be. A prediction never changes
    /// what is delivered.
    fn look_ahead(&mut self, layer: usize, routing: &Routing, is_held: &dyn Fn(u32) -> bool);
}
