//! A tokenizer for synthetic checkpoints: bytes, fillers, and the control tokens of Qwen3.5.

use serde_json::{Map, Value, json};

/// The chat template of the demo model.
pub(crate) const CHAT_TEMPLATE: &str = include_str!("../../../../models/demo/chat_template.jinja");

/// The control tokens of Qwen3.5 in their order; the flag tells those that are special.
const CONTROL_TOKENS: [(&str, bool); N_CONTROL_TOKENS] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<|object_ref_start|>", true),
    ("<|object_ref_end|>", true),
    ("<|box_start|>", true),
    ("<|box_end|>", true),
    ("<|quad_start|>", true),
    ("<|quad_end|>", true),
    ("<|vision_start|>", true),
    ("<|vision_end|>", true),
    ("<|vision_pad|>", true),
    ("<|image_pad|>", true),
    ("<|video_pad|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<|fim_prefix|>", false),
    ("<|fim_middle|>", false),
    ("<|fim_suffix|>", false),
    ("<|fim_pad|>", false),
    ("<|repo_name|>", false),
    ("<|file_sep|>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
    ("<think>", false),
    ("</think>", false),
];

/// The one merge, of two spaces: some readers want at least one.
pub(crate) const MERGED: &str = "\u{120} \u{120}";

/// They are the last ids of the vocabulary.
pub(crate) const N_CONTROL_TOKENS: usize = 26;

/// `tokenizer.json`: a byte-level BPE with one merge, whose ids beyond that are fillers.
pub(crate) fn tokenizer(vocab: usize) -> Value {
    let first_control = vocab - N_CONTROL_TOKENS;
    let mut entries = Map::new();
    // The byte alphabet: printable Latin-1 characters, and those from U+0100 on for other bytes.
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|byte| !printable(byte)).count() as u32;
    let alphabet = (0..=u8::MAX).filter(printable).map(char::from);
    let alphabet = alphabet.chain((0..others).filter_map(|i| char::from_u32(0x100 + i)));
    entries.extend(alphabet.enumerate().map(|(id, symbol)| (symbol.to_string(), id.into())));
    entries.insert(MERGED.replace(' ', ""), entries.len().into());
    entries.extend((entries.len()..first_control).map(|id| (format!("t{id:06}"), id.into())));
    let control = CONTROL_TOKENS.iter().enumerate().map(|(index, (content, special))| {
        json!({
            "id": first_control + index, "content": content, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": control.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": entries, "merges": [MERGED],
        },
    })
}

/// All tokens by id, and whether each is ordinary (1), control (3) or defined by users (4).
pub(crate) fn tokens(vocab: usize) -> (Vec<String>, Vec<i32>) {
    let json = tokenizer(vocab);
    let entries = json["model"]["vocab"].as_object().into_iter().flatten();
    let mut tokens: Vec<String> = entries.map(|(token, _)| token.clone()).collect();
    let mut kinds = vec![1; tokens.len()];
    for (content, special) in CONTROL_TOKENS {
        tokens.push(content.to_owned());
        kinds.push(if special { 3 } else { 4 });
    }
    (tokens, kinds)
}

/// `tokenizer_config.json`.
pub(crate) fn tokenizer_config() -> Value {
    json!({ "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>" })
}

/// `generation_config.json`.
pub(crate) fn generation_config(vocab: usize) -> Value {
    let first_control = vocab - N_CONTROL_TOKENS;
    let (end_of_text, end_of_message) = (first_control, first_control + 2);
    json!({ "do_sample": false, "eos_token_id": [end_of_message, end_of_text] })
}
