//! Keys and values of a layer of a sequence, on the device.
//!
//! Positions lie in chunks, each a buffer of its own: a cache grows without being copied, and no buffer
//! is larger than a kernel can reach. Each chunk holds as much as all before it, so there are few.

use std::ops::Range;

use compute::{AttentionSpec, KvValues, STATE_BLOCK};
use half::f16;

use crate::device::{Buffer, Device};

/// Positions of the first chunk. All chunks but the last end at its multiples. Few where this crate tests
/// itself, so that short sequences have several.
pub(crate) const FIRST_CHUNK: usize = if cfg!(test) { 256 } else { 2048 };

/// Keys and values of a layer of a sequence.
#[derive(Debug)]
pub struct KvCache {
    chunks: Vec<Chunk>,
    len: usize,
    max_positions: usize,
    /// Values of the keys of a position; there are as many of the values.
    width: usize,
}

/// Consecutive positions: of each the keys of all heads, then the values, in little-endian halves.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) buffer: Buffer,
    /// The positions that it can hold.
    pub(crate) positions: Range<usize>,
}

impl KvCache {
    /// An empty cache that can grow to `max_positions`.
    pub(crate) fn new(spec: &AttentionSpec, max_positions: usize) -> Self {
        Self { chunks: Vec::new(), len: 0, max_positions, width: spec.n_kv_heads * spec.head_dim }
    }

    /// Bytes of a cache that is full.
    pub(crate) fn bytes(spec: &AttentionSpec, max_positions: usize) -> u64 {
        let position = 2 * size_of::<f16>() * spec.n_kv_heads * spec.head_dim;
        (position * max_positions.next_multiple_of(STATE_BLOCK)) as u64
    }

    /// Bytes of [`KvCache::save_block`].
    pub(crate) fn block_bytes(spec: &AttentionSpec) -> usize {
        Self::bytes(spec, STATE_BLOCK) as usize
    }

    /// Positions that it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The chunks that there are.
    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    fn position_bytes(&self) -> usize {
        2 * size_of::<f16>() * self.width
    }

    /// Makes room for the next position, and gives the chunk that it goes to.
    pub(crate) fn next_chunk(&mut self, device: &Device) -> &Chunk {
        assert!(self.len < self.max_positions, "the position fits the cache");
        let position_bytes = self.position_bytes();
        let begin = self.chunks.last().map_or(0, |chunk| chunk.positions.end);
        if self.len == begin {
            let reachable = device.max_binding_bytes() as usize / position_bytes;
            let reachable = (reachable / FIRST_CHUNK * FIRST_CHUNK).max(FIRST_CHUNK);
            let len = begin.clamp(FIRST_CHUNK, reachable);
            // The last chunk is no longer than it must be.
            let len = len.min((self.max_positions - begin).next_multiple_of(STATE_BLOCK));
            let buffer = device.buffer((position_bytes * len) as u64);
            self.chunks.push(Chunk { buffer, positions: begin..begin + len });
        }
        self.chunks.last().expect("there is a chunk for the position")
    }

    /// Counts positions that were written to the chunk of the next position.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        assert!(self.len <= self.max_positions, "the positions fit the cache");
    }

    /// The positions of a block, as they are stored. Waits for the device.
    pub(crate) fn save_block(&self, device: &Device, block: usize) -> Vec<u8> {
        let begin = block * STATE_BLOCK;
        assert!(begin + STATE_BLOCK <= self.len, "the block is full");
        let mut bytes = Vec::new();
        let chunk = self.chunks.iter().find(|chunk| chunk.positions.contains(&begin));
        let chunk = chunk.expect("it holds the position");
        let at = (begin - chunk.positions.start) * self.position_bytes();
        let len = STATE_BLOCK * self.position_bytes();
        device.read(&chunk.buffer, at as u64, len as u64, &mut bytes);
        bytes
    }

    /// Appends a block that was saved.
    pub(crate) fn load_block(&mut self, device: &Device, bytes: &[u8]) {
        assert!(self.len.is_multiple_of(STATE_BLOCK), "it holds whole blocks");
        assert_eq!(bytes.len(), STATE_BLOCK * self.position_bytes(), "the bytes are a block");
        let (len, position_bytes) = (self.len, self.position_bytes());
        let chunk = self.next_chunk(device);
        let at = (len - chunk.positions.start) * position_bytes;
        device.write(&chunk.buffer, at as u64, bytes);
        self.len += STATE_BLOCK;
    }

    /// All keys and values. Waits for the device.
    pub(crate) fn values(&self, device: &Device, spec: &AttentionSpec) -> KvValues {
        let mut stored = Vec::new();
        let mut bytes = Vec::new();
        for Chunk { buffer, positions } in &self.chunks {
            let n = positions.end.min(self.len) - positions.start;
            device.read(buffer, 0, (n * self.position_bytes()) as u64, &mut bytes);
            let halves = bytes.as_chunks().0.iter();
            stored.extend(halves.map(|half| f16::from_le_bytes(*half).to_f32()));
        }
        // Of all positions, the keys (0) or the values (1), head after head.
        let by_head = |part: usize| {
            let heads = (0..spec.n_kv_heads).flat_map(|head| {
                let at = part * self.width + head * spec.head_dim;
                let positions = stored.chunks_exact(2 * self.width);
                positions.flat_map(move |position| position[at..][..spec.head_dim].to_vec())
            });
            heads.collect()
        };
        KvValues { keys: by_head(0), values: by_head(1) }
    }
}
