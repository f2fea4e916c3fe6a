//! The small files of the result: configuration, tokenizer, template.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint::{Family, FfnKind, ModelConfig};
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

/// A configuration for what a GGUF file says of its model: Qwen3-MoE, whose tensors GGUF files hold as they
/// are. Those of the other families come in another order of rows and heads than a `config.json` can tell.
pub(crate) fn config_of_gguf(
    path: &Path,
    config: &ModelConfig,
) -> Result<Map<String, Value>, Error> {
    if config.family != Family::Qwen3Moe {
        let what = format!(
            "GGUF files of {} hold delta nets in another order than safetensors\n\
             hint: quantise the checkpoint that the file was made from",
            config.family.name()
        );
        return Err(Error::Source { path: path.to_owned(), what });
    }
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
    let json = json!({
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": dense.first().map_or(moe.intermediate, |(_, width)| *width),
        "num_hidden_layers": config.mixers.len(),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": false,
        "use_sliding_window": false,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
        "moe_intermediate_size": moe.intermediate,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.normalise,
        "rope_theta": attention.rope_theta,
        "rope_scaling": null,
        "dtype": "bfloat16",
        "eos_token_id": eos,
    });
    match json {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
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
