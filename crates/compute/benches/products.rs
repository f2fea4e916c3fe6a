//! How fast stored weights are multiplied: `cargo bench -p flash-moe-compute --bench products [-- FORMAT]`.
//!
//! For each format and number of tokens: weights read in GB/s from matrices that are together larger than
//! any cache, multiplications with additions in billions a second, and the share of what plain reading
//! of the same bytes reaches in the same moment. Medians of interleaved repeats.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::memory::Arena;
use compute::{Backend, Cpu, CpuOptions, Isa, Matrix};

const ROWS: usize = 2048;
const COLS: usize = 2048;
/// Bytes of all matrices of a format: several times the largest cache.
const TOTAL: usize = 192 << 20;
const REPEATS: usize = 7;

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let affine = |bits| Format::Affine(Affine { bits, group: 64, scales: FloatType::Bf16 });
    let formats = [
        affine(4),
        affine(8),
        affine(2),
        affine(3),
        affine(5),
        affine(6),
        Format::Block(BlockType::Q8_0),
        Format::Block(BlockType::Q4K),
        Format::Block(BlockType::Q5K),
        Format::Block(BlockType::Q6K),
        Format::Block(BlockType::Q3K),
        Format::Block(BlockType::Q2K),
        Format::Block(BlockType::Mxfp4),
        Format::Block(BlockType::Iq4Xs),
        Format::Block(BlockType::Q4_0),
        Format::Float(FloatType::Bf16),
        Format::Float(FloatType::F32),
    ];
    // FLASH_MOE_ISA=avx2 measures other instructions than the best ones.
    let name = std::env::var("FLASH_MOE_ISA").ok();
    let isa = name.map(|name| {
        let named = Isa::available().into_iter().find(|isa| isa.name() == name);
        named.unwrap_or_else(|| panic!("this machine has no {name}"))
    });
    for n_threads in [1, threads] {
        for format in formats {
            if filter.as_ref().is_none_or(|filter| format.to_string().contains(filter)) {
                measure(format, n_threads, isa);
            }
        }
    }
}

fn measure(format: Format, n_threads: usize, isa: Option<Isa>) {
    let options = CpuOptions { threads: Some(n_threads), isa, ..CpuOptions::default() };
    let mut cpu = Cpu::new(options).expect("threads");
    let bytes = ROWS * (format.row_bytes(COLS) + 2 * format.scale_row_bytes(COLS));
    let mut arena = Arena::new(TOTAL).expect("memory");
    arena.advise_huge_pages();
    let mut matrices = Vec::new();
    while let Some(mut block) = arena.take(bytes) {
        // Such bytes are finite scales in every format, and none so small that products are not normal
        // numbers, with which processors are slow.
        let bytes = block.bytes_mut().iter_mut().enumerate();
        bytes.for_each(|(i, byte)| *byte = 0x20 + (i * 7 % 31) as u8);
        let data = ROWS * format.row_bytes(COLS);
        let offsets = [0, data, data + ROWS * format.scale_row_bytes(COLS)];
        matrices.push(Matrix::new(format, (ROWS, COLS), Arc::new(block), offsets));
    }
    let mut line = format!("{n_threads} threads  {:<16}", format.to_string());
    for n_tokens in [1, 4, 16, 256] {
        let mut x = cpu.buffer(n_tokens, COLS);
        let table = float_row();
        cpu.embed(&table, &vec![0; n_tokens], &mut x);
        let mut out = cpu.buffer(n_tokens, ROWS);
        // Many tokens are bound by arithmetic: one matrix a repeat is enough.
        let count = if n_tokens < 16 { matrices.len() } else { matrices.len().min(8) };
        let (mut times, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            let begin = Instant::now();
            for matrix in &matrices[..count] {
                cpu.project(&x, &[matrix], &mut [&mut out]);
            }
            times.push(begin.elapsed());
            reads.push(read_all(&matrices, n_threads));
        }
        let seconds = median(&mut times).as_secs_f64();
        let rate = (count * bytes) as f64 / seconds / 1e9;
        let products = (count * ROWS * COLS * n_tokens) as f64 / seconds / 1e9;
        line += &match n_tokens {
            1 => {
                let limit =
                    (matrices.len() * bytes) as f64 / median(&mut reads).as_secs_f64() / 1e9;
                format!("  {rate:6.1} GB/s = {:3.0} % of reading", 100.0 * rate / limit)
            }
            _ => format!("  {n_tokens} tokens {products:6.1} G/s"),
        };
    }
    println!("{line}");
}

fn float_row() -> Matrix {
    let mut block = Arena::new(4 * COLS).expect("memory").take(4 * COLS).expect("it fits");
    for (index, bytes) in block.bytes_mut().as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *bytes = (((index * 37 % 101) as f32 - 50.0) * 0.02).to_le_bytes();
    }
    Matrix::new(Format::Float(FloatType::F32), (1, COLS), Arc::new(block), [0; 3])
}

/// Time to read all weights without doing anything with them.
fn read_all(matrices: &[Matrix], n_threads: usize) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for part in matrices.chunks(matrices.len().div_ceil(n_threads)) {
            scope.spawn(move || {
                for matrix in part {
                    let words = matrix.data().as_chunks::<256>().0;
                    let mut sums = [0_u64; 32];
                    for word in words {
                        for (sum, bytes) in sums.iter_mut().zip(word.as_chunks().0) {
                            *sum = sum.wrapping_add(u64::from_le_bytes(*bytes));
                        }
                    }
                    black_box(sums);
                }
            });
        }
    });
    begin.elapsed()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
