//! Inner loops for x86-64 with AVX2, FMA and F16C.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use checkpoint::{Affine, BlockType, FloatType, Format};

use crate::cpu::integer;
use crate::cpu::kernels::{Isa, Kernels, TILE_ROWS, Tile, TileSums};
use crate::cpu::math::{Math, math};
use crate::cpu::scores::by_tiles;

static MATH: Math = math!("avx2,fma");

/// Only given out by `Kernels::of` where the features were detected. Plain floating-point loops are
/// those of AVX2: eight running sums define their results.
pub(crate) static AVX512_KERNELS: Kernels = Kernels {
    isa: Isa::Avx512,
    math: &crate::cpu::avx512::MATH,
    quantize: |x, out| {
        // SAFETY: this table is only used where AVX-512 is available.
        unsafe { integer::avx512::quantize(x, out) }
    },
    multiply: |rows, tokens, out| {
        // SAFETY: this table is only used where AVX-512 is available.
        unsafe { integer::avx512::multiply(rows, tokens, out) }
    },
    scores: |scores, out| {
        // SAFETY: this table is only used where AVX-512 is available.
        unsafe { crate::cpu::avx512::scores(scores, out) }
    },
    weighted_sums: |n, weights, rows, out| {
        // SAFETY: this table is only used where AVX-512 is available.
        unsafe { crate::cpu::avx512::weighted_sums(n, weights, rows, out) }
    },
    ..KERNELS
};

/// Only given out by `Kernels::of` where the features were detected.
pub(crate) static VNNI_KERNELS: Kernels = Kernels {
    isa: Isa::AvxVnni,
    multiply: |rows, tokens, out| {
        // SAFETY: this table is only used where AVX2, FMA, F16C and AVX-VNNI are available.
        unsafe { integer::avx2::multiply_vnni(rows, tokens, out) }
    },
    ..KERNELS
};

/// Only given out by `Kernels::of` where the features were detected.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    math: &MATH,
    quantize: |x, out| {
        // SAFETY: this table is only used where AVX2 and FMA are available.
        unsafe { integer::avx2::quantize(x, out) }
    },
    multiply: |rows, tokens, out| {
        // SAFETY: this table is only used where AVX2, FMA and F16C are available.
        unsafe { integer::avx2::multiply(rows, tokens, out) }
    },
    dot_tile: |tile, sums| {
        // SAFETY: this table is only used where AVX2 and FMA are available.
        unsafe { dot_tile(tile, sums) }
    },
    dequantize: |format, data, scales, biases, out| {
        // SAFETY: this table is only used where AVX2, FMA and F16C are available.
        unsafe { dequantize(format, data, scales, biases, out) }
    },
    dot_floats: |float, rows, x, out| {
        // SAFETY: this table is only used where AVX2, FMA and F16C are available.
        unsafe {
            match float {
                FloatType::F32 => dot_floats::<4>(rows, x, out, |bytes| load_f32(bytes)),
                FloatType::F16 => dot_floats::<2>(rows, x, out, |bytes| load_f16(bytes)),
                FloatType::Bf16 => dot_floats::<2>(rows, x, out, |bytes| load_bf16(bytes)),
            }
        }
    },
    dot: |x, y| {
        // SAFETY: this table is only used where AVX2 and FMA are available.
        unsafe { dot(x, y) }
    },
    dots: |rows, x, out| {
        // SAFETY: this table is only used where AVX2 and FMA are available.
        unsafe { dots(rows, x, out) }
    },
    scores: |scores, out| {
        // SAFETY: this table is only used where AVX2 and FMA are available.
        by_tiles(scores, |tile, sums| unsafe { dot_tile(tile, sums) }, out);
    },
    weighted_sums: |n, weights, rows, out| {
        // SAFETY: this table is only used where AVX2 and FMA are available.
        unsafe { weighted_sums(n, weights, rows, out) }
    },
};

