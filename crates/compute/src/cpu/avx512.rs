//! Inner loops for x86-64 with AVX-512, where wider vectors change no result.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use crate::cpu::math::{Math, math};
use crate::cpu::scores::Scores;

pub(crate) static MATH: Math = math!("avx512f,avx512bw,avx512vl,avx512dq");

/// See [`crate::cpu::kernels::Kernels::weighted_sums`].
#[target_feature(enable = "avx512f,fma")]
pub(crate) fn weighted_sums(n: usize, weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let (width, n_rows) = (out.len() / n, weights.len() / n);
    // Vectors at a time share the loads of rows.
    let mut first = 0;
    while first < n {
        let count = match n - first {
            8.. => 8,
            2.. => 2,
            _ => 1,
        };
        let weights = &weights[first * n_rows..(first + count) * n_rows];
        let out = &mut out[first * width..(first + count) * width];
        match count {
            8 => some_weighted_sums::<8, 2>(weights, rows, out),
            2 => some_weighted_sums::<2, 8>(weights, rows, out),
            _ => some_weighted_sums::<1, 8>(weights, rows, out),
        }
        first += count;
    }
}

/// `N` vectors; `W` registers of each stay put while all rows pass by.
#[target_feature(enable = "avx512f,fma")]
fn some_weighted_sums<const N: usize, const W: usize>(
    weights: &[f32],
    rows: &[f32],
    out: &mut [f32],
) {
    let (width, n_rows) = (out.len() / N, weights.len() / N);
    let rows = &rows[..n_rows * width];
    let weights: [&[f32]; N] = std::array::from_fn(|i| &weights[i * n_rows..(i + 1) * n_rows]);
    let mut column = 0;
    while column + 16 * W <= width {
        let mut acc = [[_mm512_setzero_ps(); W]; N];
        for (i, acc) in acc.iter_mut().enumerate() {
            for (acc, out) in acc.iter_mut().zip(out[i * width + column..].as_chunks().0) {
                *acc = load(out);
            }
        }
        for (j, row) in rows.chunks_exact(width).enumerate() {
            let row: &[[f32; 16]; W] =
                row[column..].as_chunks().0.first_chunk().expect("the columns are there");
            let mut values = [_mm512_setzero_ps(); W];
            for (value, row) in values.iter_mut().zip(row) {
                *value = load(row);
            }
            for i in 0..N {
                let weight = _mm512_set1_ps(weights[i][j]);
                for part in 0..W {
                    acc[i][part] = _mm512_fmadd_ps(weight, values[part], acc[i][part]);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (acc, out) in acc.iter().zip(out[i * width + column..].as_chunks_mut::<16>().0) {
                // SAFETY: sixteen values are writable; the store needs no alignment.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *acc) };
            }
        }
        column += 16 * W;
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

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen values are readable; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Queries of a tile of scores.
const QUERIES: usize = 8;
/// Keys of a tile of scores.
const KEYS: usize = 4;

/// See [`crate::cpu::kernels::Kernels::scores`]. A vector holds the eight running sums of two queries.
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
pub(crate) fn scores(scores: Scores<'_>, out: &mut [f32]) {
    let Scores { keys, queries, width } = scores;
    let (n_keys, n_queries) = (keys.len() / width, queries.len() / width);
    // What fills no tile is computed as everything was before there were tiles: the bits are the same.
    let whole = width.is_multiple_of(8);
    let tiled = if whole { n_queries - n_queries % QUERIES } else { 0 };
    let tiled_keys = n_keys - n_keys % KEYS;
    for query in (0..tiled).step_by(QUERIES) {
        let queries = &queries[query * width..(query + QUERIES) * width];
        let out = &mut out[query * n_keys..(query + QUERIES) * n_keys];
        for key in (0..tiled_keys).step_by(KEYS) {
            let sums = tile(&keys[key * width..(key + KEYS) * width], queries, width);
            for (query, sums) in sums.iter().enumerate() {
                out[query * n_keys + key..][..KEYS].copy_from_slice(sums);
            }
        }
    }
    let dots = crate::cpu::avx2::KERNELS.dots;
    for (query, (x, out)) in
        queries.chunks_exact(width).zip(out.chunks_exact_mut(n_keys)).enumerate()
    {
        let done = if query < tiled { tiled_keys } else { 0 };
        dots(&keys[done * width..], x, &mut out[done..]);
    }
}

/// The products of four keys with eight queries, (query, key).
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
fn tile(keys: &[f32], queries: &[f32], width: usize) -> [[f32; KEYS]; QUERIES] {
    let n_chunks = width / 8;
    let mut keys_of: [&[[f32; 8]]; KEYS] = [&[]; KEYS];
    for (key, of) in keys_of.iter_mut().enumerate() {
        *of = &keys[key * width..].as_chunks().0[..n_chunks];
    }
    let mut queries_of: [&[[f32; 8]]; QUERIES] = [&[]; QUERIES];
    for (query, of) in queries_of.iter_mut().enumerate() {
        *of = &queries[query * width..].as_chunks().0[..n_chunks];
    }
    let mut acc = [[_mm512_setzero_ps(); KEYS]; QUERIES / 2];
    for chunk in 0..n_chunks {
        let mut key = [_mm512_setzero_ps(); KEYS];
        for index in 0..KEYS {
            key[index] = _mm512_broadcast_f32x8(load_eight(&keys_of[index][chunk]));
        }
        for pair in 0..QUERIES / 2 {
            let first = _mm512_castps256_ps512(load_eight(&queries_of[2 * pair][chunk]));
            let second = load_eight(&queries_of[2 * pair + 1][chunk]);
            let pair_of = _mm512_insertf32x8::<1>(first, second);
            for index in 0..KEYS {
                acc[pair][index] = _mm512_fmadd_ps(key[index], pair_of, acc[pair][index]);
            }
        }
    }
    let mut out = [[0.0; KEYS]; QUERIES];
    for (pair, [a, b, c, d]) in acc.into_iter().enumerate() {
        let sums = sum_pairs(a, b, c, d);
        // SAFETY: four values are writable, twice; the stores need no alignment.
        unsafe {
            _mm_storeu_ps(out[2 * pair].as_mut_ptr(), _mm512_castps512_ps128(sums));
            let second = _mm512_extractf32x4_ps::<1>(sums);
            _mm_storeu_ps(out[2 * pair + 1].as_mut_ptr(), second);
        }
    }
    out
}

/// Adds up the running sums of two queries with four keys in the order of `sum_lanes`: four results of the
/// first query, then four of the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_pairs(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    // Each quarter of these: one query and one key, halves added: a + e, b + f, c + g, d + h.
    let halves = |x: __m512, y: __m512| {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(x, y),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(x, y),
        )
    };
    let (ab, cd) = (halves(a, b), halves(c, d));
    // Two sums of a result of the first pair of keys, and two of the second.
    let quarters = _mm512_add_ps(
        _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
        _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
    );
    let sums = _mm512_add_ps(
        _mm512_permute_ps::<0b10_00_10_00>(quarters),
        _mm512_permute_ps::<0b11_01_11_01>(quarters),
    );
    // Quarters are (key 0 and 2 of query 0), the same of query 1, (key 1 and 3 of query 0), of query 1.
    let order = _mm512_setr_epi32(0, 8, 1, 9, 4, 12, 5, 13, 0, 8, 1, 9, 4, 12, 5, 13);
    _mm512_permutexvar_ps(order, sums)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_eight(values: &[f32; 8]) -> __m256 {
    // SAFETY: eight values are readable; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}
