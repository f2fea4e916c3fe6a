//! Opening checkpoints: every layout, and every way to be incomplete.

use std::fs::{self, OpenOptions};

use checkpoint::{Checkpoint, Leftover, MixerKind, VectorKind, VectorTransform};

use crate::support::{Copy, fixture};

/// Asks for every tensor of the architecture; the names are those of the specification.
fn resolve_all(checkpoint: &Checkpoint) -> Leftover {
    let config = checkpoint.config().clone();
    let hidden = config.hidden_size;
    let mut resolver = checkpoint.resolver();
    let mut matrix = |name: String, rows: usize, cols: usize| {
        let found = resolver.matrix(&name, rows, cols);
        let location = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = rows * location.format.row_bytes(cols);
        assert_eq!(location.data.len, expected as u64, "{name}");
    };
    matrix("embed_tokens.weight".to_owned(), config.vocab_size, hidden);
    matrix("lm_head.weight".to_owned(), config.vocab_size, hidden);
    let (a, m) = (config.attention, config.moe);
    let d = config.delta_net.expect("the family has them");
    let (value, channels) = (
        d.n_value_heads * d.value_dim,
        2 * d.n_key_heads * d.key_dim + d.n_value_heads * d.value_dim,
    );
    for (layer, mixer) in config.mixers.iter().enumerate() {
        let (query, key) = (a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim);
        let shapes = match mixer {
            MixerKind::Attention => vec![
                ("self_attn.q_proj", 2 * query, hidden),
                ("self_attn.k_proj", key, hidden),
                ("self_attn.v_proj", key, hidden),
                ("self_attn.o_proj", hidden, query),
            ],
            MixerKind::DeltaNet => vec![
                ("linear_attn.in_proj_qkv", channels, hidden),
                ("linear_attn.in_proj_z", value, hidden),
                ("linear_attn.in_proj_b", d.n_value_heads, hidden),
                ("linear_attn.in_proj_a", d.n_value_heads, hidden),
                ("linear_attn.out_proj", hidden, value),
            ],
        };
        let shared = m.shared_intermediate.expect("the family has one");
        let moe = [
            ("mlp.gate", m.n_experts, hidden),
            ("mlp.shared_expert.gate_proj", shared, hidden),
            ("mlp.shared_expert.up_proj", shared, hidden),
            ("mlp.shared_expert.down_proj", hidden, shared),
            ("mlp.shared_expert_gate", 1, hidden),
        ];
        for (name, rows, cols) in shapes.into_iter().chain(moe) {
            matrix(format!("layers.{layer}.{name}.weight"), rows, cols);
        }
    }
    let is_hugging_face = checkpoint.tensor("model.language_model.norm.weight").is_some();
    let norm = if is_hugging_face { VectorTransform::AddOne } else { VectorTransform::Identity };
    let mut vector = |name: String, len, kind| {
        let found = resolver.vector(&name, len, kind);
        let location = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        let is_norm = kind == VectorKind::ZeroCentredNorm;
        let transform = if is_norm { norm } else { VectorTransform::Identity };
        assert_eq!(location.transform, transform, "{name}");
    };
    vector("norm.weight".to_owned(), hidden, VectorKind::ZeroCentredNorm);
    for (layer, mixer) in config.mixers.iter().enumerate() {
        let name = |name: &str| format!("layers.{layer}.{name}");
        vector(name("input_layernorm.weight"), hidden, VectorKind::ZeroCentredNorm);
        vector(name("post_attention_layernorm.weight"), hidden, VectorKind::ZeroCentredNorm);
        match mixer {
            MixerKind::Attention => {
                vector(name("self_attn.q_norm.weight"), a.head_dim, VectorKind::ZeroCentredNorm);
                vector(name("self_attn.k_norm.weight"), a.head_dim, VectorKind::ZeroCentredNorm);
            }
            MixerKind::DeltaNet => {
                let conv = channels * d.conv_kernel;
                vector(name("linear_attn.conv1d.weight"), conv, VectorKind::Plain);
                vector(name("linear_attn.A_log"), d.n_value_heads, VectorKind::Plain);
                vector(name("linear_attn.dt_bias"), d.n_value_heads, VectorKind::Plain);
                vector(name("linear_attn.norm.weight"), d.value_dim, VectorKind::Plain);
            }
        }
    }
    for layer in 0..config.mixers.len() {
        let prefix = format!("layers.{layer}.mlp");
        let table = resolver.experts(&prefix, m.n_experts, hidden, m.intermediate);
        let table = table.unwrap_or_else(|error| panic!("{prefix}: {error}"));
        // Experts lie apart: sorted by place, no two byte ranges share a byte.
        let experts = (0..table.len()).map(|expert| table.get(expert));
        let mut extents: Vec<_> = experts
            .flat_map(|expert| expert.matrices().map(|m| m.extents().collect::<Vec<_>>()))
            .flatten()
            .collect();
        extents.sort_unstable();
        assert!(extents.windows(2).all(|pair| {
            pair[0].file != pair[1].file || pair[0].offset + pair[0].len <= pair[1].offset
        }));
    }
    resolver.finish()
}

