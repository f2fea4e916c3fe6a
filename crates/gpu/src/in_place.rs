//! Experts that kernels read in the memory of the host, on devices whose memory it is: nothing is copied.
//!
//! The arena of the store's slots is known to the device as few large buffers. An expert that is stored as
//! kernels read it is an item of a dispatch like one in a slot of the device; its slot is its place in the
//! buffer. Its block is held until the work that reads it is done, so that the store reads no other into it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use compute::LoadedExpert;
use compute::memory::Block;

use crate::device::{Buffer, Device, Moment};
use crate::experts::ExpertLayout;
use crate::gpu::Gpu;

/// Windows begin and end where the device can import memory, which may be so much farther out.
const SLACK_BYTES: u64 = 128 << 10;

/// What is known of the host's memory, and what of it is being read.
#[derive(Debug, Default)]
pub(crate) struct InPlace {
    /// By where it begins, memory of the host with what it is cut into.
    arenas: HashMap<usize, Arena>,
    windows: Vec<(Buffer, usize)>,
    /// Blocks that are read until a moment.
    reading: VecDeque<(Moment, Arc<Block>)>,
    /// Blocks of experts that were found, of which no moment is known yet.
    found: Vec<Arc<Block>>,
    /// Why memory could not be imported, if some could not.
    pub(crate) refusal: Option<String>,
}

/// Memory of the host that is cut into blocks of one size.
#[derive(Debug)]
struct Arena {
    block_bytes: usize,
    /// Bytes of whole blocks that a kernel reaches at once.
    window_bytes: usize,
    /// For each stretch of so many bytes its window: none yet, or none that the driver would give.
    windows: Vec<Option<Option<usize>>>,
}

/// Experts that lie alike.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) layout: ExpertLayout,
    /// Of each window the experts in it, each with its slot.
    pub(crate) parts: Vec<(usize, Vec<(u32, u32)>)>,
    /// Bytes of their matrices.
    pub(crate) bytes: u64,
}

impl Gpu {
    /// Copies experts that are in the host's memory even if that is the device's, too.
    #[must_use]
    pub fn copying(mut self) -> Self {
        self.in_place = None;
        self
    }

    /// Whether experts are read in the host's memory, or why not, where that is the device's, too.
    pub(crate) fn in_place_report(&self) -> Option<String> {
        if !self.device.shares_memory() {
            return None;
        }
        let refusal = match &self.in_place {
            Some(in_place) => in_place.refusal.clone(),
            None => Some(self.device.imports().err().unwrap_or("that was asked for".to_owned())),
        };
        let shares = "the device shares the host's memory";
        Some(match refusal {
            Some(why) => format!("{shares}, but experts are copied in it: {why}"),
            None => format!("{shares} and can read experts there"),
        })
    }
}

impl InPlace {
    /// Nothing read yet, on a device that can read the host's memory and has no other.
    pub(crate) fn of(device: &Device) -> Option<Self> {
        (device.shares_memory() && device.imports().is_ok()).then(Self::default)
    }

