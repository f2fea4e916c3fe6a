//! Stored formats on the device: which kernel text decodes them, and how their bytes lie there.
//!
//! Most formats lie as they are stored. Where the blocks of a GGUF file are not whole words long, codes and
//! scales are laid apart: the same bytes in another order, so that a lane reads sixteen at once.

use std::borrow::Cow;

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::{Matrix, MatrixShape};

/// Columns that a lane decodes at a time.
pub(crate) const UNIT: usize = 32;

/// How a kernel decodes a format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder {
    /// The text that defines `read_unit`, and `bytes_of` or `half_of`.
    text: &'static str,
    /// Whether weights are low-bit codes, which the text gives as bytes.
    has_bytes: bool,
    /// How bytes lie in words: see `weights.wgsl`.
    order: u32,
    /// Quads of a unit as it is read: see `weights.wgsl`.
    pub(crate) stored_quads: u32,
    /// The constants that it is a template of.
    pub(crate) constants: [(&'static str, u32); 4],
}

/// How activations are held for products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// In 32-bit floats.
    Numbers,
    /// In eight bits, with bytes in the order of those of the weights: see `weights.wgsl`.
    Bytes { order: u32 },
}

impl Held {
    /// The constants of kernels that tell it.
    pub(crate) fn constants(self) -> [(&'static str, u32); 2] {
        let (holds_bytes, order) = match self {
            Self::Numbers => (0, 1),
            Self::Bytes { order } => (1, order),
        };
        [("HOLDS_BYTES", holds_bytes), ("HELD_ORDER", order)]
    }
}

/// The parts of a matrix in the order of the device, each with its own beginning.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    pub(crate) parts: [Cow<'a, [u8]>; 3],
}

const AFFINE: &str = include_str!("kernels/formats/affine.wgsl");
const FLOAT: &str = include_str!("kernels/formats/float.wgsl");
const Q8_0: &str = include_str!("kernels/formats/q8_0.wgsl");
const K4_K5: &str = include_str!("kernels/formats/k4_k5.wgsl");
const K6: &str = include_str!("kernels/formats/k6.wgsl");
const MXFP4: &str = include_str!("kernels/formats/mxfp4.wgsl");
const EXPAND: &str = include_str!("kernels/expand.wgsl");
const NUMBERS: &str = include_str!("kernels/numbers.wgsl");
const INTEGERS: &str = include_str!("kernels/integers.wgsl");

fn scales_number(dtype: FloatType) -> u32 {
    match dtype {
        FloatType::Bf16 => 0,
        FloatType::F16 => 1,
        FloatType::F32 => 2,
    }
}

impl Decoder {
    /// The constant that tells [`Self::stored_quads`].
    pub(crate) fn quads(self) -> (&'static str, u32) {
        ("STORED_QUADS", self.stored_quads)
    }

    /// The text that gives weights as numbers.
    pub(crate) fn numbers(self) -> String {
        [self.text, if self.has_bytes { EXPAND } else { "" }].concat()
    }

    /// How activations are held for it: for low-bit codes in eight bits, unless what is computed is precise.
    pub(crate) fn held(self, is_precise: bool) -> Held {
        match self.has_bytes && !is_precise {
            true => Held::Bytes { order: self.order },
            false => Held::Numbers,
        }
    }

    /// The text that defines what products need: `read_unit`, `weights_of`, `held_of`, `multiply`.
    pub(crate) fn products(self, is_precise: bool) -> String {
        match self.held(is_precise) {
            Held::Bytes { .. } => [self.text, INTEGERS].concat(),
            Held::Numbers => self.numbers() + NUMBERS,
        }
    }

    /// The text of products, one that uses it, and the constants, all by other names: to stand beside another format.
    pub(crate) fn by_other_names(self, is_precise: bool, user: &str) -> String {
        let text = self.products(is_precise) + user;
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name_of = |rest: &'_ str| rest.split(|c| !is_part(c)).next().unwrap_or_default().len();
        let declared = ["fn ", "const ", "struct ", "alias "]
            .into_iter()
            .flat_map(|word| text.split(word).skip(1));
        let declared = declared.map(|rest| &rest[..name_of(rest)]);
        let names: Vec<&str> =
            declared.chain(self.constants.iter().map(|(name, _)| *name)).collect();
        let constants =
            self.constants.map(|(name, value)| format!("const other_{name}: u32 = {value}u;\n"));
        let mut out = constants.concat();
        for word in text.split_inclusive(|c| !is_part(c)) {
            let name = word.trim_end_matches(|c| !is_part(c));
            out.push_str(if names.contains(&name) { "other_" } else { "" });
            out.push_str(word);
        }
        out
    }
}

/// The decoder of a format of weights that are on a device: that there is one was checked when they were loaded.
pub(crate) fn decoder_of(format: Format) -> Decoder {
    decoder(format).expect("formats were checked when weights were loaded")
}

