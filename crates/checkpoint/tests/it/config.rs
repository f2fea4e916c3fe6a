//! Reading configurations: the published ones, and what must be refused.

use std::fs;

use checkpoint::{Checkpoint, Error, MixerKind};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{Copy, fixture};

/// The fixture's tensors with another configuration, so that only the configuration is judged.
fn open_with(config: &str) -> Result<Checkpoint, Error> {
    let copy = Copy::of("qwen35moe-mini-mlx-8bit");
    fs::write(copy.path().join("config.json"), config).expect("the copy can be written");
    Checkpoint::open(copy.path())
}

fn published(name: &str) -> String {
    fs::read_to_string(fixture("configs").join(name)).expect("the configuration is there")
}

#[test]
fn published_dimensions_are_read() {
    // hidden, layers, heads, value heads, experts, top-k, intermediate
    for (name, dimensions) in [
        ("qwen3.5-397b-a17b", [4096, 60, 32, 64, 512, 10, 1024]),
        ("qwen3.5-122b-a10b", [3072, 48, 32, 64, 256, 8, 1024]),
        ("qwen3.5-35b-a3b", [2048, 40, 16, 32, 256, 8, 512]),
    ] {
        for variant in ["", "-mlx-4bit"] {
            let checkpoint = open_with(&published(&format!("{name}{variant}.json")));
            let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{name}{variant}: {error}"));
            let config = checkpoint.config();
            let found = [
                config.hidden_size,
                config.mixers.len(),
                config.attention.n_heads,
                config.delta_net.expect("the family has them").n_value_heads,
                config.moe.n_experts,
                config.moe.top_k,
                config.moe.intermediate,
            ];
            assert_eq!(found, dimensions, "{name}{variant}");
            assert_eq!(config.attention.rotary_dim, 64);
            assert_eq!(config.attention.rope_theta, 1e7);
            assert_eq!(config.vocab_size, 248_320);
            assert_eq!(config.attention_layers(), config.mixers.len() / 4);
            assert_eq!(config.mixers[3], MixerKind::Attention);
            assert_eq!(config.mixers[4], MixerKind::DeltaNet);
            assert!(config.eos_token_ids.contains(&248_044));
        }
    }
}

#[test]
fn the_other_families_are_read() {
    let next = open_with(&published("qwen3-next-80b-a3b.json")).expect("it is published");
    let config = next.config();
    assert_eq!((config.hidden_size, config.mixers.len(), config.moe.n_experts), (2048, 48, 512));
    assert_eq!((config.attention.rotary_dim, config.attention.gated), (64, true));
    assert_eq!(config.attention_layers(), 12);

    let moe = open_with(&published("qwen3-30b-a3b.json")).expect("it is published");
    let config = moe.config();
    assert_eq!((config.hidden_size, config.mixers.len(), config.moe.n_experts), (2048, 48, 128));
    assert_eq!((config.attention.rotary_dim, config.attention.gated), (128, false));
    assert_eq!((config.attention_layers(), config.delta_net), (48, None));
    assert_eq!((config.moe.shared_intermediate, config.moe.normalise), (None, true));
}

#[test]
fn flat_and_sparse_configurations_mean_the_same() {
    let full = open_with(&published("qwen3.5-35b-a3b.json")).expect("it is published");
    let mut value: Value =
        serde_json::from_str(&published("qwen3.5-35b-a3b.json")).expect("it is JSON");
    let mut text = value["text_config"].take();
    text["model_type"] = "qwen3_5_moe_text".into();
    for absent in ["layer_types", "rope_parameters", "partial_rotary_factor", "rope_theta"] {
        text.as_object_mut().expect("an object").remove(absent);
    }
    let flat = open_with(&text.to_string()).expect("a flat configuration");
    let mut expected = full.config().clone();
    expected.tie_word_embeddings = flat.config().tie_word_embeddings;
    expected.eos_token_ids = flat.config().eos_token_ids.clone();
    assert_eq!(*flat.config(), expected);
}

#[test]
fn other_models_are_named() {
    for (config, words) in [
        (
            r#"{"model_type":"qwen3_5","architectures":["Qwen3_5ForCausalLM"]}"#.to_owned(),
            "Qwen3_5ForCausalLM",
        ),
        ("{}".to_owned(), "without model_type"),
        ("[1]".to_owned(), "not an object"),
        ("{".to_owned(), "config.json"),
    ] {
        let message = open_with(&config).expect_err("it is not this family").to_string();
        assert!(message.contains(words), "{words} is in: {message}");
    }
}

#[test]
fn each_wrong_field_is_named() {
    let base: Value = serde_json::from_str(&published("qwen3.5-35b-a3b.json")).expect("it is JSON");
    for (field, value) in [
        ("hidden_size", Value::from(0)),
        ("num_hidden_layers", Value::from(-3)),
        ("num_attention_heads", Value::from(15)),
        ("num_experts_per_tok", Value::from(257)),
        ("linear_num_value_heads", Value::from(17)),
        ("rms_norm_eps", Value::from("small")),
        ("hidden_act", Value::from("gelu")),
        ("attn_output_gate", Value::from(false)),
        ("attention_bias", Value::from(true)),
        ("layer_types", serde_json::json!(["full_attention"])),
        ("mlp_only_layers", serde_json::json!("all")),
        ("vocab_size", Value::from(1_u64 << 60)),
        ("rope_scaling", serde_json::json!({ "type": "yarn" })),
        ("partial_rotary_factor", Value::from(7.5)),
    ] {
        let mut config = base.clone();
        config["text_config"][field] = value;
        if field == "partial_rotary_factor" {
            config["text_config"]["rope_parameters"][field] = Value::Null;
        }
        let message = open_with(&config.to_string()).expect_err("it is wrong").to_string();
        let named = field == "rope_scaling" || message.contains(field);
        assert!(named && message.contains("config.json"), "{field} is in: {message}");
    }
    for (quantization, words) in [
        (serde_json::json!({ "bits": 7, "group_size": 64 }), "bits"),
        (serde_json::json!({ "bits": 4, "group_size": 16 }), "group_size"),
        (serde_json::json!({ "bits": 4, "group_size": 32, "mode": "mxfp4" }), "mode"),
        (serde_json::json!({ "quant_method": "gptq" }), "gptq"),
    ] {
        let mut config = base.clone();
        let key = if words == "gptq" { "quantization_config" } else { "quantization" };
        config[key] = quantization;
        let message = open_with(&config.to_string()).expect_err("it is wrong").to_string();
        assert!(message.contains(words), "{words} is in: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_configuration_panics(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = published("qwen3.5-35b-a3b.json").into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = with;
        let _ = open_with(&String::from_utf8_lossy(&bytes));
    }
}
