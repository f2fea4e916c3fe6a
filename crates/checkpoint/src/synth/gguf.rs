//! Synthetic GGUF files: the names, types and layout of the llama.cpp converter.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use half::f16;

use crate::blocks::BlockType;
use crate::synth::plan::{Shape, Values};
use crate::synth::random::Random;
use crate::synth::tokenizer::{CHAT_TEMPLATE, MERGED, N_CONTROL_TOKENS, tokens};
use crate::synth::write::{CHUNK_BYTES, router, signs, value};

const ALIGNMENT: usize = 32;
/// Noise of embeddings, in steps of their scale, and the part that all have in common.
const NOISE: i32 = 90;
const COMMON: i32 = 26;

/// A tensor: its dimensions, outermost first, and what fills it.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

enum Fill {
    /// Random blocks; a row's product with numbers of order one has standard deviation `gain`.
    Blocks(BlockType, f64),
    Embedding,
    Router(usize),
    Plain(Values),
}

impl Tensor {
    fn bytes(&self) -> usize {
        let values: usize = self.shape.iter().product();
        match self.fill {
            Fill::Blocks(block, _) => values / block.values() * block.bytes(),
            Fill::Embedding => values / 32 * BlockType::Q8_0.bytes(),
            Fill::Router(_) | Fill::Plain(_) => 4 * values,
        }
    }

    fn padded_bytes(&self) -> usize {
        self.bytes().next_multiple_of(ALIGNMENT)
    }

    /// The number of its type in GGUF files.
    fn kind(&self) -> u32 {
        match self.fill {
            Fill::Blocks(block, _) => block.number(),
            Fill::Embedding => BlockType::Q8_0.number(),
            Fill::Router(_) | Fill::Plain(_) => 0,
        }
    }
}

/// The length of a file.
pub(crate) fn file_bytes(shape: &Shape, experts: BlockType) -> u64 {
    let tensors = tensors(shape, experts);
    let bytes: usize = tensors.iter().map(Tensor::padded_bytes).sum();
    (header(shape, &tensors).len() + bytes) as u64
}

/// Writes a file; gives the bytes of its tensors.
pub(crate) fn write(
    path: &Path,
    shape: &Shape,
    experts: BlockType,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<u64> {
    let tensors = tensors(shape, experts);
    let mut file = File::create(path)?;
    file.write_all(&header(shape, &tensors))?;
    let total: usize = tensors.iter().map(Tensor::bytes).sum();
    let mut done = 0;
    for tensor in &tensors {
        fill(&mut file, shape, tensor, &mut |bytes| {
            done += bytes as u64;
            progress(done, total as u64);
        })?;
        let padding = tensor.padded_bytes() - tensor.bytes();
        file.write_all(&[0; ALIGNMENT][..padding])?;
    }
    file.sync_all()?;
    Ok(total as u64)
}

fn tensors(shape: &Shape, experts: BlockType) -> Vec<Tensor> {
    let Shape { hidden, heads, kv_heads, head_dim, key_heads, value_heads, linear_dim, .. } =
        *shape;
    let Shape { intermediate, vocab, conv, experts: n_experts, .. } = *shape;
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], fill| {
        tensors.push(Tensor { name, shape: shape.to_vec(), fill });
    };
    let dense = |gain| Fill::Blocks(BlockType::Q8_0, gain);
    let ones = || Fill::Plain(Values::Ones);
    add("token_embd.weight".to_owned(), &[vocab, hidden], Fill::Embedding);
    for layer in 0..shape.layers {
        let mut add = |name: &str, shape: &[usize], fill| {
            add(format!("blk.{layer}.{name}"), shape, fill);
        };
        add("attn_norm.weight", &[hidden], ones());
        add("post_attention_norm.weight", &[hidden], ones());
        if shape.is_attention(layer) {
            add("attn_q.weight", &[2 * heads * head_dim, hidden], dense(1.0));
            add("attn_k.weight", &[kv_heads * head_dim, hidden], dense(1.0));
            add("attn_v.weight", &[kv_heads * head_dim, hidden], dense(1.0));
            add("attn_output.weight", &[hidden, heads * head_dim], dense(0.3));
            add("attn_q_norm.weight", &[head_dim], ones());
            add("attn_k_norm.weight", &[head_dim], ones());
        } else {
            let value = value_heads * linear_dim;
            let channels = 2 * key_heads * linear_dim + value;
            add("attn_qkv.weight", &[channels, hidden], dense(1.0));
            add("attn_gate.weight", &[value, hidden], dense(1.0));
            add("ssm_conv1d.weight", &[channels, conv], Fill::Plain(Values::Normal(0.5)));
            add("ssm_dt.bias", &[value_heads], Fill::Plain(Values::TimeStep));
            add("ssm_a", &[value_heads], Fill::Plain(Values::NegativeDecay));
            add("ssm_beta.weight", &[value_heads, hidden], dense(1.0));
            add("ssm_alpha.weight", &[value_heads, hidden], dense(1.0));
            add("ssm_norm.weight", &[linear_dim], ones());
            add("ssm_out.weight", &[hidden, value], dense(0.15));
        }
        let expert = |gain| Fill::Blocks(experts, gain);
        add("ffn_gate_inp.weight", &[n_experts, hidden], Fill::Router(layer));
        add("ffn_gate_exps.weight", &[n_experts, intermediate, hidden], expert(1.0));
        add("ffn_up_exps.weight", &[n_experts, intermediate, hidden], expert(1.0));
        add("ffn_down_exps.weight", &[n_experts, hidden, intermediate], expert(0.6));
        let gate = Fill::Plain(Values::Normal(1.0 / (hidden as f64).sqrt()));
        add("ffn_gate_inp_shexp.weight", &[hidden], gate);
        add("ffn_gate_shexp.weight", &[intermediate, hidden], dense(1.0));
        add("ffn_up_shexp.weight", &[intermediate, hidden], dense(1.0));
        add("ffn_down_shexp.weight", &[hidden, intermediate], dense(0.3));
    }
    add("output_norm.weight".to_owned(), &[hidden], ones());
    add("output.weight".to_owned(), &[vocab, hidden], dense(3.0));
    tensors
}

