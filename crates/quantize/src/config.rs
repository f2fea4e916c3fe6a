//! The small files of the result: configuration, tokenizer, template.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint::{Family, FfnKind, MixerKind, ModelConfig};
use engine::Inventory;
use serde_json::{Map, Value, json};

use crate::error::{Error, io_at};
use crate::output::Partial;
use crate::plan::{Module, Placement};

/// Stacks experts that lie apart when mlx-lm loads the result.
const MLX_EXPERTS: &str = include_str!("mlx_experts.py");
const MLX_EXPERTS_NAME: &str = "mlx_experts.py";

/// What is carried over as it is, where it is there.
const CARRIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Writes all files but the shards.
pub(crate) fn write_small_files(
    partial: &Partial,
    inventory: &Inventory,
    source_config: Map<String, Value>,
    modules: &[Module],
    placement: Placement,
) -> Result<(), Error> {
    let source = inventory.checkpoint.path();
    let mut config = source_config;
    quantization(&mut config, modules);
    config.remove("model_file");
    if placement == Placement::Apart {
        config.insert("model_file".to_owned(), json!(MLX_EXPERTS_NAME));
        partial.add(MLX_EXPERTS_NAME, MLX_EXPERTS.as_bytes())?;
    }
    partial.add("config.json", format!("{:#}\n", Value::Object(config)).as_bytes())?;
    if let Some(text) = inventory.checkpoint.text() {
        if let Some(tokenizer) = &text.tokenizer_json {
            partial.add("tokenizer.json", tokenizer.as_bytes())?;
        }
        if let Some(template) = &text.chat_template {
            partial.add("chat_template.jinja", template.as_bytes())?;
        }
        let ends = &inventory.checkpoint.generation().eos_token_ids;
        let generation = json!({ "eos_token_id": ends });
        return partial.add("generation_config.json", generation.to_string().as_bytes());
    }
    for name in CARRIED {
        let path = source.join(name);
        if path.is_file() {
            partial.add(name, &fs::read(&path).map_err(io_at(&path))?)?;
        }
    }
    Ok(())
}

/// The configuration of the source.
pub(crate) fn read_config(source: &Path) -> Result<Map<String, Value>, Error> {
    let path = source.join("config.json");
    let text = fs::read_to_string(&path).map_err(io_at(&path))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(config)) => Ok(config),
        _ => Err(Error::Source { path, what: "it is not a JSON object".to_owned() }),
    }
}

/// A configuration for what a GGUF file says of its model, with the names and the form that published ones
/// have.
pub(crate) fn config_of_gguf(config: &ModelConfig) -> Map<String, Value> {
    let (architecture, model_type) = match config.family {
        Family::Qwen35Moe => ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"),
        Family::Qwen3Next => ("Qwen3NextForCausalLM", "qwen3_next"),
        Family::Qwen3Moe => ("Qwen3MoeForCausalLM", "qwen3_moe"),
    };
    let mut text = text_config(config);
    let is_nested = config.family == Family::Qwen35Moe;
    let mut object = if is_nested { Map::new() } else { std::mem::take(&mut text) };
    object.insert("architectures".to_owned(), json!([architecture]));
    object.insert("model_type".to_owned(), json!(model_type));
    object.insert("tie_word_embeddings".to_owned(), json!(config.tie_word_embeddings));
    if is_nested {
        text.insert("model_type".to_owned(), json!(format!("{model_type}_text")));
        object.insert("text_config".to_owned(), Value::Object(text));
    }
    object
}

