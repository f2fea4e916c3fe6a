//! Uses of experts grouped by expert on the device, for prompts in layers that it holds: the host need not know
//! who was chosen.

use std::collections::HashMap;

use crate::device::{Buffer, Device, Kernel};
use crate::kernel::KernelSource;
use crate::product::Items;
use crate::scratch::Scratch;

/// The kernels by the uses of an item, and the table.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    kernels: HashMap<usize, Kernel>,
    table: Scratch,
}

/// Calls `use_source` with the source of the kernel for items of `n_x` uses.
pub(crate) fn with_source<T>(n_x: usize, use_source: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    use_source(&KernelSource {
        name: "group",
        parts: &[include_str!("kernels/group.wgsl")],
        constants: &[("N_X", n_x as u32)],
        flags: &[],
        writes: &[false, true],
        teams: None,
    })
}

impl Groups {
    /// The items of experts in the slots of their indices, of which `chosen` has one for each use. There are as
    /// many as there could be.
    pub(crate) fn group(
        &mut self,
        device: &Device,
        chosen: &Buffer,
        [n_uses, n_experts]: [usize; 2],
        n_x: usize,
    ) -> Items<'_> {
        let kernel = self
            .kernels
            .entry(n_x)
            .or_insert_with(|| with_source(n_x, |source| device.kernel(source)));
        // Each expert that is used can have one item that is not full.
        let n_items = n_uses.min(n_uses / n_x + n_experts);
        let table = self.table.at_least(device, 4 * n_items * (2 + n_x));
        let words = [n_uses as u32, n_experts as u32, n_items as u32];
        device.dispatch(kernel, &[chosen, table], &words, [1, 1, 1]);
        Items { table, begin: 0, len: n_items as u32, n_x }
    }
}
