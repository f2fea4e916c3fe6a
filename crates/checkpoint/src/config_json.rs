//! Reading `config.json` and `generation_config.json`.
//!
//! The rules are those of the published checkpoints and of their re-saves: text keys lie under
//! `text_config` or at the top; rotary parameters in `rope_parameters` or beside the rest; absent keys
//! have the defaults of the reference implementation.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::config::{
    AttentionConfig, DeltaNetConfig, Family, FfnKind, GenerationConfig, MixerKind, ModelConfig,
    MoeConfig, Projections,
};
use crate::error::Error;
use crate::quantization::Quantization;

/// A larger configuration file than any real one.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Reads `config.json`: the model's dimensions and how its tensors are quantised.
pub(crate) fn read_config(path: &Path) -> Result<(ModelConfig, Quantization), Error> {
    parse_config(path, read_json(path)?)
}

/// Takes the dimensions from the contents of `config.json`.
pub(crate) fn parse_config(path: &Path, json: Value) -> Result<(ModelConfig, Quantization), Error> {
    let top = Object::new(path, json)?;
    let text = top.child("text_config")?;
    let text = text.as_ref().unwrap_or(&top);
    let family = family(&top, text)?;
    let config = model_config(family, &top, text)?;
    let quantization = Quantization::from_config(path, &top.map)?;
    Ok((config, quantization))
}

/// Reads `generation_config.json`; a file that is not there says nothing.
pub(crate) fn read_generation_config(path: &Path) -> Result<GenerationConfig, Error> {
    if !path.exists() {
        return Ok(GenerationConfig::default());
    }
    let object = Object::new(path, read_json(path)?)?;
    Ok(GenerationConfig {
        do_sample: object.boolean("do_sample")?,
        temperature: object.number("temperature", 0.0..=1e6)?.map(|x| x as f32),
        top_k: object.integer("top_k", 0, 1 << 24)?,
        top_p: object.number("top_p", 0.0..=1.0)?.map(|x| x as f32),
        min_p: object.number("min_p", 0.0..=1.0)?.map(|x| x as f32),
        repetition_penalty: object.number("repetition_penalty", 1e-3..=1e3)?.map(|x| x as f32),
        eos_token_ids: object.token_ids("eos_token_id")?,
    })
}

/// The family, or an error that says what the checkpoint is instead.
fn family(top: &Object<'_>, text: &Object<'_>) -> Result<Family, Error> {
    let model_type = match text.string("model_type")? {
        Some(model_type) => Some(model_type),
        None => top.string("model_type")?,
    };
    match model_type {
        Some("qwen3_5_moe" | "qwen3_5_moe_text") => Ok(Family::Qwen35Moe),
        Some("qwen3_next") => Ok(Family::Qwen3Next),
        Some("qwen3_moe") => Ok(Family::Qwen3Moe),
        other => {
            let architecture = top.map.get("architectures").and_then(|list| list.get(0)?.as_str());
            let what = match (architecture, other) {
                (Some(architecture), Some(kind)) => format!("{architecture} (model_type {kind})"),
                (None, Some(kind)) => format!("model_type {kind}"),
                (Some(architecture), None) => architecture.to_owned(),
                (None, None) => "a configuration without model_type".to_owned(),
            };
            Err(Error::Unsupported { path: top.path.to_owned(), what })
        }
    }
}

