//! Keys and values of a layer of a sequence: pages, so that growing copies nothing.
//!
//! Stored in 16-bit floats, or in `f32` where a backend is precise.

use checkpoint::{FloatType, Format};
use half::f16;

use crate::backend::{AttentionSpec, KvValues};
use crate::cpu::kernels::Kernels;
use crate::snapshots::{STATE_BLOCK, read_floats, write_floats};

/// Positions of a page, and of a block of the softmax.
pub(crate) const PAGE: usize = 64;
const _: () = assert!(PAGE == STATE_BLOCK, "a block of a saved state is a page");

/// The largest 16-bit float.
const LARGEST: f32 = 65_504.0;

/// Keys and values of a layer of a sequence.
#[derive(Debug)]
pub struct KvCache {
    pages: Vec<Page>,
    len: usize,
    max_positions: usize,
    precise: bool,
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
}

impl Values {
    fn new(len: usize, precise: bool) -> Self {
        match precise {
            true => Self::Single(vec![0.0; len].into_boxed_slice()),
            false => Self::Half(vec![0; 2 * len].into_boxed_slice()),
        }
    }

    fn write(&mut self, at: usize, values: &[f32]) {
        match self {
            Self::Single(all) => all[at..at + values.len()].copy_from_slice(values),
            Self::Half(bytes) => {
                let places = bytes[2 * at..].as_chunks_mut::<2>().0;
                for (place, value) in places.iter_mut().zip(values) {
                    // Beyond the largest number it would become infinite, and spoil earlier rows of a
                    // chunk, where its weight is zero. NaN stays what it is.
                    *place = f16::from_f32(value.clamp(-LARGEST, LARGEST)).to_le_bytes();
                }
            }
        }
    }

    /// All of it, as it is stored.
    fn save(&self, out: &mut Vec<u8>) {
        match self {
            Self::Single(all) => write_floats(all, out),
            Self::Half(bytes) => out.extend_from_slice(bytes),
        }
    }

    /// Takes what was saved, and gives the bytes that follow.
    fn load<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Single(all) => read_floats(bytes, all),
            Self::Half(ours) => {
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
        let (at, len) = (head * PAGE * spec.head_dim, n * spec.head_dim);
        match self {
            Self::Single(all) => &all[at..at + len],
            Self::Half(bytes) => {
                scratch.resize(scratch.len().max(len), 0.0);
                let out = &mut scratch[..len];
                let stored = &bytes[2 * at..2 * (at + len)];
                (kernels.dequantize)(Format::Float(FloatType::F16), stored, &[], &[], out);
                out
            }
        }
    }
}

impl KvCache {
    pub(crate) fn new(max_positions: usize, precise: bool) -> Self {
        Self { pages: Vec::new(), len: 0, max_positions, precise }
    }

    /// Bytes of a cache that is full.
    pub(crate) fn bytes(spec: &AttentionSpec, max_positions: usize, precise: bool) -> u64 {
        let positions = max_positions.next_multiple_of(PAGE);
        let size = if precise { 4 } else { 2 };
        (2 * size * positions * spec.n_kv_heads * spec.head_dim) as u64
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
    pub(crate) fn push(&mut self, spec: &AttentionSpec, keys: &[f32], values: &[f32]) {
        let head_dim = spec.head_dim;
        assert!(self.len < self.max_positions, "the position fits the cache");
        if self.len.is_multiple_of(PAGE) {
            self.add_page(spec);
        }
        let page = self.pages.last_mut().expect("there is a page for the position");
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let at = (head * PAGE + self.len % PAGE) * head_dim;
            page.keys.write(at, key);
            page.values.write(at, value);
        }
        self.len += 1;
    }

    fn add_page(&mut self, spec: &AttentionSpec) -> &mut Page {
        let empty = || Values::new(spec.n_kv_heads * PAGE * spec.head_dim, self.precise);
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
