//! A panel times eight tokens.
//!
//! Per block of 32 columns that is 64 instructions that multiply, and everything else must be few: codes
//! of all tokens are reached from three pointers and a stride, and scales and sums of the eight tokens lie
//! together.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::cpu::integer::avx512::gemm::{
    PANEL, Panel, Place, STEPS, TILE, load_words, store_sums, transpose,
};
use crate::cpu::integer::avx512::{load_floats, load_words_16};
use crate::cpu::integer::id::Id;
use crate::cpu::integer::kind::Bias;
use crate::cpu::integer::{BLOCK, CHUNK, LANES, Rows, Tokens};

/// What a block of columns has of each token.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Block {
    scales: [f32; TILE],
    scaled_sums: [f32; TILE],
    /// Sums of the codes of each 16 columns, times what the kind wants.
    sums: [[i32; TILE]; 2],
}

/// Loads a vector of weights and multiplies it with four codes of eight tokens, which lie `s` bytes apart
/// and begin at `p`, `q = p + 3 s`, `r = p + 6 s`.
macro_rules! step {
    ($weights:literal, $codes:literal) => {
        concat!(
            "vmovdqu64 {x}, [{w} + ",
            $weights,
            "]\n",
            "vpdpbusd {a}, {x}, dword ptr [{p} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {b}, {x}, dword ptr [{p} + {s} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {c}, {x}, dword ptr [{p} + 2*{s} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {d}, {x}, dword ptr [{q} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {e}, {x}, dword ptr [{p} + 4*{s} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {f}, {x}, dword ptr [{q} + 2*{s} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {g}, {x}, dword ptr [{r} + ",
            $codes,
            "]{{1to16}}\n",
            "vpdpbusd {h}, {x}, dword ptr [{q} + 4*{s} + ",
            $codes,
            "]{{1to16}}",
        )
    };
}

