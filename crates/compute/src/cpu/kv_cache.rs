//! Keys and values of a layer of a sequence: pages, so that growing copies nothing.
//!
//! Stored in 16-bit floats, in blocks of eight bits, or in `f32` ([`KvType`]).

use checkpoint::{BlockType, FloatType, Format};
use half::f16;

use crate::backend::{AttentionSpec, KvValues};
use crate::cpu::integer::{BLOCK, BlocksMut};
use crate::cpu::kernels::Kernels;
use crate::snapshots::{STATE_BLOCK, read_floats, write_floats};

/// Positions of a page, and of a block of the softmax.
pub(crate) const PAGE: usize = 64;
const _: () = assert!(PAGE == STATE_BLOCK, "a block of a saved state is a page");

/// The largest 16-bit float.
const LARGEST: f32 = 65_504.0;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// Integers of eight bits with a 16-bit scale for each 32 values of a head, the last ones of a head
    /// filled up: 8.5 bits a value. The blocks are those of GGUF's format of that name.
    Q8_0,
}

/// Bytes of a block of [`KvType::Q8_0`].
const Q8_0_BYTES: usize = BlockType::Q8_0.bytes();
const _: () = assert!(BLOCK == BlockType::Q8_0.values(), "activations have the same blocks");

impl KvType {
    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of a position of a head.
    const fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Q8_0 => head_dim.div_ceil(BLOCK) * Q8_0_BYTES,
        }
    }
}

/// Keys and values of a layer of a sequence.
#[derive(Debug)]
pub struct KvCache {
    pages: Vec<Page>,
    len: usize,
    max_positions: usize,
    kv_type: KvType,
}

/// `PAGE` positions: keys and values of (n_kv_heads, PAGE, head_dim).
#[derive(Debug)]
struct Page {
    keys: Values,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Single(Box<[f32]>),
    /// Little-endian 16-bit floats.
    Half(Box<[u8]>),
    /// Blocks of [`KvType::Q8_0`].
    Eight(Box<[u8]>),
}

impl Values {
    /// Room for so many positions of heads.
    fn new(n: usize, head_dim: usize, kv_type: KvType) -> Self {
        let bytes = || vec![0; n * kv_type.head_bytes(head_dim)].into_boxed_slice();
        match kv_type {
            KvType::F32 => Self::Single(vec![0.0; n * head_dim].into_boxed_slice()),
            KvType::F16 => Self::Half(bytes()),
            KvType::Q8_0 => Self::Eight(bytes()),
        }
    }

    /// Writes the values of a head at the place of a position.
    fn write(&mut self, kernels: &Kernels, place: usize, values: &[f32]) {
        // Beyond the largest number they would become infinite, and spoil earlier rows of a chunk, where
        // their weight is zero. NaN stays what it is.
        let clamp = |value: f32| value.clamp(-LARGEST, LARGEST);
        match self {
            Self::Single(all) => {
                all[place * values.len()..][..values.len()].copy_from_slice(values)
            }
            Self::Half(bytes) => {
                let places = bytes[2 * place * values.len()..].as_chunks_mut::<2>().0;
                for (place, value) in places.iter_mut().zip(values) {
                    *place = f16::from_f32(clamp(*value)).to_le_bytes();
                }
            }
            Self::Eight(bytes) => {
                let head_bytes = KvType::Q8_0.head_bytes(values.len());
                let blocks = bytes[place * head_bytes..].as_chunks_mut::<Q8_0_BYTES>().0;
                for (block, values) in blocks.iter_mut().zip(values.chunks(BLOCK)) {
                    let mut x = [0.0; BLOCK];
                    x.iter_mut().zip(values).for_each(|(x, value)| *x = clamp(*value));
                    *block = quantize(kernels, &x);
                }
            }
        }
    }

    /// All of it, as it is stored.
    fn save(&self, out: &mut Vec<u8>) {
        match self {
            Self::Single(all) => write_floats(all, out),
            Self::Half(bytes) | Self::Eight(bytes) => out.extend_from_slice(bytes),
        }
    }

    /// Takes what was saved, and gives the bytes that follow.
    fn load<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Single(all) => read_floats(bytes, all),
            Self::Half(ours) | Self::Eight(ours) => {
                let (stored, rest) = bytes.split_at(ours.len());
                ours.copy_from_slice(stored);
                rest
            }
        }
    }

    /// The first `n` positions of a head in `f32`, decoded into `scratch` if need be.
    fn read<'a>(
        &'a self,
        kernels: &Kernels,
        spec: &AttentionSpec,
        head: usize,
        n: usize,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let (first, head_dim) = (head * PAGE, spec.head_dim);
        match self {
            Self::Single(all) => &all[first * head_dim..(first + n) * head_dim],
            Self::Half(bytes) => {
                let stored = &bytes[2 * first * head_dim..2 * (first + n) * head_dim];
                let out = room(scratch, n * head_dim);
                (kernels.dequantize)(Format::Float(FloatType::F16), stored, &[], &[], out);
                out
            }
            Self::Eight(bytes) => {
                let head_bytes = KvType::Q8_0.head_bytes(head_dim);
                let stored = &bytes[first * head_bytes..(first + n) * head_bytes];
                let decode = |stored: &[u8], out: &mut [f32]| {
                    (kernels.dequantize)(Format::Block(BlockType::Q8_0), stored, &[], &[], out);
                };
                let out = room(scratch, n * head_dim);
                if head_dim.is_multiple_of(BLOCK) {
                    decode(stored, out);
                    return out;
                }
                let heads = stored.chunks_exact(head_bytes).zip(out.chunks_exact_mut(head_dim));
                for (stored, out) in heads {
                    let blocks = stored.chunks_exact(Q8_0_BYTES).zip(out.chunks_mut(BLOCK));
                    for (stored, out) in blocks {
                        let mut block = [0.0; BLOCK];
                        decode(stored, &mut block);
                        out.copy_from_slice(&block[..out.len()]);
                    }
                }
                out
            }
        }
    }
}

