//! Random numbers, matrices of every format, and comparisons.

use std::sync::Arc;

use checkpoint::{
    Affine, BlockType, FloatType, Format, QuantizedRow, encode_floats, quantize_affine,
};
use compute::memory::Arena;
use compute::{Backend, Cpu, CpuOptions, Isa, KvType, Matrix, Reference};

/// A small generator of reproducible numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number in [-1, 1).
    pub fn number(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        bits as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// All formats of matrices, with a group of affine codes that fits `cols`.
pub fn formats(cols: usize) -> Vec<Format> {
    let mut formats: Vec<_> =
        [FloatType::F32, FloatType::F16, FloatType::Bf16].map(Format::Float).to_vec();
    for (bits, group, scales) in [
        (4, 64, FloatType::Bf16),
        (8, 64, FloatType::Bf16),
        (4, 32, FloatType::F16),
        (2, 32, FloatType::Bf16),
        (3, 32, FloatType::F32),
        (5, 64, FloatType::Bf16),
        (6, 128, FloatType::F16),
    ] {
        if cols.is_multiple_of(usize::from(group)) {
            formats.push(Format::Affine(Affine { bits, group, scales }));
        }
    }
    for block in [BlockType::Q8_0, BlockType::Q4K, BlockType::Q6K, BlockType::Mxfp4] {
        if cols.is_multiple_of(block.values()) {
            formats.push(Format::Block(block));
        }
    }
    formats
}

/// A random matrix, at odd places of its block.
pub fn matrix(random: &mut Random, format: Format, rows: usize, cols: usize) -> Matrix {
    let mut stored = QuantizedRow::default();
    for _ in 0..rows {
        let row = random.numbers(cols);
        match format {
            Format::Float(float) => encode_floats(float, &row, &mut stored.data),
            Format::Block(_) => {
                // Any bytes are a block; small scales keep products small.
                let bytes = random.numbers(format.row_bytes(cols));
                stored.data.extend(bytes.iter().map(|x| (x.abs() * 32.0) as u8));
            }
            Format::Affine(affine) => {
                // Rows are packed one by one: a row is a whole number of bytes.
                let mut one = QuantizedRow::default();
                quantize_affine(affine, &row, &mut one);
                stored.data.extend(one.data);
                stored.scales.extend(one.scales);
                stored.biases.extend(one.biases);
            }
        }
    }
    let mut bytes = vec![0xff; 3];
    let mut offsets = [0; 3];
    for (part, offset) in [stored.data, stored.scales, stored.biases].iter().zip(&mut offsets) {
        *offset = bytes.len();
        bytes.extend(part);
        bytes.push(0xff);
    }
    let mut arena = Arena::new(bytes.len()).expect("memory");
    let mut block = arena.take(bytes.len()).expect("it was sized for it");
    block.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
    Matrix::new(format, (rows, cols), Arc::new(block), offsets)
}

/// A matrix on a backend's device.
pub fn on<B: Backend>(backend: &B, matrix: &Matrix) -> B::Matrix {
    backend.matrix(matrix).expect("the backend takes the format")
}

/// A buffer of a backend with the given rows.
pub fn upload<B: Backend>(backend: &mut B, values: &[f32], width: usize) -> B::Buffer {
    // Identity rows of a plain matrix are the only way into a buffer that every backend has.
    let rows = values.len() / width;
    let mut bytes = Vec::new();
    encode_floats(FloatType::F32, values, &mut bytes);
    let mut arena = Arena::new(bytes.len()).expect("memory");
    let mut block = arena.take(bytes.len()).expect("it was sized for it");
    block.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
    let format = Format::Float(FloatType::F32);
    let table = Matrix::new(format, (rows, width), Arc::new(block), [0; 3]);
    let mut buffer = backend.buffer(rows, width);
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let table = on(backend, &table);
    backend.embed(&table, &tokens, &mut buffer);
    buffer
}

/// A backend whose buffers can be filled with rows of any width.
pub trait Upload: Backend + Sized {
    /// A buffer with the given rows.
    fn upload(&mut self, values: &[f32], width: usize) -> Self::Buffer {
        upload(self, values, width)
    }
}

impl Upload for Cpu {}
impl Upload for Reference {}

pub fn download<B: Backend>(backend: &mut B, buffer: &B::Buffer) -> Vec<f32> {
    let mut values = Vec::new();
    backend.download(buffer, &mut values);
    values
}

/// Every format of low-bit codes that is multiplied as it is stored and whose groups fit `cols`.
pub fn code_formats(cols: usize) -> Vec<Format> {
    let blocks = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Iq4Nl,
        BlockType::Mxfp4,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Iq4Xs,
    ];
    let groups = [(32, FloatType::F16), (64, FloatType::Bf16), (128, FloatType::F32)];
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
        groups.map(|(group, scales)| Format::Affine(Affine { bits, group, scales }))
    });
    let formats = blocks.into_iter().map(Format::Block).chain(affine);
    formats.filter(|format| cols.is_multiple_of(format.group())).collect()
}

/// The CPU backend in every form that this machine has, with activations in `f32`.
pub fn cpus() -> Vec<Cpu> {
    let options = CpuOptions { precise: true, ..CpuOptions::default() };
    cpus_of(&isas_of_floats(), &options)
}

/// The CPU backend in every form that this machine has, as it is by default.
pub fn fast_cpus() -> Vec<Cpu> {
    cpus_of(&Isa::available(), &CpuOptions::default())
}

/// The same with keys and values in blocks of eight bits.
pub fn cpus_with_q8_0() -> Vec<Cpu> {
    let options = CpuOptions { kv_type: Some(KvType::Q8_0), ..CpuOptions::default() };
    cpus_of(&isas_of_floats(), &options)
}

/// Without those that differ in products of integers only.
fn isas_of_floats() -> Vec<Isa> {
    let mut isas = Isa::available();
    isas.retain(|isa| !matches!(isa, Isa::AvxVnni | Isa::NeonDotprod | Isa::NeonI8mm));
    isas
}

fn cpus_of(isas: &[Isa], options: &CpuOptions) -> Vec<Cpu> {
    // An emulator is slow, and what threads do does not depend on the instructions.
    let is_emulated = std::env::var_os("FLASH_MOE_EMULATED").is_some();
    let threads: &[usize] = if is_emulated { &[3] } else { &[1, 3] };
    let forms = isas.iter().flat_map(|isa| threads.iter().map(|&threads| (*isa, threads)));
    let cpus = forms.map(|(isa, threads)| {
        let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..options.clone() };
        Cpu::new(options).expect("the instructions are available")
    });
    cpus.collect()
}

#[track_caller]
pub fn assert_close(ours: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}: lengths");
    for (index, (a, b)) in ours.iter().zip(expected).enumerate() {
        let allowed = tolerance * b.abs().max(1.0);
        assert!((a - b).abs() <= allowed, "{what}: {a} instead of {b} at {index}");
    }
}