/// The fields of the text model.
fn text_config(config: &ModelConfig) -> Map<String, Value> {
    let dense = config.ffns.iter().enumerate().filter_map(|(layer, ffn)| match ffn {
        FfnKind::Dense(width) => Some((layer, *width)),
        FfnKind::Moe => None,
    });
    let dense: Vec<(usize, usize)> = dense.collect();
    let (attention, moe) = (&config.attention, &config.moe);
    let eos = match config.eos_token_ids.as_slice() {
        [one] => json!(one),
        many => json!(many),
    };
    // Digits of an f32, not those of the f64 that it is nearest to.
    let eps: f64 = config.rms_norm_eps.to_string().parse().expect("a float is one");
    let mut fields = vec![
        ("vocab_size", json!(config.vocab_size)),
        ("hidden_size", json!(config.hidden_size)),
        ("num_hidden_layers", json!(config.mixers.len())),
        ("num_attention_heads", json!(attention.n_heads)),
        ("num_key_value_heads", json!(attention.n_kv_heads)),
        ("head_dim", json!(attention.head_dim)),
        ("hidden_act", json!("silu")),
        ("max_position_embeddings", json!(config.max_context)),
        ("rms_norm_eps", json!(eps)),
        ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        ("attention_bias", json!(false)),
        ("moe_intermediate_size", json!(moe.intermediate)),
        ("num_experts", json!(moe.n_experts)),
        ("num_experts_per_tok", json!(moe.top_k)),
        ("norm_topk_prob", json!(moe.normalise)),
        ("dtype", json!("bfloat16")),
        ("eos_token_id", eos),
    ];
    if let Some(width) = moe.shared_intermediate {
        fields.push(("shared_expert_intermediate_size", json!(width)));
    }
    let rotary = attention.rotary_dim as f64 / attention.head_dim as f64;
    if config.family == Family::Qwen35Moe {
        let rope = json!({
            "rope_type": "default",
            "rope_theta": attention.rope_theta,
            "partial_rotary_factor": rotary,
        });
        fields.extend([("rope_parameters", rope), ("attn_output_gate", json!(true))]);
    } else {
        fields.extend([
            ("intermediate_size", json!(dense.first().map_or(moe.intermediate, |(_, w)| *w))),
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!(dense.iter().map(|(l, _)| l).collect::<Vec<_>>())),
            ("rope_theta", json!(attention.rope_theta)),
            ("rope_scaling", Value::Null),
            ("partial_rotary_factor", json!(rotary)),
            ("use_sliding_window", json!(false)),
        ]);
    }
    if let Some(delta_net) = &config.delta_net {
        let kinds = config.mixers.iter().map(|mixer| match mixer {
            MixerKind::Attention => "full_attention",
            MixerKind::DeltaNet => "linear_attention",
        });
        let first = config.mixers.iter().position(|mixer| *mixer == MixerKind::Attention);
        fields.extend([
            ("layer_types", json!(kinds.collect::<Vec<_>>())),
            ("full_attention_interval", json!(first.map_or(config.mixers.len(), |at| at + 1))),
            ("linear_conv_kernel_dim", json!(delta_net.conv_kernel)),
            ("linear_key_head_dim", json!(delta_net.key_dim)),
            ("linear_value_head_dim", json!(delta_net.value_dim)),
            ("linear_num_key_heads", json!(delta_net.n_key_heads)),
            ("linear_num_value_heads", json!(delta_net.n_value_heads)),
        ]);
    }
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Writes bits and groups as mlx-lm does: the most frequent ones as a default, the others by module, and
/// all of it a second time under the name that transformers looks for.
fn quantization(config: &mut Map<String, Value>, modules: &[Module]) {
    config.remove("quantization");
    config.remove("quantization_config");
    let mut counts: BTreeMap<(u8, u16), usize> = BTreeMap::new();
    for module in modules {
        *counts.entry((module.bits, module.group)).or_default() += 1;
    }
    let Some((&default, _)) = counts.iter().max_by_key(|(_, count)| **count) else { return };
    let mut object = Map::new();
    object.insert("group_size".to_owned(), json!(default.1));
    object.insert("bits".to_owned(), json!(default.0));
    object.insert("mode".to_owned(), json!("affine"));
    for Module { name, bits, group } in modules {
        if (*bits, *group) != default {
            object.insert(name.clone(), json!({ "group_size": group, "bits": bits }));
        }
    }
    // Experts that lie apart are loaded by mlx-lm as stacks of their widest.
    let mut stacks: BTreeMap<String, (u8, u16)> = BTreeMap::new();
    for Module { name, bits, group } in modules {
        let Some((block, rest)) = name.split_once(".mlp.experts.") else { continue };
        let Some((_, part)) = rest.split_once('.') else { continue };
        let widest = stacks.entry(format!("{block}.mlp.switch_mlp.{part}")).or_insert((0, *group));
        widest.0 = widest.0.max(*bits);
    }
    for (name, (bits, group)) in stacks {
        if (bits, group) != default {
            object.insert(name, json!({ "group_size": group, "bits": bits }));
        }
    }
    config.insert("quantization".to_owned(), Value::Object(object.clone()));
    config.insert("quantization_config".to_owned(), Value::Object(object));
}
