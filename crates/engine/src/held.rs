//! Routed experts in the memory of a device: how much room there is, and loading all when all fit.

use checkpoint::{ExpertTable, MatrixLocation};
use compute::memory::BLOCK_ALIGNMENT;
use compute::{Backend, ExpertShape, MatrixShape};
use experts::ExpertStore;

use crate::budget::MemoryPlan;
use crate::error::Error;

/// Slots of the host's memory that experts pass through on their way to the device: enough reads at a
/// time to keep a drive busy.
pub(crate) const PASSING_SLOTS: u64 = 32;

/// Sets memory of the device apart for routed experts. Tells whether there is room for all of them; then
/// the host needs few slots.
pub(crate) fn reserve<B: Backend>(
    backend: &mut B,
    tables: &[ExpertTable],
    plan: &mut MemoryPlan,
) -> Result<bool, Error> {
    let Some(device) = &plan.device else { return Ok(false) };
    let shapes: Vec<_> = tables.iter().map(shape).collect();
    let room = backend.reserve_experts(&shapes, device.experts).map_err(Error::Device)?;
    let is_room = room.iter().zip(tables).all(|(room, table)| *room >= table.len());
    if is_room {
        plan.experts = plan.experts.min(PASSING_SLOTS * ExpertStore::slot_bytes(tables));
    }
    Ok(is_room)
}

/// Reads all experts once, layer by layer, and hands them to the device. That is no part of what moving experts
/// costs: nobody used one.
pub(crate) fn load_all<B: Backend>(
    backend: &mut B,
    store: &mut ExpertStore,
    counts: &[usize],
) -> Result<(), Error> {
    let mut ready = Vec::new();
    for (layer, &n_experts) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        store.request(layer, (0..n_experts as u32).map(|expert| (expert, 1)))?;
        loop {
            store.next_ready(&mut ready)?;
            if ready.is_empty() {
                break;
            }
            for expert in ready.drain(..) {
                backend.hold_expert(layer, &expert).map_err(Error::Device)?;
            }
        }
    }
    store.forget_stats();
    backend.check().map_err(Error::Device)
}

/// Whether a device reads all experts in the host's memory, where they begin at the bytes of a page at which they
/// do in their file.
pub(crate) fn are_read_in_place<B: Backend>(backend: &B, tables: &[ExpertTable]) -> bool {
    let mut experts = tables.iter().flat_map(|table| (0..table.len()).map(|e| table.get(e)));
    experts.all(|expert| {
        expert.matrices().iter().all(|&&MatrixLocation { format, rows, cols, data, scales }| {
            let [scales, biases] = scales.map_or([0; 2], |parts| parts.map(|part| part.offset));
            let places = [data.offset, scales, biases].map(|at| at % BLOCK_ALIGNMENT as u64);
            backend.reads_in_place(MatrixShape { format, rows, cols }, places)
        })
    })
}

/// What the experts of a layer are like; `None` if there are none, or not all are alike.
fn shape(table: &ExpertTable) -> Option<ExpertShape> {
    let matrices =
        |expert| {
            table.get(expert).matrices().map(|&MatrixLocation { format, rows, cols, .. }| {
                MatrixShape { format, rows, cols }
            })
        };
    let n_experts = table.len();
    let first = (n_experts > 0).then(|| matrices(0))?;
    let are_alike = (1..n_experts).all(|expert| matrices(expert) == first);
    are_alike.then_some(ExpertShape { n_experts, matrices: first })
}
