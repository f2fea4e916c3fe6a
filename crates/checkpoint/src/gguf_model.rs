//! What a GGUF file says about its model, in the terms of the rest: configuration, names, tokenizer.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, json};

use crate::config::{
    AttentionConfig, DeltaNetConfig, Family, FfnKind, GenerationConfig, MixerKind, ModelConfig,
    MoeConfig, Projections,
};
use crate::error::Error;
use crate::gguf::Value;

/// Metadata of a file with checked access; keys of the model begin with its architecture.
pub(crate) struct Metadata<'a> {
    pub(crate) path: &'a Path,
    pub(crate) values: &'a HashMap<String, Value>,
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    pub(crate) fn new(path: &'a Path, values: &'a HashMap<String, Value>) -> Result<Self, Error> {
        match values.get("general.architecture") {
            Some(Value::Text(architecture)) => Ok(Self { path, values, architecture }),
            _ => Err(Error::Malformed {
                path: path.to_owned(),
                reason: "it has no general.architecture".to_owned(),
            }),
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let key = self.key(key);
        let found = self.values.get(&key).map_or_else(|| "absent".to_owned(), |v| format!("{v:?}"));
        Error::Field {
            path: self.path.to_owned(),
            field: key,
            found: found.chars().take(80).collect(),
            expected: expected.to_owned(),
        }
    }

    fn optional(&self, key: &str, max: usize) -> Result<Option<usize>, Error> {
        match self.values.get(&self.key(key)) {
            None => Ok(None),
            Some(Value::Integer(number)) if (0..=max as i128).contains(number) => {
                Ok(Some(*number as usize))
            }
            Some(_) => Err(self.wrong(key, &format!("a whole number up to {max}"))),
        }
    }

    fn size(&self, key: &str, max: usize) -> Result<usize, Error> {
        let number = self.optional(key, max)?.filter(|&number| number > 0);
        number.ok_or_else(|| self.wrong(key, &format!("a whole number from 1 to {max}")))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.values.get(&self.key(key)) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() && *number > 0.0 => Ok(Some(*number)),
            Some(_) => Err(self.wrong(key, "a number above 0")),
        }
    }

    fn check(&self, ok: bool, key: &str, expected: &str) -> Result<(), Error> {
        if ok { Ok(()) } else { Err(self.wrong(key, expected)) }
    }

    fn token(&self, key: &str) -> Option<u32> {
        match self.values.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Integer(id)) => u32::try_from(*id).ok(),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Option<&'a [String]> {
        match self.values.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// The family, or an error that says what the file is instead.
    fn family(&self) -> Result<Family, Error> {
        match self.architecture {
            "qwen35moe" => Ok(Family::Qwen35Moe),
            "qwen3next" => Ok(Family::Qwen3Next),
            "qwen3moe" => Ok(Family::Qwen3Moe),
            other => {
                let what = format!("GGUF architecture {other}");
                Err(Error::Unsupported { path: self.path.to_owned(), what })
            }
        }
    }

    /// The model's dimensions. `is_dense` tells layers that have no router; the rest of what is only
    /// seen from the tensors are the rows of the embedding and whether there is a head.
    pub(crate) fn config(
        &self,
        vocab_size: usize,
        has_head: bool,
        is_dense: impl Fn(usize) -> bool,
    ) -> Result<ModelConfig, Error> {
        let family = self.family()?;
        let is_plain = family == Family::Qwen3Moe;
        let hidden_size = self.size("embedding_length", 1 << 20)?;
        let n_layers = self.n_layers()?;
        let n_heads = self.size("attention.head_count", 1 << 14)?;
        let n_kv_heads = self.size("attention.head_count_kv", 1 << 14)?;
        let divides = n_heads.is_multiple_of(n_kv_heads);
        self.check(divides, "attention.head_count", "a multiple of attention.head_count_kv")?;
        let head_dim = match self.optional("attention.key_length", 1 << 14)? {
            Some(head_dim) if head_dim > 0 => head_dim,
            _ => hidden_size / n_heads,
        };
        let rotary_dim = self.optional("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
        let is_even = rotary_dim >= 2 && rotary_dim.is_multiple_of(2);
        self.check(is_even, "rope.dimension_count", "an even number")?;
        let scaling = self.values.get(&self.key("rope.scaling.type"));
        let unscaled = matches!(scaling, None | Some(Value::Text(_)))
            && !matches!(scaling, Some(Value::Text(kind)) if kind != "none");
        self.check(unscaled, "rope.scaling.type", "absent or none")?;
        let attention = AttentionConfig {
            n_heads,
            n_kv_heads,
            head_dim,
            rotary_dim,
            rope_theta: self.number("rope.freq_base")?.unwrap_or(1e7),
            gated: !is_plain,
        };
        let delta_net = if is_plain { None } else { Some(self.delta_net(family)?) };
        let n_experts = self.size("expert_count", 1 << 16)?;
        let moe = MoeConfig {
            n_experts,
            top_k: self.size("expert_used_count", n_experts)?,
            intermediate: self.size("expert_feed_forward_length", 1 << 20)?,
            shared_intermediate: if is_plain {
                None
            } else {
                Some(self.size("expert_shared_feed_forward_length", 1 << 20)?)
            },
            normalise: true,
        };
        let ffns = (0..n_layers).map(|layer| match is_dense(layer) {
            true => self.size("feed_forward_length", 1 << 20).map(FfnKind::Dense),
            false => Ok(FfnKind::Moe),
        });
        let eps = self.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6);
        Ok(ModelConfig {
            family,
            hidden_size,
            vocab_size,
            mixers: self.mixers(n_layers, is_plain)?,
            ffns: ffns.collect::<Result<_, _>>()?,
            attention,
            delta_net,
            moe,
            rms_norm_eps: eps as f32,
            tie_word_embeddings: !has_head,
            max_context: self.size("context_length", 1 << 30)?,
            eos_token_ids: self.token("eos_token_id").into_iter().collect(),
        })
    }

    /// Layers of the model itself, without those of the prediction head that follow them.
    pub(crate) fn n_layers(&self) -> Result<usize, Error> {
        let blocks = self.size("block_count", 4096)?;
        let extra = self.optional("nextn_predict_layers", 4096)?.unwrap_or(0);
        self.check(extra < blocks, "nextn_predict_layers", "less than block_count")?;
        Ok(blocks - extra)
    }

    fn delta_net(&self, family: Family) -> Result<DeltaNetConfig, Error> {
        let n_key_heads = self.size("ssm.group_count", 1 << 14)?;
        let n_value_heads = self.size("ssm.time_step_rank", 1 << 14)?;
        let divides = n_value_heads.is_multiple_of(n_key_heads);
        self.check(divides, "ssm.time_step_rank", "a multiple of ssm.group_count")?;
        let inner = self.size("ssm.inner_size", 1 << 24)?;
        let fits = inner.is_multiple_of(n_value_heads) && inner / n_value_heads <= 1024;
        self.check(fits, "ssm.inner_size", "a multiple of ssm.time_step_rank")?;
        let conv_kernel = self.size("ssm.conv_kernel", 16)?;
        self.check(conv_kernel >= 2, "ssm.conv_kernel", "from 2 to 16")?;
        Ok(DeltaNetConfig {
            n_key_heads,
            n_value_heads,
            key_dim: self.size("ssm.state_size", 1 << 14)?,
            value_dim: inner / n_value_heads,
            conv_kernel,
            projections: match family {
                Family::Qwen3Next => Projections::InterleavedGates,
                Family::Qwen35Moe | Family::Qwen3Moe => Projections::Separate,
            },
            // The converter of Qwen3.5 stores value heads so that neighbours have different key heads.
            tiled_values: family == Family::Qwen35Moe,
        })
    }

    fn mixers(&self, n_layers: usize, is_plain: bool) -> Result<Vec<MixerKind>, Error> {
        if is_plain {
            return Ok(vec![MixerKind::Attention; n_layers]);
        }
        let kind = |is_attention: bool| match is_attention {
            true => MixerKind::Attention,
            false => MixerKind::DeltaNet,
        };
        match self.values.get(&self.key("attention.recurrent_layers")) {
            Some(Value::Integers(flags)) if flags.len() >= n_layers => {
                Ok(flags[..n_layers].iter().map(|&recurrent| kind(recurrent == 0)).collect())
            }
            Some(_) => Err(self.wrong("attention.recurrent_layers", "a flag for each layer")),
            None => {
                let interval = self.optional("full_attention_interval", 4096)?.unwrap_or(4).max(1);
                Ok((0..n_layers).map(|layer| kind((layer + 1).is_multiple_of(interval))).collect())
            }
        }
    }

    /// End tokens: the file's own, and the end of text that published checkpoints stop at too.
    pub(crate) fn generation(&self) -> GenerationConfig {
        let tokens = self.texts("tokens").unwrap_or_default();
        let end_of_text = tokens.iter().position(|token| token == "<|endoftext|>");
        let end_of_message = tokens.iter().position(|token| token == "<|im_end|>");
        let ids = self.token("eos_token_id").into_iter();
        let ends = end_of_text.into_iter().chain(end_of_message).map(|id| id as u32);
        GenerationConfig { eos_token_ids: ids.chain(ends).collect(), ..Default::default() }
    }

    /// The chat template.
    pub(crate) fn chat_template(&self) -> Option<&'a str> {
        match self.values.get("tokenizer.chat_template") {
            Some(Value::Text(template)) => Some(template),
            _ => None,
        }
    }

    /// The tokenizer in the form of a `tokenizer.json`; `None` when the file has none.
    pub(crate) fn tokenizer_json(&self) -> Result<Option<String>, Error> {
        let (Some(tokens), Some(merges)) = (self.texts("tokens"), self.texts("merges")) else {
            return Ok(None);
        };
        let unsupported = |what: String| Error::Unsupported { path: self.path.to_owned(), what };
        let text = |key: &str| match self.values.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Text(text)) => text.as_str(),
            _ => "",
        };
        if text("model") != "gpt2" {
            return Err(unsupported(format!("tokenizer model {:?}", text("model"))));
        }
        // Qwen2 and Qwen3.5 cut text alike, but for marks, which Qwen3.5 counts as letters.
        let letter = match text("pre") {
            "qwen35" => r"[\p{L}\p{M}]",
            "qwen2" => r"\p{L}",
            other => return Err(unsupported(format!("pre-tokenizer {other:?}"))),
        };
        let no_letter = letter.trim_matches(['[', ']']);
        let pattern = format!(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?{letter}+|\\p{{N}}| \
             ?[^\\s{no_letter}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        );
        let kinds = match self.values.get("tokenizer.ggml.token_type") {
            Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.as_slice(),
            _ => &[],
        };
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, token) in tokens.iter().enumerate() {
            match kinds.get(id) {
                // Control tokens and user-defined ones are cut out of the text first.
                Some(kind @ (3 | 4)) => added.push(json!({
                    "id": id, "content": token, "special": *kind == 3, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false,
                })),
                // Unused ids are padding.
                Some(5) => {}
                _ => drop(vocab.insert(token.clone(), id.into())),
            }
        }
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
        });
        let split = json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
        });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, bytes] },
            "post_processor": null,
            "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": "", "end_of_word_suffix": "",
                "fuse_unk": false, "byte_fallback": false,
                "vocab": vocab, "merges": merges,
            },
        });
        Ok(Some(json.to_string()))
    }
}