    /// Takes those experts out that can be read where they are. A kernel reaches at most `most` bytes at once.
    pub(crate) fn find(
        &mut self,
        device: &Device,
        experts: &mut Vec<&LoadedExpert>,
        most: u64,
    ) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        experts.retain(|expert| {
            let Some((begin, layout)) = ExpertLayout::in_place(&expert.weights) else {
                return true;
            };
            let block = expert.weights.gate.block();
            let Some((window, at)) = self.place(device, block, most) else { return true };
            let slot = ((at as u64 + begin) / ExpertLayout::STEP) as u32;
            let bytes = layout.matrix_bytes();
            let index = groups.iter().position(|group| group.layout == layout);
            let index = index.unwrap_or_else(|| {
                groups.push(Group { layout, parts: Vec::new(), bytes: 0 });
                groups.len() - 1
            });
            let group = &mut groups[index];
            group.bytes += bytes;
            match group.parts.iter_mut().find(|(other, _)| *other == window) {
                Some((_, experts)) => experts.push((expert.index, slot)),
                None => group.parts.push((window, vec![(expert.index, slot)])),
            }
            self.found.push(Arc::clone(block));
            false
        });
        groups
    }

    /// The window that a block is in, and at which of its bytes.
    fn place(&mut self, device: &Device, block: &Block, most: u64) -> Option<(usize, usize)> {
        let (pages, len) = (block.pages(), block.bytes().len());
        let all = pages.range();
        let most = most.min(device.max_binding_bytes().saturating_sub(SLACK_BYTES)) as usize;
        let at = block.bytes().as_ptr() as usize - all.start;
        let arena = self.arenas.entry(all.start).or_insert_with(|| {
            let window_bytes = most / len * len;
            let n_windows = all.len().checked_div(window_bytes).map_or(0, |n| n + 1);
            Arena { block_bytes: len, window_bytes, windows: vec![None; n_windows] }
        });
        if len != arena.block_bytes || !at.is_multiple_of(len) || arena.window_bytes == 0 {
            return None;
        }
        let index = at / arena.window_bytes;
        let window = arena.windows.get_mut(index)?;
        let window = *window.get_or_insert_with(|| {
            let begin = index * arena.window_bytes;
            let end = all.len().min(begin + arena.window_bytes);
            match device.import(pages, begin..end) {
                Ok(window) => {
                    self.windows.push(window);
                    Some(self.windows.len() - 1)
                }
                Err(reason) => {
                    self.refusal.get_or_insert(reason);
                    None
                }
            }
        });
        window.map(|window| (window, at - self.windows[window].1))
    }

    /// The buffer of a window.
    pub(crate) fn window(&self, window: usize) -> &Buffer {
        &self.windows[window].0
    }

    /// Tells that work was recorded which reads all that was found.
    pub(crate) fn read(&mut self, until: Moment) {
        self.reading.extend(self.found.drain(..).map(|block| (until, block)));
    }

    /// Lets go of blocks that are not read any more, and waits until at most so many are.
    pub(crate) fn let_go(&mut self, device: &Device, most: usize) {
        while let Some((until, _)) = self.reading.front() {
            if !device.is_done(*until) {
                if self.reading.len() <= most {
                    break;
                }
                device.wait_for(*until);
            }
            self.reading.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::{Affine, BlockType, FloatType, Format};
    use compute::memory::Arena;
    use compute::{Backend, ExpertUses, ExpertWeights, Matrix, Routing};

    use super::*;
    use crate::testing::{Random, download, experts, gpus, upload};

    const SLOT_BYTES: usize = 256 << 10;

    /// Copies an expert into a block, its parts one after another from a byte on.
    fn put(expert: &LoadedExpert, mut block: Block, begin: usize) -> LoadedExpert {
        let matrices = [&expert.weights.gate, &expert.weights.up, &expert.weights.down];
        let mut at = begin;
        let places = matrices.map(|matrix| {
            [matrix.data(), matrix.scales(), matrix.biases()].map(|part| {
                let place = at;
                block.bytes_mut()[at..at + part.len()].copy_from_slice(part);
                at += part.len();
                place
            })
        });
        let block = Arc::new(block);
        let place = |index: usize| {
            let Matrix { format, rows, cols, .. } = *matrices[index];
            Matrix::new(format, (rows, cols), Arc::clone(&block), places[index])
        };
        let weights = ExpertWeights { gate: place(0), up: place(1), down: place(2) };
        LoadedExpert { index: expert.index, weights }
    }

    /// The first of the devices, if it shares the host's memory: sums have nothing to do with it.
    fn sharing() -> Option<Gpu> {
        gpus().find(|gpu| gpu.in_place.is_some())
    }

    /// Outputs of all experts, and the bytes that were copied and read in place for them.
    fn outputs(gpu: &mut Gpu, experts: &[LoadedExpert]) -> (Vec<f32>, [u64; 2]) {
        let (rows, top_k) = (experts.len(), 2);
        let x: Vec<f32> = Random::new(1).numbers(rows * 256).iter().map(|x| 0.1 * x).collect();
        let chosen = (0..rows as u32).flat_map(|row| [row, (row + 1) % rows as u32]);
        let routing =
            Routing { top_k, experts: chosen.collect(), weights: vec![0.5; rows * top_k] };
        let mut uses = ExpertUses::new(rows);
        uses.group(&routing);
        let x = upload(&gpu.device, &x, 256);
        let mut out = gpu.buffer(rows * top_k, 256);
        gpu.set_rows(&mut out, rows * top_k);
        let before = gpu.handoffs();
        gpu.experts(0, &x, experts, &uses, &mut out);
        let after = gpu.handoffs() - before;
        (download(&gpu.device, &out), [after.expert_bytes, after.in_place_bytes])
    }

    #[test]
    fn experts_are_read_where_they_lie_with_the_same_bits() {
        let affine = |bits| Format::Affine(Affine { bits, group: 64, scales: FloatType::Bf16 });
        let block = Format::Block;
        let f32 = Format::Float(FloatType::F32);
        // Formats, the byte of its block at which each expert begins, and how many can be read there.
        let cases = [
            ([affine(4); 3], [0, 0, 0, 0, 0], 5),
            ([affine(4), affine(3), affine(8)], [16, 48, 16, 4096, 0], 5),
            ([affine(4); 3], [0, 4, 32, 2, 0], 3),
            ([block(BlockType::Q4K), block(BlockType::Q5K), affine(4)], [32, 0, 32, 64, 0], 5),
            ([affine(4), affine(4), block(BlockType::Q8_0)], [0; 5], 0),
            ([f32, f32, affine(2)], [0; 5], 5),
        ];
        for (formats, begins, n_in_place) in cases {
            let made = experts(&mut Random::new(3), 5, formats);
            let slot = SLOT_BYTES;
            if let Some(mut gpu) = sharing() {
                let mut arena = Arena::new(5 * slot).expect("memory");
                let blocks = begins
                    .iter()
                    .zip(&made)
                    .map(|(&begin, expert)| put(expert, arena.take(slot).expect("room"), begin));
                let loaded: Vec<_> = blocks.collect();
                // All that a kernel reaches, and two slots of it.
                for most in [u64::MAX, 2 * slot as u64] {
                    gpu.slot_buffer_bytes = most;
                    gpu.in_place = Some(InPlace::default());
                    let (here, [copied, read]) = outputs(&mut gpu, &loaded);
                    let n = n_in_place;
                    assert_eq!((copied == 0, read == 0), (n == 5, n == 0), "{formats:?}");
                    let in_place = gpu.in_place.take().expect("it was set");
                    let n_windows = if n == 0 {
                        0
                    } else if most == u64::MAX {
                        1
                    } else {
                        3
                    };
                    assert_eq!(in_place.windows.len(), n_windows, "{:?}", in_place.refusal);
                    let (elsewhere, [copied, read]) = outputs(&mut gpu, &loaded);
                    assert!(copied > 0 && read == 0);
                    assert!(here == elsewhere, "the same bits: {formats:?} at {begins:?}");
                }
            }
        }
    }

    #[test]
    fn a_block_is_held_while_it_is_read_and_then_free_for_another() {
        let format = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
        if let Some(mut gpu) = sharing() {
            let device = gpu.device.clone();
            let mut random = Random::new(4);
            let mut arena = Arena::new(SLOT_BYTES).expect("memory");
            let mut block = arena.take(SLOT_BYTES).expect("room");
            gpu.in_place.as_mut().expect("filtered").let_go(&device, 0);
            for _ in 0..4 {
                let made = experts(&mut random, 1, [format; 3]);
                let loaded = [put(&made[0], block, 0)];
                let (here, [copied, _]) = outputs(&mut gpu, &loaded);
                assert_eq!(copied, 0);
                assert!(here == outputs(&mut gpu, &made).0, "what lies there now");
                let held = Arc::clone(loaded[0].weights.gate.block());
                let in_place = gpu.in_place.as_mut().expect("filtered");
                let groups = in_place.find(&device, &mut loaded.iter().collect(), u64::MAX);
                assert_eq!(groups.len(), 1);
                drop(loaded);
                // Work that was recorded and not handed over is not done.
                let buffer = device.buffer(16);
                in_place.read(device.moment());
                in_place.let_go(&device, usize::MAX);
                assert!(Arc::strong_count(&held) > 1, "the device may still read it");
                in_place.let_go(&device, 0);
                block = Arc::into_inner(held).expect("nobody reads it any more");
                drop(buffer);
            }
        }
    }

    #[test]
    fn what_cannot_be_imported_is_copied() {
        if let Some(mut gpu) = sharing() {
            let format = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
            let made = experts(&mut Random::new(6), 2, [format; 3]);
            let mut arena = Arena::new(2 * SLOT_BYTES).expect("memory");
            let blocks = made.iter().map(|e| put(e, arena.take(SLOT_BYTES).expect("room"), 0));
            let loaded: Vec<_> = blocks.collect();
            // A kernel that reaches less than a block.
            gpu.slot_buffer_bytes = SLOT_BYTES as u64 - 1;
            let (values, [copied, read]) = outputs(&mut gpu, &loaded);
            assert!(copied > 0 && read == 0);
            gpu.slot_buffer_bytes = u64::MAX;
            gpu.in_place = Some(InPlace::default());
            assert!(values == outputs(&mut gpu, &loaded).0);
        }
    }
}
