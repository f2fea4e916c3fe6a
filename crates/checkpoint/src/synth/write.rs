//! Writing shards: headers, and tensors filled on the way to the file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, json};

use crate::codec::{QuantizedRow, encode_floats, pack_codes, quantize_affine};
use crate::format::Affine;
use crate::safetensors_file::write_header;
use crate::synth::plan::{Fill, Shape, Tensor, Values};
use crate::synth::random::Random;

/// Bytes that are filled and written at a time: they stay in cache.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Writes a file of tensors; `advance` hears of every chunk.
pub(crate) fn shard(
    path: &Path,
    shape: &Shape,
    tensors: &[Tensor],
    advance: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
    let mut end = 0;
    for part in tensors.iter().flat_map(Tensor::parts) {
        let begin = end;
        end += part.bytes();
        let entry = json!({
            "dtype": part.dtype.name(), "shape": part.shape, "data_offsets": [begin, end],
        });
        header.insert(part.name, entry);
    }
    let mut file = File::create(path)?;
    write_header(&mut file, &header)?;
    for tensor in tensors {
        fill(&mut Out { file: &mut file, advance }, shape, tensor)?;
    }
    file.sync_all()
}

/// A file with somebody who counts.
struct Out<'a> {
    file: &'a mut File,
    advance: &'a mut dyn FnMut(u64),
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        (self.advance)(bytes.len() as u64);
        Ok(())
    }

    /// Writes the same bytes again and again.
    fn repeat(&mut self, pattern: &[u8], mut bytes: u64) -> io::Result<()> {
        let chunk = pattern.repeat(CHUNK_BYTES / pattern.len());
        while bytes > 0 {
            let len = bytes.min(chunk.len() as u64);
            self.write(&chunk[..len as usize])?;
            bytes -= len;
        }
        Ok(())
    }
}

fn fill(out: &mut Out<'_>, shape: &Shape, tensor: &Tensor) -> io::Result<()> {
    let mut random = Random::new(shape.seed, &tensor.module);
    let cols = tensor.shape[tensor.shape.len() - 1];
    let parts = tensor.parts();
    match tensor.fill {
        Fill::Plain(float, values) => {
            let n = tensor.shape.iter().product();
            let values: Vec<f32> = (0..n).map(|_| value(values, &mut random)).collect();
            let mut bytes = Vec::new();
            encode_floats(float, &values, &mut bytes);
            out.write(&bytes)
        }
        Fill::Codes { affine, gain } => {
            let mut left = parts[0].bytes();
            let mut chunk = vec![0; CHUNK_BYTES];
            while left > 0 {
                let len = left.min(chunk.len() as u64) as usize;
                random.fill(&mut chunk[..len]);
                out.write(&chunk[..len])?;
                left -= len as u64;
            }
            let levels = f64::from(1 << affine.bits);
            let deviation = ((levels * levels - 1.0) / 12.0).sqrt();
            let scale = gain / (cols as f64).sqrt() / deviation;
            write_scales(out, affine, scale, (levels - 1.0) / 2.0, parts[1].bytes())
        }
        Fill::Embedding { affine } => {
            let (shift, levels) = shape.embedding_levels();
            let signs = signs(shape);
            let mut codes = vec![0; cols];
            let mut packed = Vec::with_capacity(2 * CHUNK_BYTES);
            for _ in 0..tensor.shape[0] {
                let mut held = 0_u64;
                for (col, (code, &positive)) in codes.iter_mut().zip(&signs).enumerate() {
                    if col % 4 == 0 {
                        held = random.next();
                    }
                    let noise = ((held & 0xffff) as u32 * levels) >> 16;
                    held >>= 16;
                    *code = (noise + if positive { shift } else { 0 }) as u8;
                }
                // A row is a whole number of bytes.
                pack_codes(affine.bits, &codes, &mut packed);
                if packed.len() >= CHUNK_BYTES {
                    out.write(&packed)?;
                    packed.clear();
                }
            }
            out.write(&packed)?;
            let (common, noise) = (f64::from(shift) / 2.0, f64::from(levels * levels - 1) / 12.0);
            let scale = 1.0 / (noise + common * common).sqrt();
            let centre = f64::from(levels - 1 + shift) / 2.0;
            write_scales(out, affine, scale, centre, parts[1].bytes())
        }
        Fill::Router { affine, layer } => {
            let rows = router(shape, shape.common_share(), layer, &mut random);
            let mut stored = QuantizedRow::default();
            for row in rows.chunks_exact(cols) {
                quantize_affine(affine, row, &mut stored);
            }
            for part in [&stored.data, &stored.scales, &stored.biases] {
                out.write(part)?;
            }
            Ok(())
        }
    }
}

pub(crate) fn value(values: Values, random: &mut Random) -> f32 {
    let value = match values {
        Values::Ones => 1.0,
        Values::Normal(deviation) => deviation * random.normal(),
        Values::DecayLog => random.between(1.0, 16.0).ln(),
        Values::NegativeDecay => -random.between(1.0, 16.0),
        Values::TimeStep => {
            let step = random.between(1e-3_f64.ln(), 1e-1_f64.ln()).exp();
            step.exp_m1().ln()
        }
    };
    value as f32
}

/// Writes scales and biases, all alike, such that code `centre` means zero.
fn write_scales(
    out: &mut Out<'_>,
    affine: Affine,
    scale: f64,
    centre: f64,
    bytes: u64,
) -> io::Result<()> {
    let mut pattern = Vec::new();
    encode_floats(affine.scales, &[scale as f32], &mut pattern);
    // The bias follows the scale as it is stored, so that rounding moves no mean.
    let mut stored = [0.0];
    crate::codec::decode_floats(affine.scales, &pattern, &mut stored);
    let bias = -f64::from(stored[0]) * centre;
    out.repeat(&pattern, bytes)?;
    pattern.clear();
    encode_floats(affine.scales, &[bias as f32], &mut pattern);
    out.repeat(&pattern, bytes)
}

/// The sign of every column of the direction that embeddings share.
pub(crate) fn signs(shape: &Shape) -> Vec<bool> {
    let mut random = Random::new(shape.seed, "common direction");
    (0..shape.hidden).map(|_| random.next() & 1 == 1).collect()
}

/// Router rows, (experts, hidden): noise, and popularity along the direction that embeddings share.
pub(crate) fn router(
    shape: &Shape,
    common_share: f64,
    layer: usize,
    random: &mut Random,
) -> Vec<f32> {
    let mut ranks: Vec<usize> = (1..=shape.experts).collect();
    Random::new(shape.seed, &format!("ranks of layer {layer}")).shuffle(&mut ranks);
    let popularity: Vec<f64> = ranks.iter().map(|&rank| -shape.zipf * (rank as f64).ln()).collect();
    let mean = popularity.iter().sum::<f64>() / popularity.len() as f64;
    let along = 1.0 / (shape.hidden as f64 * common_share);
    let signs = signs(shape);
    let noise = 1.0 / (shape.hidden as f64).sqrt();
    let rows = popularity.iter().flat_map(|popularity| {
        let component = (popularity - mean) * along;
        let sign = |positive: &bool| if *positive { component } else { -component };
        signs
            .iter()
            .map(|positive| (sign(positive) + noise * random.normal()) as f32)
            .collect::<Vec<_>>()
    });
    rows.collect()
}
