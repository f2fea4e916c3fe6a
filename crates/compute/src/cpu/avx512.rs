//! Inner loops for x86-64 with AVX-512, where wider vectors change no result.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

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