/// The names that a tensor with a canonical name can have in a GGUF file.
pub(crate) fn gguf_names(canonical: &str) -> Vec<String> {
    let name = gguf_name(canonical);
    // Families without a norm of their own after attention call it after what follows.
    let other = name.as_ref().and_then(|name| name.strip_suffix("post_attention_norm.weight"));
    let other = other.map(|layer| format!("{layer}ffn_norm.weight"));
    name.into_iter().chain(other).collect()
}

fn gguf_name(canonical: &str) -> Option<String> {
    const TOP: [(&str, &str); 3] = [
        ("embed_tokens.weight", "token_embd.weight"),
        ("norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ];
    const IN_LAYER: [(&str, &str); 28] = [
        ("input_layernorm.weight", "attn_norm.weight"),
        ("post_attention_layernorm.weight", "post_attention_norm.weight"),
        ("self_attn.q_proj.weight", "attn_q.weight"),
        ("self_attn.k_proj.weight", "attn_k.weight"),
        ("self_attn.v_proj.weight", "attn_v.weight"),
        ("self_attn.o_proj.weight", "attn_output.weight"),
        ("self_attn.q_norm.weight", "attn_q_norm.weight"),
        ("self_attn.k_norm.weight", "attn_k_norm.weight"),
        ("linear_attn.in_proj_qkv.weight", "attn_qkv.weight"),
        ("linear_attn.in_proj_z.weight", "attn_gate.weight"),
        ("linear_attn.in_proj_b.weight", "ssm_beta.weight"),
        ("linear_attn.in_proj_a.weight", "ssm_alpha.weight"),
        ("linear_attn.in_proj_ba.weight", "ssm_ba.weight"),
        ("linear_attn.conv1d.weight", "ssm_conv1d.weight"),
        ("linear_attn.A_log", "ssm_a"),
        ("linear_attn.dt_bias", "ssm_dt.bias"),
        ("linear_attn.norm.weight", "ssm_norm.weight"),
        ("linear_attn.out_proj.weight", "ssm_out.weight"),
        ("mlp.gate.weight", "ffn_gate_inp.weight"),
        ("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"),
        ("mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"),
        ("mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"),
        ("mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"),
        ("mlp.gate_proj.weight", "ffn_gate.weight"),
        ("mlp.up_proj.weight", "ffn_up.weight"),
        ("mlp.down_proj.weight", "ffn_down.weight"),
        ("mlp.experts.gate_up_proj", "ffn_gate_up_exps.weight"),
        ("mlp.experts.down_proj", "ffn_down_exps.weight"),
    ];
    let find = |table: &[(&str, &'static str)], name: &str| {
        table.iter().find(|(other, _)| *other == name).map(|(_, gguf)| *gguf)
    };
    if let Some(name) = find(&TOP, canonical) {
        return Some(name.to_owned());
    }
    let (layer, name) = canonical.strip_prefix("layers.")?.split_once('.')?;
    if let Some(projection) = name.strip_prefix("mlp.switch_mlp.") {
        let projection = projection.strip_suffix("_proj.weight")?;
        return Some(format!("blk.{layer}.ffn_{projection}_exps.weight"));
    }
    Some(format!("blk.{layer}.{}", find(&IN_LAYER, name)?))
}