#[target_feature(enable = "avx2,fma")]
fn load(values: &[f32; 8]) -> __m256 {
    // SAFETY: eight values are readable; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx2,fma")]
fn store(out: &mut [f32; 8], values: __m256) {
    // SAFETY: eight values are writable; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) }
}

/// Fewer than eight values, and zeros behind them.
fn padded(values: &[f32]) -> [f32; 8] {
    let mut padded = [0.0; 8];
    padded[..values.len()].copy_from_slice(values);
    padded
}

#[target_feature(enable = "avx2,fma")]
fn dot_tile(tile: Tile<'_>, sums: &mut TileSums) {
    // The shapes are compiled apart, so that all running sums stay in registers.
    match (tile.n_rows, tile.n_tokens) {
        (4, 3) => dot_tile_of::<4, 3>(tile, sums),
        (4, 2) => dot_tile_of::<4, 2>(tile, sums),
        (4, 1) => dot_tile_of::<4, 1>(tile, sums),
        (rows, tokens) => {
            for token in 0..tokens {
                for row in 0..rows {
                    let one = Tile {
                        weights: &tile.weights[row * tile.weight_stride..],
                        tokens: &tile.tokens[token * tile.token_stride..],
                        n_rows: 1,
                        n_tokens: 1,
                        ..tile
                    };
                    let index = token * TILE_ROWS + row;
                    let mut one_sums = TileSums::default();
                    one_sums[0] = sums[index];
                    dot_tile_of::<1, 1>(one, &mut one_sums);
                    sums[index] = one_sums[0];
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn dot_tile_of<const ROWS: usize, const TOKENS: usize>(tile: Tile<'_>, sums: &mut TileSums) {
    let weights: [(&[[f32; 8]], &[f32]); ROWS] = std::array::from_fn(|row| {
        tile.weights[row * tile.weight_stride..][..tile.cols].as_chunks()
    });
    let tokens: [(&[[f32; 8]], &[f32]); TOKENS] = std::array::from_fn(|token| {
        tile.tokens[token * tile.token_stride..][..tile.cols].as_chunks()
    });
    let mut acc = [[_mm256_setzero_ps(); ROWS]; TOKENS];
    for (token, acc) in acc.iter_mut().enumerate() {
        for (row, acc) in acc.iter_mut().enumerate() {
            *acc = load(&sums[token * TILE_ROWS + row]);
        }
    }
    let n_chunks = tile.cols / 8;
    // Equal lengths, so that the loop below has no bounds checks.
    let weight_chunks: [&[[f32; 8]]; ROWS] = std::array::from_fn(|row| &weights[row].0[..n_chunks]);
    let token_chunks: [&[[f32; 8]]; TOKENS] = std::array::from_fn(|t| &tokens[t].0[..n_chunks]);
    for chunk in 0..n_chunks {
        let mut x = [_mm256_setzero_ps(); TOKENS];
        for token in 0..TOKENS {
            x[token] = load(&token_chunks[token][chunk]);
        }
        for row in 0..ROWS {
            let w = load(&weight_chunks[row][chunk]);
            for token in 0..TOKENS {
                acc[token][row] = _mm256_fmadd_ps(w, x[token], acc[token][row]);
            }
        }
    }
    if !tile.cols.is_multiple_of(8) {
        for token in 0..TOKENS {
            let x = load(&padded(tokens[token].1));
            for row in 0..ROWS {
                let w = load(&padded(weights[row].1));
                acc[token][row] = _mm256_fmadd_ps(w, x, acc[token][row]);
            }
        }
    }
    for (token, acc) in acc.iter().enumerate() {
        for (row, acc) in acc.iter().enumerate() {
            store(&mut sums[token * TILE_ROWS + row], *acc);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_tail) = x.as_chunks::<8>();
    let (y, y_tail) = y.as_chunks::<8>();
    let mut acc = _mm256_setzero_ps();
    for (x, y) in x.iter().zip(y) {
        acc = _mm256_fmadd_ps(load(x), load(y), acc);
    }
    if !x_tail.is_empty() {
        acc = _mm256_fmadd_ps(load(&padded(x_tail)), load(&padded(y_tail)), acc);
    }
    sum(acc)
}

/// Four rows at a time share the loads of x and hide the latency of each other's additions. `load_eight`
/// reads eight values of `SIZE` bytes.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_floats<const SIZE: usize>(
    rows: &[u8],
    x: &[f32],
    out: &mut [f32],
    load_eight: impl Fn(&[u8]) -> __m256,
) {
    let row_bytes = x.len() * SIZE;
    let (x_chunks, x_tail) = x.as_chunks::<8>();
    let x_padded = load(&padded(x_tail));
    for (out, rows) in out.chunks_mut(4).zip(rows.chunks(4 * row_bytes)) {
        // A missing row repeats the last one.
        let last = out.len() - 1;
        let rows: [&[u8]; 4] =
            std::array::from_fn(|row| &rows[row.min(last) * row_bytes..][..row_bytes]);
        let mut acc = [_mm256_setzero_ps(); 4];
        for (index, x) in x_chunks.iter().enumerate() {
            let x = load(x);
            for row in 0..4 {
                let weights = load_eight(&rows[row][8 * SIZE * index..][..8 * SIZE]);
                acc[row] = _mm256_fmadd_ps(weights, x, acc[row]);
            }
        }
        if !x_tail.is_empty() {
            for row in 0..4 {
                let mut tail = [0; 32];
                let stored = &rows[row][8 * SIZE * x_chunks.len()..];
                tail[..stored.len()].copy_from_slice(stored);
                acc[row] = _mm256_fmadd_ps(load_eight(&tail[..8 * SIZE]), x_padded, acc[row]);
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = sum(acc);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(bytes: &[u8]) -> __m256 {
    let bytes: &[u8; 32] = bytes.first_chunk().expect("eight values");
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(bytes: &[u8]) -> __m256 {
    let bytes: &[u8; 16] = bytes.first_chunk().expect("eight values");
    // SAFETY: sixteen bytes are readable; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bf16(bytes: &[u8]) -> __m256 {
    let bytes: &[u8; 16] = bytes.first_chunk().expect("eight values");
    // SAFETY: sixteen bytes are readable; the load needs no alignment.
    let halves = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// Adds up running sums in the order of `sum_lanes`.
#[target_feature(enable = "avx2,fma")]
fn sum(lanes: __m256) -> f32 {
    let halves = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let quarters = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    _mm_cvtss_f32(_mm_add_ss(quarters, _mm_shuffle_ps::<1>(quarters, quarters)))
}

#[target_feature(enable = "avx2,fma")]
fn dots(rows: &[f32], x: &[f32], out: &mut [f32]) {
    // Four rows at a time share the loads of x and hide the latency of each other's additions.
    let (outs, rest) = out.as_chunks_mut::<4>();
    let (x_chunks, x_tail) = x.as_chunks::<8>();
    let mut groups = rows.chunks_exact(4 * x.len());
    for (out, rows) in outs.iter_mut().zip(&mut groups) {
        let rows: [&[f32]; 4] = std::array::from_fn(|row| &rows[row * x.len()..][..x.len()]);
        let chunks = rows.map(|row| &row.as_chunks::<8>().0[..x_chunks.len()]);
        let mut acc = [_mm256_setzero_ps(); 4];
        for (index, x) in x_chunks.iter().enumerate() {
            let x = load(x);
            for row in 0..4 {
                acc[row] = _mm256_fmadd_ps(load(&chunks[row][index]), x, acc[row]);
            }
        }
        for row in 0..4 {
            if !x_tail.is_empty() {
                let tail = load(&padded(rows[row].as_chunks::<8>().1));
                acc[row] = _mm256_fmadd_ps(tail, load(&padded(x_tail)), acc[row]);
            }
            out[row] = sum(acc[row]);
        }
    }
    for (out, row) in rest.iter_mut().zip(groups.remainder().chunks_exact(x.len())) {
        *out = dot(row, x);
    }
}

#[target_feature(enable = "avx2,fma")]
fn weighted_sums(n: usize, weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let (width, n_rows) = (out.len() / n, weights.len() / n);
    // Vectors at a time share the loads of rows.
    let mut first = 0;
    while first < n {
        let count = if n - first >= 4 { 4 } else { 1 };
        let weights = &weights[first * n_rows..(first + count) * n_rows];
        let out = &mut out[first * width..(first + count) * width];
        match count {
            4 => some_weighted_sums::<4, 2>(weights, rows, out),
            _ => some_weighted_sums::<1, 4>(weights, rows, out),
        }
        first += count;
    }
}

/// `N` vectors; `W` registers of each stay put while all rows pass by.
#[target_feature(enable = "avx2,fma")]
fn some_weighted_sums<const N: usize, const W: usize>(
    weights: &[f32],
    rows: &[f32],
    out: &mut [f32],
) {
    let (width, n_rows) = (out.len() / N, weights.len() / N);
    let rows = &rows[..n_rows * width];
    let weights: [&[f32]; N] = std::array::from_fn(|i| &weights[i * n_rows..(i + 1) * n_rows]);
    let mut column = 0;
    while column + 8 * W <= width {
        let mut acc = [[_mm256_setzero_ps(); W]; N];
        for (i, acc) in acc.iter_mut().enumerate() {
            let out = out[i * width + column..].as_chunks::<8>().0;
            for (acc, out) in acc.iter_mut().zip(out) {
                *acc = load(out);
            }
        }
        for (j, row) in rows.chunks_exact(width).enumerate() {
            let row: &[[f32; 8]; W] =
                row[column..].as_chunks().0.first_chunk().expect("the columns are there");
            for i in 0..N {
                let weight = _mm256_set1_ps(weights[i][j]);
                for part in 0..W {
                    acc[i][part] = _mm256_fmadd_ps(weight, load(&row[part]), acc[i][part]);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            let out = out[i * width + column..].as_chunks_mut::<8>().0;
            for (acc, out) in acc.iter().zip(out) {
                store(out, *acc);
            }
        }
        column += 8 * W;
    }
    for (i, weights) in weights.iter().enumerate() {
        for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            let out = &mut out[i * width + column..(i + 1) * width];
            for (out, value) in out.iter_mut().zip(&row[column..]) {
                *out = weight.mul_add(*value, *out);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize(format: Format, data: &[u8], scales: &[u8], biases: &[u8], out: &mut [f32]) {
    match format {
        Format::Float(FloatType::F32) => {
            checkpoint::decode_floats(FloatType::F32, data, out);
        }
        Format::Float(FloatType::Bf16) => decode_bf16(data, out),
        Format::Float(FloatType::F16) => decode_f16(data, out),
        Format::Block(BlockType::Q8_0) => decode_q8_0(data, out),
        Format::Block(_) => checkpoint::dequantize_row(format, data, scales, biases, out),
        Format::Affine(affine) => match affine.bits {
            2 => affine_groups::<2>(affine, data, scales, biases, out),
            3 => affine_groups::<3>(affine, data, scales, biases, out),
            4 => affine_groups::<4>(affine, data, scales, biases, out),
            5 => affine_groups::<5>(affine, data, scales, biases, out),
            6 => affine_groups::<6>(affine, data, scales, biases, out),
            _ => affine_groups::<8>(affine, data, scales, biases, out),
        },
    }
}

#[target_feature(enable = "avx2,fma")]
fn decode_bf16(data: &[u8], out: &mut [f32]) {
    let (groups, tail) = data.as_chunks::<16>();
    let (outs, out_tail) = out.as_chunks_mut::<8>();
    for (group, out) in groups.iter().zip(outs) {
        // SAFETY: sixteen bytes are readable; the load needs no alignment.
        let halves = unsafe { _mm_loadu_si128(group.as_ptr().cast()) };
        let words = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves));
        store(out, _mm256_castsi256_ps(words));
    }
    checkpoint::decode_floats(FloatType::Bf16, tail, out_tail);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode_f16(data: &[u8], out: &mut [f32]) {
    let (groups, tail) = data.as_chunks::<16>();
    let (outs, out_tail) = out.as_chunks_mut::<8>();
    for (group, out) in groups.iter().zip(outs) {
        // SAFETY: sixteen bytes are readable; the load needs no alignment.
        let halves = unsafe { _mm_loadu_si128(group.as_ptr().cast()) };
        store(out, _mm256_cvtph_ps(halves));
    }
    checkpoint::decode_floats(FloatType::F16, tail, out_tail);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode_q8_0(data: &[u8], out: &mut [f32]) {
    let blocks = data.as_chunks::<{ BlockType::Q8_0.bytes() }>().0;
    let outs = out.as_chunks_mut::<{ BlockType::Q8_0.values() }>().0;
    for (block, out) in blocks.iter().zip(outs) {
        let ([low, high], codes) = block.split_first_chunk().expect("a scale comes first");
        let scale = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes([*low, *high])));
        let scale = _mm256_broadcastss_ps(_mm_cvtph_ps(scale));
        for (codes, out) in codes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            let codes = _mm_cvtsi64_si128(i64::from_le_bytes(*codes));
            let values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
            store(out, _mm256_mul_ps(scale, values));
        }
    }
}

/// Decodes groups of affine codes: `scale * q + bias`, rounded once.
#[target_feature(enable = "avx2,fma")]
fn affine_groups<const BITS: usize>(
    affine: Affine,
    data: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [f32],
) {
    let (group, size) = (usize::from(affine.group), affine.scales.size());
    let scales = scales.chunks_exact(size).zip(biases.chunks_exact(size));
    let groups = data.chunks_exact(group * BITS / 8).zip(out.chunks_exact_mut(group));
    for ((scale, bias), (codes, out)) in scales.zip(groups) {
        let mut pair = [0.0; 2];
        checkpoint::decode_floats(affine.scales, scale, &mut pair[..1]);
        checkpoint::decode_floats(affine.scales, bias, &mut pair[1..]);
        let (scale, bias) = (_mm256_set1_ps(pair[0]), _mm256_set1_ps(pair[1]));
        let value = |codes: __m256i| _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, bias);
        let (out, _) = out.as_chunks_mut::<8>();
        if BITS == 4 {
            for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<2>().0) {
                let [low, high] = unpack_nibbles(codes);
                store(&mut out[0], value(low));
                store(&mut out[1], value(high));
            }
        } else {
            for (codes, out) in codes.chunks_exact(BITS).zip(out) {
                store(out, value(unpack_eight::<BITS>(codes)));
            }
        }
    }
}

/// Sixteen codes of four bits, low nibble first.
#[target_feature(enable = "avx2,fma")]
fn unpack_nibbles(codes: &[u8; 8]) -> [__m256i; 2] {
    let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(*codes));
    let mask = _mm_set1_epi8(15);
    let low = _mm_and_si128(bytes, mask);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
    let nibbles = _mm_unpacklo_epi8(low, high);
    [_mm256_cvtepu8_epi32(nibbles), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(nibbles))]
}

/// Eight codes of any width up to eight bits: two halves of four codes fit 32 bits each.
#[target_feature(enable = "avx2,fma")]
fn unpack_eight<const BITS: usize>(codes: &[u8]) -> __m256i {
    let mut bytes = [0; 8];
    bytes[..BITS].copy_from_slice(codes);
    let stream = u64::from_le_bytes(bytes);
    let (low, high) = (stream as i32, (stream >> (4 * BITS)) as i32);
    let halves = _mm256_set_m128i(_mm_set1_epi32(high), _mm_set1_epi32(low));
    let bits = BITS as i32;
    let shifts = _mm256_setr_epi32(0, bits, 2 * bits, 3 * bits, 0, bits, 2 * bits, 3 * bits);
    _mm256_and_si256(_mm256_srlv_epi32(halves, shifts), _mm256_set1_epi32((1 << bits) - 1))
}