fn model_config(family: Family, top: &Object<'_>, text: &Object<'_>) -> Result<ModelConfig, Error> {
    let hidden_size = text.size("hidden_size", 1 << 20)?;
    let n_layers = text.size("num_hidden_layers", 4096)?;
    let n_heads = text.size("num_attention_heads", 1 << 14)?;
    let n_kv_heads = text.size("num_key_value_heads", 1 << 14)?;
    text.check(n_heads.is_multiple_of(n_kv_heads), "num_attention_heads", || {
        format!("a multiple of num_key_value_heads ({n_kv_heads})")
    })?;
    let head_dim = match text.integer("head_dim", 1, 1 << 14)? {
        Some(head_dim) => head_dim,
        None => hidden_size / n_heads,
    };
    let rope = text.child("rope_parameters")?;
    let scaling = text.child("rope_scaling")?;
    for object in rope.iter().chain(&scaling) {
        for key in ["rope_type", "type"] {
            object.one_of(key, &["default"])?;
        }
    }
    let rope_number = |key: &str, range: std::ops::RangeInclusive<f64>| -> Result<_, Error> {
        let inner = rope.as_ref().map(|rope| rope.number(key, range.clone())).transpose()?;
        match inner.flatten() {
            Some(value) => Ok(Some(value)),
            None => text.number(key, range),
        }
    };
    let rope_theta = rope_number("rope_theta", 1.0..=1e12)?.unwrap_or(1e7);
    // Qwen3-MoE turns whole heads, has no delta nets, no gates, and no shared expert.
    let is_plain = family == Family::Qwen3Moe;
    let default_partial = if is_plain { 1.0 } else { 0.25 };
    let partial = rope_number("partial_rotary_factor", 1e-3..=1.0)?.unwrap_or(default_partial);
    let rotary_dim = (head_dim as f64 * partial) as usize;
    text.check(rotary_dim >= 2 && rotary_dim.is_multiple_of(2), "partial_rotary_factor", || {
        format!("such that an even number of the {head_dim} dimensions turn")
    })?;
    let attention =
        AttentionConfig { n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta, gated: !is_plain };
    let delta_net = if is_plain { None } else { Some(delta_net(family, text)?) };

    let shared = |key| if is_plain { Ok(None) } else { text.size(key, 1 << 20).map(Some) };
    let moe = MoeConfig {
        n_experts: text.size("num_experts", 1 << 16)?,
        top_k: text.size("num_experts_per_tok", 1 << 10)?,
        intermediate: text.size("moe_intermediate_size", 1 << 20)?,
        shared_intermediate: shared("shared_expert_intermediate_size")?,
        normalise: match family {
            Family::Qwen35Moe => true,
            Family::Qwen3Next | Family::Qwen3Moe => {
                text.boolean("norm_topk_prob")?.unwrap_or(false)
            }
        },
    };
    text.check(moe.top_k <= moe.n_experts, "num_experts_per_tok", || {
        format!("at most num_experts ({})", moe.n_experts)
    })?;

    // What the forward pass takes for granted.
    text.one_of("hidden_act", &["silu"])?;
    text.expect_flag("attention_bias", false)?;
    text.expect_flag("attn_output_gate", !is_plain)?;
    text.expect_flag("use_sliding_window", false)?;
    if family == Family::Qwen35Moe {
        text.expect_flag("norm_topk_prob", true)?;
    }

    let eps = text.number("rms_norm_eps", 1e-12..=1.0)?.unwrap_or(1e-6);
    let tie = match text.boolean("tie_word_embeddings")? {
        Some(tie) => tie,
        None => top.boolean("tie_word_embeddings")?.unwrap_or(false),
    };
    let mut eos_token_ids = text.token_ids("eos_token_id")?;
    eos_token_ids.extend(top.token_ids("eos_token_id")?);
    Ok(ModelConfig {
        family,
        hidden_size,
        vocab_size: text.size("vocab_size", 1 << 24)?,
        mixers: if is_plain {
            vec![MixerKind::Attention; n_layers]
        } else {
            mixers(text, n_layers)?
        },
        ffns: ffns(text, n_layers)?,
        attention,
        delta_net,
        moe,
        rms_norm_eps: eps as f32,
        tie_word_embeddings: tie,
        max_context: text.integer("max_position_embeddings", 1, 1 << 30)?.unwrap_or(262_144),
        eos_token_ids,
    })
}

fn delta_net(family: Family, text: &Object<'_>) -> Result<DeltaNetConfig, Error> {
    let delta_net = DeltaNetConfig {
        n_key_heads: text.size("linear_num_key_heads", 1 << 14)?,
        n_value_heads: text.size("linear_num_value_heads", 1 << 14)?,
        key_dim: text.size("linear_key_head_dim", 1 << 14)?,
        value_dim: text.size("linear_value_head_dim", 1024)?,
        conv_kernel: text.integer("linear_conv_kernel_dim", 2, 16)?.unwrap_or(4),
        projections: match family {
            Family::Qwen3Next => Projections::Interleaved,
            Family::Qwen35Moe | Family::Qwen3Moe => Projections::Separate,
        },
        tiled_values: false,
    };
    let n_key_heads = delta_net.n_key_heads;
    text.check(
        delta_net.n_value_heads.is_multiple_of(n_key_heads),
        "linear_num_value_heads",
        || format!("a multiple of linear_num_key_heads ({n_key_heads})"),
    )?;
    Ok(delta_net)
}