/// Adds the products of half a block, four steps of four columns, to the sums of all tokens. Written as
/// instructions: left to itself the compiler loads the codes of all steps first and spills them, which
/// takes twice as long.
///
/// # Safety
/// `weights` has four vectors; sixteen bytes can be read at `codes` and at each of seven strides after it.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_products(
    weights: *const [u8; 64],
    codes: *const i8,
    stride: usize,
    sums: &mut [__m512i; TILE],
) {
    let [a, b, c, d, e, f, g, h] = sums;
    let _weights: __m512i;
    // SAFETY: reads what the caller promises, and writes registers only.
    unsafe {
        asm!(
            step!("0", "0"),
            step!("64", "4"),
            step!("128", "8"),
            step!("192", "12"),
            w = in(reg) weights,
            p = in(reg) codes,
            q = in(reg) codes.wrapping_add(3 * stride),
            r = in(reg) codes.wrapping_add(6 * stride),
            s = in(reg) stride,
            x = out(zmm_reg) _weights,
            a = inout(zmm_reg) *a,
            b = inout(zmm_reg) *b,
            c = inout(zmm_reg) *c,
            d = inout(zmm_reg) *d,
            e = inout(zmm_reg) *e,
            f = inout(zmm_reg) *f,
            g = inout(zmm_reg) *g,
            h = inout(zmm_reg) *h,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

impl Panel {
    /// Multiplies the panel with the tokens of a tile; gives their number.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
    pub(super) fn apply_tile<const ID: u8>(
        &mut self,
        rows: &Rows<'_>,
        tokens: &Tokens<'_>,
        place: Place,
        out: &mut [f32],
    ) -> usize {
        let kind = const { Id::kind(ID) };
        let tokens = tokens.rows(place.first, TILE);
        self.pack_tile::<ID>(&tokens);
        let width = tokens.n_chunks * CHUNK;
        let n_blocks = rows.cols / BLOCK;
        assert!(tokens.codes.len() == TILE * width && n_blocks * BLOCK <= width);

        let weights = &self.codes.as_chunks::<STEPS>().0[..n_blocks];
        let weight_scales = &self.scales[..n_blocks];
        let weight_biases = &self.biases[..n_blocks];
        let tile = &self.tile[..n_blocks];
        let mut lanes = [[_mm512_setzero_ps(); TILE]; LANES];
        for block in 0..n_blocks {
            let (weights, x) = (&weights[block], &tile[block]);
            let half = |half: usize, sums: &mut [__m512i; TILE]| {
                let codes = tokens.codes.as_ptr().wrapping_add(BLOCK * block + BLOCK / 2 * half);
                let weights = weights[STEPS / 2 * half..].as_ptr();
                // SAFETY: half a block has four vectors, and sixteen columns of each token.
                unsafe { add_products(weights, codes, width, sums) };
            };
            // What the zero of the codes takes away.
            let zeros = |part: usize| match kind.zero() {
                0 => [_mm512_setzero_si512(); TILE],
                _ => x.sums[part].map(|sum| _mm512_set1_epi32(sum)),
            };
            let mut isum = [_mm512_setzero_si512(); TILE];
            if kind.has_subs() {
                for part in 0..2 {
                    let mut partial = zeros(part);
                    half(part, &mut partial);
                    let subs = load_words(&self.subs[2 * block + part]);
                    for (isum, partial) in isum.iter_mut().zip(partial) {
                        *isum = _mm512_add_epi32(*isum, _mm512_mullo_epi32(partial, subs));
                    }
                }
            } else {
                isum = zeros(0);
                half(0, &mut isum);
                half(1, &mut isum);
            }
            let scales = load_floats(&weight_scales[block]);
            let biases = match kind.bias() {
                Bias::None => _mm512_setzero_ps(),
                Bias::Block | Bias::Halves => load_floats(&weight_biases[block]),
            };
            let lanes = &mut lanes[block % LANES];
            for index in 0..TILE {
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(isum[index]), scales);
                let scale = _mm512_set1_ps(x.scales[index]);
                let mut lane = _mm512_fmadd_ps(product, scale, lanes[index]);
                match kind.bias() {
                    Bias::None => {}
                    Bias::Block => {
                        let sum = _mm512_set1_ps(x.scaled_sums[index]);
                        lane = _mm512_fmadd_ps(biases, sum, lane);
                    }
                    Bias::Halves => {
                        let [low, high] = [0, 1].map(|half| {
                            let mins = load_words(&self.mins[2 * block + half]);
                            _mm512_mullo_epi32(mins, _mm512_set1_epi32(x.sums[half][index]))
                        });
                        let bsum = _mm512_cvtepi32_ps(_mm512_add_epi32(low, high));
                        lane = _mm512_fmadd_ps(biases, _mm512_mul_ps(scale, bsum), lane);
                    }
                }
                lanes[index] = lane;
            }
        }
        store_sums(lanes, rows, place, out);
        TILE
    }

    /// Puts scales and sums of eight tokens together.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,fma")]
    fn pack_tile<const ID: u8>(&mut self, tokens: &Tokens<'_>) {
        let kind = const { Id::kind(ID) };
        let n_blocks = tokens.n_chunks * LANES;
        self.tile.resize(n_blocks, Block::default());
        for (chunk, out) in self.tile.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut columns = [_mm512_setzero_si512(); PANEL];
            for index in 0..TILE {
                let at = index * n_blocks + chunk * LANES;
                let floats = |values: &[f32]| {
                    let values = values[at..].first_chunk().expect("a token has whole chunks");
                    _mm512_castps_si512(load_floats(values))
                };
                columns[index] = floats(tokens.scales);
                columns[TILE + index] = floats(tokens.scaled_sums);
            }
            transpose(&mut columns);
            for (out, values) in out.iter_mut().zip(columns) {
                // SAFETY: scales and scaled sums are 64 bytes in a row.
                unsafe { _mm512_storeu_si512(std::ptr::from_mut(out).cast(), values) };
            }
            if kind.zero() == 0 && kind.bias() != Bias::Halves {
                continue;
            }
            for index in 0..TILE {
                let at = 2 * (index * n_blocks + chunk * LANES);
                let values = tokens.sums[at..].first_chunk().expect("a token has whole chunks");
                let sums = load_words_16(values);
                let factor = if kind.zero() == 0 { 1 } else { -kind.zero() as i16 };
                let of = |low: i16, high: i16| {
                    let factors = i32::from(low) & 0xffff | i32::from(high) << 16;
                    _mm512_madd_epi16(sums, _mm512_set1_epi32(factors))
                };
                // Where each 16 columns have factors their sums are needed apart.
                let is_apart = kind.has_subs() || kind.bias() == Bias::Halves;
                columns[index] = of(factor, if is_apart { 0 } else { factor });
                columns[TILE + index] = of(0, factor);
            }
            transpose(&mut columns);
            for (out, values) in out.iter_mut().zip(columns) {
                // SAFETY: the sums are 64 bytes in a row.
                unsafe { _mm512_storeu_si512(out.sums.as_mut_ptr().cast(), values) };
            }
        }
    }
}