/// So many values of working memory.
fn room(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    scratch.resize(scratch.len().max(len), 0.0);
    &mut scratch[..len]
}

/// A block of [`KvType::Q8_0`]: what activations become in products, with a shorter scale.
fn quantize(kernels: &Kernels, x: &[f32; BLOCK]) -> [u8; Q8_0_BYTES] {
    let (mut codes, mut scale) = ([0; BLOCK], [0.0]);
    let out = BlocksMut {
        codes: &mut codes,
        scales: &mut scale,
        sums: &mut [0; 2],
        scaled_sums: &mut [0.0],
    };
    (kernels.quantize)(x, out);
    let mut block = [0; Q8_0_BYTES];
    block[..2].copy_from_slice(&f16::from_f32(scale[0]).to_le_bytes());
    block[2..].iter_mut().zip(codes).for_each(|(byte, code)| *byte = code.cast_unsigned());
    block
}

impl KvCache {
    pub(crate) fn new(max_positions: usize, kv_type: KvType) -> Self {
        Self { pages: Vec::new(), len: 0, max_positions, kv_type }
    }

    /// Bytes of a cache that is full.
    pub(crate) fn bytes(spec: &AttentionSpec, max_positions: usize, kv_type: KvType) -> u64 {
        let positions = max_positions.next_multiple_of(PAGE);
        (2 * positions * spec.n_kv_heads * kv_type.head_bytes(spec.head_dim)) as u64
    }

    /// Positions that it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Pages that it holds.
    pub(crate) fn n_pages(&self) -> usize {
        self.pages.len()
    }

    /// Appends a position: keys and values of all heads.
    pub(crate) fn push(
        &mut self,
        kernels: &Kernels,
        spec: &AttentionSpec,
        keys: &[f32],
        values: &[f32],
    ) {
        let head_dim = spec.head_dim;
        assert!(self.len < self.max_positions, "the position fits the cache");
        if self.len.is_multiple_of(PAGE) {
            self.add_page(spec);
        }
        let page = self.pages.last_mut().expect("there is a page for the position");
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let place = head * PAGE + self.len % PAGE;
            page.keys.write(kernels, place, key);
            page.values.write(kernels, place, value);
        }
        self.len += 1;
    }

    fn add_page(&mut self, spec: &AttentionSpec) -> &mut Page {
        let empty = || Values::new(spec.n_kv_heads * PAGE, spec.head_dim, self.kv_type);
        self.pages.push(Page { keys: empty(), values: empty() });
        self.pages.last_mut().expect("it was just added")
    }

    /// Keys and then values of a page that is full.
    pub(crate) fn save_page(&self, index: usize) -> Vec<u8> {
        assert!((index + 1) * PAGE <= self.len, "the page is full");
        let Page { keys, values } = &self.pages[index];
        let mut out = Vec::new();
        keys.save(&mut out);
        values.save(&mut out);
        out
    }

    /// Appends a page that was saved.
    pub(crate) fn load_page(&mut self, spec: &AttentionSpec, bytes: &[u8]) {
        assert!(self.len.is_multiple_of(PAGE), "all pages are full");
        assert!(self.len + PAGE <= self.max_positions, "the page fits the cache");
        let Page { keys, values } = self.add_page(spec);
        let rest = keys.load(bytes);
        let rest = values.load(rest);
        assert!(rest.is_empty(), "the bytes are those of a page");
        self.len += PAGE;
    }

    /// Keys of the first `n` positions of a page.
    pub(crate) fn keys<'a>(
        &'a self,
        kernels: &Kernels,
        spec: &AttentionSpec,
        page: usize,
        head: usize,
        n: usize,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.pages[page].keys.read(kernels, spec, head, n, scratch)
    }

    /// Values of the first `n` positions of a page.
    pub(crate) fn values<'a>(
        &'a self,
        kernels: &Kernels,
        spec: &AttentionSpec,
        page: usize,
        head: usize,
        n: usize,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.pages[page].values.read(kernels, spec, head, n, scratch)
    }

    /// All keys and values.
    pub(crate) fn contents(&self, kernels: &Kernels, spec: &AttentionSpec) -> KvValues {
        let mut contents = KvValues { keys: Vec::new(), values: Vec::new() };
        let mut scratch = Vec::new();
        for head in 0..spec.n_kv_heads {
            for page in 0..self.pages.len() {
                let n = PAGE.min(self.len - page * PAGE);
                let keys = self.keys(kernels, spec, page, head, n, &mut scratch);
                contents.keys.extend_from_slice(keys);
                let values = self.values(kernels, spec, page, head, n, &mut scratch);
                contents.values.extend_from_slice(values);
            }
        }
        contents
    }
}