/// Layers of `mlp_only_layers`, and those that `decoder_sparse_step` passes over, are dense.
fn ffns(text: &Object<'_>, n_layers: usize) -> Result<Vec<FfnKind>, Error> {
    let step = text.integer("decoder_sparse_step", 1, 4096)?.unwrap_or(1);
    let dense: Vec<u64> = match text.map.get("mlp_only_layers") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => {
            let wrong = || text.wrong("mlp_only_layers", "a list of layers");
            let layers = list.as_array().ok_or_else(wrong)?.iter();
            layers.map(|layer| layer.as_u64().ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
    };
    let kinds = (0..n_layers).map(|layer| {
        if dense.contains(&(layer as u64)) || !(layer + 1).is_multiple_of(step) {
            Ok(FfnKind::Dense(text.size("intermediate_size", 1 << 20)?))
        } else {
            Ok(FfnKind::Moe)
        }
    });
    kinds.collect()
}

/// The mixer of each layer: listed, or every `full_attention_interval`th is full attention.
fn mixers(text: &Object<'_>, n_layers: usize) -> Result<Vec<MixerKind>, Error> {
    let Some(listed) = text.map.get("layer_types").filter(|value| !value.is_null()) else {
        let interval = text.integer("full_attention_interval", 1, 4096)?.unwrap_or(4);
        let kind = |layer: usize| match (layer + 1).is_multiple_of(interval) {
            true => MixerKind::Attention,
            false => MixerKind::DeltaNet,
        };
        return Ok((0..n_layers).map(kind).collect());
    };
    let expected = || format!("a list of {n_layers} of full_attention and linear_attention");
    let list = listed.as_array().filter(|list| list.len() == n_layers);
    let list = list.ok_or_else(|| text.wrong("layer_types", &expected()))?;
    let kinds = list.iter().map(|kind| match kind.as_str() {
        Some("full_attention") => Ok(MixerKind::Attention),
        Some("linear_attention") => Ok(MixerKind::DeltaNet),
        _ => Err(text.wrong("layer_types", &expected())),
    });
    kinds.collect()
}

/// A JSON object of a file, with checked access.
struct Object<'a> {
    path: &'a Path,
    /// Name of the object inside the file, with a dot; empty at the top.
    prefix: String,
    map: Map<String, Value>,
}

impl<'a> Object<'a> {
    fn new(path: &'a Path, json: Value) -> Result<Self, Error> {
        match json {
            Value::Object(map) => Ok(Self { path, prefix: String::new(), map }),
            _ => {
                Err(Error::Malformed { path: path.to_owned(), reason: "not an object".to_owned() })
            }
        }
    }

    fn child(&self, key: &str) -> Result<Option<Self>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Self { path: self.path, prefix, map: map.clone() }))
            }
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// An error about a field.
    fn wrong(&self, key: &str, expected: &str) -> Error {
        let mut found =
            self.map.get(key).map_or_else(|| "absent".to_owned(), |value| value.to_string());
        if found.len() > 80 {
            let end = (0..=80).rev().find(|&end| found.is_char_boundary(end)).unwrap_or(0);
            found.truncate(end);
            found.push_str("...");
        }
        Error::Field {
            path: self.path.to_owned(),
            field: format!("{}{key}", self.prefix),
            found,
            expected: expected.to_owned(),
        }
    }

    fn check(&self, ok: bool, key: &str, expected: impl Fn() -> String) -> Result<(), Error> {
        if ok { Ok(()) } else { Err(self.wrong(key, &expected())) }
    }

    /// A whole number in a range; `None` when absent.
    fn integer(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                let number = number.filter(|number| (min..=max).contains(number));
                let expected = || format!("a whole number from {min} to {max}");
                Ok(Some(number.ok_or_else(|| self.wrong(key, &expected()))?))
            }
        }
    }

    /// A positive whole number that must be there.
    fn size(&self, key: &str, max: usize) -> Result<usize, Error> {
        let expected = || self.wrong(key, &format!("a whole number from 1 to {max}"));
        self.integer(key, 1, max)?.ok_or_else(expected)
    }

    fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_f64().filter(|number| range.contains(number));
                let expected = || format!("a number from {} to {}", range.start(), range.end());
                Ok(Some(number.ok_or_else(|| self.wrong(key, &expected()))?))
            }
        }
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A flag that may be absent, but must not have the other value.
    fn expect_flag(&self, key: &str, expected: bool) -> Result<(), Error> {
        match self.boolean(key)? {
            Some(value) if value != expected => Err(self.wrong(key, &expected.to_string())),
            _ => Ok(()),
        }
    }

    fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A text that may be absent, but must not be another than these.
    fn one_of(&self, key: &str, allowed: &[&str]) -> Result<(), Error> {
        match self.string(key)? {
            Some(text) if !allowed.contains(&text) => Err(self.wrong(key, &allowed.join(" or "))),
            _ => Ok(()),
        }
    }

    /// A token id or a list of them; empty when absent.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.wrong(key, "a token id or a list of them"))
        };
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

/// Reads a JSON file of bounded size.
pub(crate) fn read_json(path: &Path) -> Result<Value, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(io)?.len();
    let malformed = |reason| Error::Malformed { path: path.to_owned(), reason };
    if len > MAX_CONFIG_BYTES {
        return Err(malformed(format!("{len} bytes are too many for a configuration")));
    }
    let bytes = fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))
}