/// Writes little-endian numbers and texts.
#[derive(Default)]
struct Header {
    bytes: Vec<u8>,
    entries: u64,
}

impl Header {
    fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn entry(&mut self, key: &str, kind: u32) {
        self.entries += 1;
        self.text(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn number(&mut self, key: &str, number: usize) {
        self.entry(key, 4);
        self.bytes.extend((number as u32).to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.entry(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }
}

/// Magic, metadata and the directory of tensors, up to where the first begins.
fn header(shape: &Shape, tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Header::default();
    for (key, text) in [
        ("general.architecture", "qwen35moe"),
        ("general.name", "synthetic"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen35"),
        ("tokenizer.chat_template", CHAT_TEMPLATE),
    ] {
        header.entry(key, 8);
        header.text(text);
    }
    let rotary = shape.head_dim / 4;
    for (key, number) in [
        ("block_count", shape.layers),
        ("context_length", 262_144),
        ("embedding_length", shape.hidden),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head_dim),
        ("attention.value_length", shape.head_dim),
        ("rope.dimension_count", rotary),
        ("expert_count", shape.experts),
        ("expert_used_count", shape.top_k),
        ("expert_feed_forward_length", shape.intermediate),
        ("expert_shared_feed_forward_length", shape.intermediate),
        ("ssm.conv_kernel", shape.conv),
        ("ssm.state_size", shape.linear_dim),
        ("ssm.group_count", shape.key_heads),
        ("ssm.time_step_rank", shape.value_heads),
        ("ssm.inner_size", shape.value_heads * shape.linear_dim),
        ("full_attention_interval", 4),
    ] {
        header.number(&format!("qwen35moe.{key}"), number);
    }
    header.number("general.quantization_version", 2);
    for (key, number) in [("attention.layer_norm_rms_epsilon", 1e-6_f32), ("rope.freq_base", 1e7)] {
        header.entry(&format!("qwen35moe.{key}"), 6);
        header.bytes.extend(number.to_le_bytes());
    }
    // Positions of images turn by their own parts of the frequencies; for text they are all alike.
    let sections = [rotary / 2 - 2 * (rotary / 6), rotary / 6, rotary / 6, 0];
    header.array("qwen35moe.rope.dimension_sections", 5, sections.len());
    header.bytes.extend(sections.iter().flat_map(|&size| (size as i32).to_le_bytes()));

    let (tokens, kinds) = tokens(shape.vocab);
    header.array("tokenizer.ggml.tokens", 8, tokens.len());
    tokens.iter().for_each(|token| header.text(token));
    header.array("tokenizer.ggml.token_type", 5, kinds.len());
    header.bytes.extend(kinds.iter().flat_map(|kind| kind.to_le_bytes()));
    header.array("tokenizer.ggml.merges", 8, 1);
    header.text(MERGED);
    let first_control = shape.vocab - N_CONTROL_TOKENS;
    header.number("tokenizer.ggml.eos_token_id", first_control + 2);
    header.number("tokenizer.ggml.padding_token_id", first_control);
    header.entry("tokenizer.ggml.add_bos_token", 7);
    header.bytes.push(0);

    let Header { bytes: metadata, entries } = header;
    let mut directory = Header::default();
    let mut offset = 0;
    for tensor in tensors {
        directory.text(&tensor.name);
        directory.bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        let dimensions = tensor.shape.iter().rev();
        directory.bytes.extend(dimensions.flat_map(|&size| (size as u64).to_le_bytes()));
        directory.bytes.extend(tensor.kind().to_le_bytes());
        directory.bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.padded_bytes();
    }
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes.extend(metadata);
    bytes.extend(directory.bytes);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn fill(
    file: &mut File,
    shape: &Shape,
    tensor: &Tensor,
    advance: &mut dyn FnMut(usize),
) -> io::Result<()> {
    let mut random = Random::new(shape.seed, &tensor.name);
    let mut put = |bytes: &[u8]| {
        advance(bytes.len());
        file.write_all(bytes)
    };
    match tensor.fill {
        Fill::Blocks(block, gain) => {
            let cols = tensor.shape[tensor.shape.len() - 1];
            let deviation = gain / (cols as f64).sqrt();
            let mut left = tensor.bytes() / block.bytes();
            let mut chunk = vec![0; CHUNK_BYTES / block.bytes() * block.bytes()];
            while left > 0 {
                let n = left.min(chunk.len() / block.bytes());
                let chunk = &mut chunk[..n * block.bytes()];
                random.fill(chunk);
                chunk.chunks_exact_mut(block.bytes()).for_each(|b| set_scales(block, deviation, b));
                put(chunk)?;
                left -= n;
            }
            Ok(())
        }
        Fill::Embedding => {
            let common = f64::from(COMMON * COMMON);
            let scale = 1.0 / (f64::from(NOISE * (NOISE + 1)) / 3.0 + common).sqrt();
            let signs = signs(shape);
            let mut chunk = Vec::with_capacity(2 * CHUNK_BYTES);
            for _ in 0..tensor.shape[0] {
                for signs in signs.chunks_exact(32) {
                    chunk.extend(f16::from_f64(scale).to_le_bytes());
                    for &positive in signs {
                        let noise = (random.next() >> 33) as i64 % i64::from(2 * NOISE + 1);
                        let common = if positive { COMMON } else { -COMMON };
                        chunk.push((noise as i32 - NOISE + common) as i8 as u8);
                    }
                }
                if chunk.len() >= CHUNK_BYTES {
                    put(&chunk)?;
                    chunk.clear();
                }
            }
            put(&chunk)
        }
        Fill::Router(layer) => {
            let common = f64::from(COMMON * COMMON);
            let share = (common / (f64::from(NOISE * (NOISE + 1)) / 3.0 + common)).sqrt();
            let rows = router(shape, share, layer, &mut random);
            put(&rows.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
        }
        Fill::Plain(values) => {
            let n: usize = tensor.shape.iter().product();
            let bytes = (0..n).flat_map(|_| value(values, &mut random).to_le_bytes());
            put(&bytes.collect::<Vec<_>>())
        }
    }
}

/// Sets the scales of a block of random codes such that its values have zero mean and the given
/// standard deviation.
fn set_scales(block: BlockType, deviation: f64, bytes: &mut [u8]) {
    let mut put = |at: usize, scale: f64| {
        bytes[at..at + 2].copy_from_slice(&f16::from_f64(scale).to_le_bytes());
    };
    match block {
        // Even codes from -128 to 127 have a standard deviation of 73.9, from 0 to 15 of 4.61.
        BlockType::Q8_0 => put(0, deviation / 73.9),
        BlockType::Q4_0 => put(0, deviation / 4.64),
        _ => {
            // Q4_K: sub-block scales from 32 to 63, whose mean square is 48.4 squared, and minima
            // equal to them, so that values are `d * scale * (code - 7.5)`.
            let scale = deviation / (4.61 * 48.4);
            put(0, scale);
            put(2, 7.5 * scale);
            let scales: [u8; 8] = std::array::from_fn(|sub| bytes[4 + sub] & 31 | 32);
            for sub in 0..4 {
                let packed = scales[sub] | scales[sub + 4] >> 4 << 6;
                bytes[4 + sub] = packed;
                bytes[8 + sub] = packed;
                bytes[12 + sub] = scales[sub + 4] & 15 | (scales[sub + 4] & 15) << 4;
            }
        }
    }
}