/// How kernels decode a format; `None` if none does.
pub(crate) fn decoder(format: Format) -> Option<Decoder> {
    let (text, stored_quads, bits, group, scales) = match format {
        Format::Affine(Affine { bits, group, scales }) => {
            (AFFINE, 3, u32::from(bits), u32::from(group), scales_number(scales))
        }
        Format::Float(dtype) => (FLOAT, 8, 0, 0, scales_number(dtype)),
        Format::Block(BlockType::Q8_0) => (Q8_0, 3, 8, 0, 0),
        Format::Block(BlockType::Q4K) => (K4_K5, 5, 4, 9, 0),
        Format::Block(BlockType::Q5K) => (K4_K5, 5, 5, 11, 0),
        Format::Block(BlockType::Q6K) => (K6, 5, 6, 0, 0),
        Format::Block(BlockType::Mxfp4) => (MXFP4, 2, 4, 0, 0),
        Format::Block(_) => return None,
    };
    let group_name = if text == K4_K5 { "BLOCK_QUADS" } else { "GROUP" };
    // Codes of 4 and 2 bits of MLX are neighbours in a byte.
    let order = match format {
        Format::Affine(Affine { bits: bits @ (2 | 4), .. }) => 8 / u32::from(bits),
        _ => 1,
    };
    let constants = [("BITS", bits), (group_name, group), ("SCALES", scales), ("ORDER", order)];
    let has_bytes = !matches!(format, Format::Float(_));
    Some(Decoder { text, has_bytes, order, stored_quads, constants })
}

/// Bytes of the parts of a matrix on the device.
pub(crate) fn part_bytes(format: Format, rows: usize, cols: usize) -> [usize; 3] {
    let units = cols.div_ceil(UNIT);
    match format {
        Format::Float(dtype) => [rows * units * UNIT * dtype.size(), 0, 0],
        Format::Affine(_) => {
            let scales = rows * format.scale_row_bytes(cols);
            [rows * format.row_bytes(cols), scales, scales]
        }
        Format::Block(block) => {
            let blocks = rows * cols / block.values();
            let apart = apart(block).map_or(0, |range| range.len());
            [blocks * (block.bytes() - apart), blocks * apart, 0]
        }
    }
}

/// The bytes of a block that are laid apart.
fn apart(block: BlockType) -> Option<std::ops::Range<usize>> {
    match block {
        BlockType::Q8_0 => Some(0..2),
        BlockType::Q6K => Some(208..210),
        BlockType::Mxfp4 => Some(0..1),
        _ => None,
    }
}

/// Whether kernels can read a matrix as it is stored, at such places in memory: MLX affine, Q4_K, Q5_K, and floats
/// whose rows are whole units.
pub(crate) fn is_read_in_place(shape: MatrixShape, places: [u64; 3]) -> bool {
    let is_stored_so = match shape.format {
        Format::Affine(_) => true,
        Format::Float(_) => shape.cols.is_multiple_of(UNIT),
        Format::Block(block) => apart(block).is_none(),
    };
    // Codes are read four words at a time.
    is_stored_so && places.iter().zip([16, 4, 4]).all(|(place, unit)| place.is_multiple_of(unit))
}

/// The bytes of a matrix in the order of the device.
pub(crate) fn pack(matrix: &Matrix) -> Packed<'_> {
    let empty = Cow::Borrowed(&[][..]);
    let data = matrix.data();
    let parts = match matrix.format {
        Format::Affine(_) => [data, matrix.scales(), matrix.biases()].map(Cow::Borrowed),
        Format::Float(dtype) if matrix.cols.is_multiple_of(UNIT) => {
            let _ = dtype;
            [Cow::Borrowed(data), empty.clone(), empty]
        }
        Format::Float(dtype) => {
            let (stored, padded) =
                (matrix.cols * dtype.size(), matrix.cols.next_multiple_of(UNIT) * dtype.size());
            let mut out = vec![0; matrix.rows * padded];
            for (out, row) in out.chunks_exact_mut(padded).zip(data.chunks_exact(stored)) {
                out[..stored].copy_from_slice(row);
            }
            [Cow::Owned(out), empty.clone(), empty]
        }
        Format::Block(block) => match apart(block) {
            None => [Cow::Borrowed(data), empty.clone(), empty],
            Some(range) => {
                let blocks = data.len() / block.bytes();
                let mut codes = Vec::with_capacity(blocks * (block.bytes() - range.len()));
                let mut scales = Vec::with_capacity(blocks * range.len());
                for block in data.chunks_exact(block.bytes()) {
                    codes.extend_from_slice(&block[..range.start]);
                    codes.extend_from_slice(&block[range.end..]);
                    scales.extend_from_slice(&block[range.clone()]);
                }
                [Cow::Owned(codes), Cow::Owned(scales), empty]
            }
        },
    };
    Packed { parts }
}
