//! The best of a row of logits: a greedy choice needs no more of them on the host.

use std::cmp::Reverse;

use crate::buffers::Activations;
use crate::device::{Device, Kernel};
use crate::kernel::KernelSource;
use crate::scratch::Scratch;

/// Parts that a row is cut into, each a workgroup's.
const PARTS: usize = 64;
/// The key of what is not finite.
const NOT_FINITE: u32 = u32::MAX;

/// The kernel with its working memory.
#[derive(Debug)]
pub(crate) struct Best {
    kernel: Kernel,
    found: Scratch,
    bytes: Vec<u8>,
}

/// Applies a function to the kernel.
fn with_source<T>(apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "best",
        parts: &[include_str!("kernels/best.wgsl")],
        constants: &[],
        flags: &[],
        writes: &[false, true],
        teams: None,
    })
}

impl Best {
    pub(crate) fn new(device: &Device) -> Self {
        let kernel = with_source(|source| device.kernel(source));
        Self { kernel, found: Scratch::default(), bytes: Vec::new() }
    }

    /// See [`compute::Backend::best`].
    pub(crate) fn best(
        &mut self,
        device: &Device,
        x: &Activations,
        n: usize,
        out: &mut Vec<Option<u32>>,
    ) {
        let (rows, width) = (x.rows(), x.width());
        let bytes = rows * PARTS * size_of::<[u32; 2]>();
        let found = self.found.at_least(device, bytes);
        let words = [width, n, width.div_ceil(PARTS)].map(|word| word as u32);
        let groups = [PARTS as u32, rows as u32, 1];
        device.dispatch(&self.kernel, &[&x.buffer, found], &words, groups);
        device.read(found, 0, bytes as u64, &mut self.bytes);
        let (words, _) = self.bytes.as_chunks::<4>();
        let (found, _) = words.as_chunks::<2>();
        out.clear();
        out.extend(found.chunks_exact(PARTS).map(|parts| {
            let parts = parts.iter().map(|part| part.map(u32::from_le_bytes));
            let (key, Reverse(column)) = parts.map(|[key, column]| (key, Reverse(column))).max()?;
            (key != NOT_FINITE && key != 0).then_some(column)
        }));
    }
}

#[cfg(test)]
mod tests {
    use compute::{Backend, Reference};

    use super::*;
    use crate::gpu::Gpu;
    use crate::testing::{Random, devices, host, name, translate, upload};

    #[test]
    fn the_kernel_translates_to_every_language() {
        with_source(translate);
    }

    #[test]
    fn the_best_is_that_of_the_host() {
        let (width, n) = (1003, 1001);
        let mut random = Random::new(12);
        let mut rows: Vec<Vec<f32>> = (0..8).map(|_| random.numbers(width)).collect();
        // The first of equals, near and far; zeros of both signs are equal; none above zero.
        (rows[1][700], rows[1][20], rows[1][21]) = (9.0, 9.0, 9.0);
        rows[2].fill(-0.0);
        rows[2][5] = 0.0;
        rows[3].iter_mut().for_each(|x| *x = -x.abs() - 1.0);
        rows[3][900] = -f32::MIN_POSITIVE / 2.0;
        // What is not to choose from; what is not finite, even there.
        rows[4][1001] = 99.0;
        rows[5][1002] = f32::NAN;
        rows[6][3] = f32::NEG_INFINITY;
        (rows[7][0], rows[7][1000]) = (f32::MAX, f32::INFINITY);
        let values = rows.concat();
        let mut reference = Reference::new();
        let (mut scratch, mut expected, mut best) = (Vec::new(), Vec::new(), Vec::new());
        let on_host = host(&mut reference, &values, width);
        reference.best(&on_host, (rows.len(), n), &mut scratch, &mut expected);
        assert_eq!(expected[1..4], [Some(20), Some(0), Some(900)]);
        assert!(expected[4].is_some_and(|best| best != 1001));
        assert_eq!(expected[5..], [None; 3]);
        for device in devices() {
            let mut gpu = Gpu::new(device.clone());
            let x = upload(&device, &values, width);
            gpu.best(&x, (rows.len(), n), &mut scratch, &mut best);
            assert_eq!(best, expected, "{}", name(&device));
        }
    }
}