#[test]
fn every_layout_has_all_and_nothing_unknown() {
    for (name, mtp) in
        [("qwen35moe-tiny", 19), ("qwen35moe-tiny-mlx-4bit", 0), ("qwen35moe-mini-mlx-8bit", 0)]
    {
        let checkpoint = Checkpoint::open(&fixture(name)).expect("the fixture is sound");
        let leftover = resolve_all(&checkpoint);
        assert_eq!(leftover.unknown, Vec::<String>::new(), "{name}");
        assert_eq!(leftover.mtp.len(), mtp, "{name}");
    }
}

#[test]
fn experts_that_lie_apart_are_found() {
    // The stacked experts of the fixture under per-expert names, with one expert a layer.
    let copy = Copy::of("qwen35moe-mini-mlx-8bit");
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("the fixture can be read");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + header_len]).expect("the header is JSON");
    for name in header.keys().cloned().collect::<Vec<_>>() {
        let Some((before, after)) = name.split_once("switch_mlp.") else { continue };
        let entry = header.remove(&name).expect("it is there");
        let begin = entry["data_offsets"][0].as_u64().expect("an offset");
        let end = entry["data_offsets"][1].as_u64().expect("an offset");
        let step = (end - begin) / 4;
        for expert in 0..4 {
            let mut part = entry.clone();
            part["shape"] = serde_json::json!([entry["shape"][1], entry["shape"][2]]);
            let begin = begin + expert * step;
            part["data_offsets"] = serde_json::json!([begin, begin + step]);
            header.insert(format!("{before}experts.{expert}.{after}"), part);
        }
    }
    let json = serde_json::to_vec(&header).expect("it is JSON");
    let mut apart = (json.len() as u64).to_le_bytes().to_vec();
    apart.extend(json);
    apart.extend(&bytes[8 + header_len..]);
    fs::write(&path, apart).expect("the copy can be written");
    let checkpoint = Checkpoint::open(copy.path()).expect("the copy is sound");
    assert_eq!(resolve_all(&checkpoint).unknown, Vec::<String>::new());
}

#[test]
fn a_file_cut_anywhere_is_refused_by_name() {
    let copy = Copy::of("qwen35moe-mini-mlx-8bit");
    let path = copy.path().join("model.safetensors");
    let len = fs::metadata(&path).expect("it is there").len();
    for keep in (0..len).rev().step_by(9_973) {
        let file = OpenOptions::new().write(true).open(&path).expect("the copy can be opened");
        file.set_len(keep).expect("the copy can be cut");
        let message = Checkpoint::open(copy.path()).expect_err("it is cut").to_string();
        assert!(message.contains("model.safetensors"), "{keep}: {message}");
    }
}

#[test]
fn indexes_are_checked_against_their_shards() {
    const INDEX: &str = "model.safetensors.index.json";
    let refusal = |edit: &dyn Fn(&Copy)| {
        let copy = Copy::of("qwen35moe-tiny-mlx-4bit");
        edit(&copy);
        Checkpoint::open(copy.path()).expect_err("the index is wrong").to_string()
    };
    let second = "model-00002-of-00002.safetensors";
    let gone = refusal(&|copy| fs::remove_file(copy.path().join(second)).expect("removed"));
    assert!(gone.contains(second), "{gone}");
    let moved = refusal(&|copy| copy.edit(INDEX, |json| json.replacen("00001-of", "00002-of", 1)));
    assert!(moved.contains(INDEX) && moved.contains(second), "{moved}");
    let outside = refusal(&|copy| {
        copy.edit(INDEX, |json| json.replacen("\"model-00001", "\"../model-00001", 1));
    });
    assert!(outside.contains("plain file name"), "{outside}");
    let twice = refusal(&|copy| {
        let first = copy.path().join("model-00001-of-00002.safetensors");
        fs::copy(first, copy.path().join(second)).expect("copied");
    });
    assert!(twice.contains("00001-of") && twice.contains("00002-of"), "{twice}");
    let empty = refusal(&|copy| copy.edit(INDEX, |_| "{}".to_owned()));
    assert!(empty.contains("weight_map"), "{empty}");
}

#[test]
fn what_is_not_a_directory_is_explained() {
    let file = fixture("qwen35moe-tiny").join("config.json");
    let message = Checkpoint::open(&file).expect_err("a file").to_string();
    assert!(message.contains("hint:"), "{message}");
    let message = Checkpoint::open(&fixture("nothing")).expect_err("nothing").to_string();
    assert!(message.contains("nothing"), "{message}");
}
