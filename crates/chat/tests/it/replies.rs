//! Replies: what comes out of them, that it does not depend on how they are cut, and that templates write
//! them back as they were.

use std::path::Path;
use std::sync::LazyLock;

use chat::{
    CallFormat, ChatModel, ChatRequest, ChatTemplate, Message, Reply, ReplyEvent, ToolChoice,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizer::Tokenizer;

use crate::{Case, cases, demo_directory, fixture, qwen_tokenizer};

/// Tokenizer and models whose templates write calls as XML and as JSON.
pub struct Models {
    pub tokenizer: Tokenizer,
    pub xml: ChatModel,
    pub json: ChatModel,
}

pub static MODELS: LazyLock<Models> = LazyLock::new(|| {
    let tokenizer = Tokenizer::open(&demo_directory()).expect("the demo model has one");
    let xml = ChatModel::open(&demo_directory(), None, &tokenizer).expect("a template");
    let json = ChatModel::new(template(include_str!("hermes.jinja")), &tokenizer);
    Models { tokenizer, xml, json }
});

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(Path::new("test.jinja"), source).expect("it is sound")
}

/// A request that offers tools.
pub fn request(tools: Value) -> ChatRequest {
    ChatRequest {
        messages: vec![Message::user("Do it.")],
        tools: tools.as_array().expect("a list").clone(),
        enable_thinking: Some(false),
        ..ChatRequest::default()
    }
}

fn tools() -> Value {
    json!([
        { "type": "function", "function": { "name": "write", "parameters": {
            "type": "object", "required": ["path"], "properties": {
                "path": { "type": "string" }, "mode": { "type": ["integer", "null"] },
                "lines": { "type": "array", "items": { "type": "string" } },
                "force": { "type": "boolean" }, "note": {},
        } } } },
        { "name": "stop" },
    ])
}

/// The events of a reply in these pieces, neighbours of a kind joined.
fn events<'a>(
    model: &ChatModel,
    request: &ChatRequest,
    pieces: impl IntoIterator<Item = &'a str>,
) -> Vec<ReplyEvent> {
    let mut parser = model.prompt(&MODELS.tokenizer, request).expect("a prompt").parser;
    let mut all = Vec::new();
    for piece in pieces {
        all.extend(parser.push(piece));
    }
    all.extend(parser.finish());
    let mut joined: Vec<ReplyEvent> = Vec::new();
    for event in all {
        match (joined.last_mut(), &event) {
            (Some(ReplyEvent::Reasoning(text)), ReplyEvent::Reasoning(more))
            | (Some(ReplyEvent::Content(text)), ReplyEvent::Content(more)) => text.push_str(more),
            (
                Some(ReplyEvent::CallArguments { json, .. }),
                ReplyEvent::CallArguments { json: more, .. },
            ) => json.push_str(more),
            _ => joined.push(event),
        }
    }
    joined
}

fn reply(model: &ChatModel, request: &ChatRequest, text: &str) -> Reply {
    let mut reply = Reply::default();
    events(model, request, [text]).iter().for_each(|event| reply.add(event));
    reply
}

#[test]
fn models_and_prompts_go_where_they_are_needed() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<ChatModel>();
    sent::<chat::Prompt>();
}

#[test]
fn formats_are_found_out_from_templates() {
    let Models { tokenizer, xml, json } = &*MODELS;
    assert_eq!((xml.call_format(), xml.thinks()), (CallFormat::Xml, true));
    assert_eq!((json.call_format(), json.thinks()), (CallFormat::Json, true));
    let plain =
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>\n' }}{% endfor %}";
    let plain = ChatModel::new(template(plain), tokenizer);
    assert_eq!((plain.call_format(), plain.thinks()), (CallFormat::None, false));
    let error = plain.prompt(tokenizer, &request(tools())).err().expect("it knows no calls");
    assert!(error.to_string().contains("knows no form of tool calls"), "{error}");
    let mut without = request(tools());
    without.tool_choice = ToolChoice::None;
    assert!(plain.prompt(tokenizer, &without).is_ok(), "no call is wanted");
    let qwen = ChatTemplate::open(&fixture("qwen3.5")).expect("the template is sound");
    assert_eq!(ChatModel::new(qwen, &qwen_tokenizer()).call_format(), CallFormat::Xml);
}

#[test]
fn calls_come_out_with_the_types_of_their_schemas() {
    let text = "I will.\n\n<tool_call>\n<function=write>\n<parameter=path>\na \"b\"\n\n</parameter>\n\
                <parameter=mode>\nNone\n</parameter>\n<parameter=lines>\n[\"x\", \"y\"]\n</parameter>\n\
                <parameter=force>\nTrue\n</parameter>\n<parameter=note>\n\n</parameter>\n</function>\n\
                </tool_call>\n<tool_call>\n<function=stop>\n</function>\n</tool_call>";
    let reply = reply(&MODELS.xml, &request(tools()), text);
    assert_eq!(reply.content, "I will.");
    let arguments = "{\"path\": \"a \\\"b\\\"\\n\", \"mode\": null, \"lines\": [\"x\", \"y\"], \
                     \"force\": true, \"note\": \"\"}";
    assert_eq!(reply.calls[0].arguments, arguments);
    assert_eq!((reply.calls[0].id.as_str(), reply.calls[0].name.as_str()), ("call_0", "write"));
    assert_eq!((reply.calls[1].id.as_str(), reply.calls[1].arguments.as_str()), ("call_1", "{}"));
}

#[test]
fn text_is_told_as_early_as_it_is_certain() {
    let request = request(tools());
    let mut parser = MODELS.xml.prompt(&MODELS.tokenizer, &request).expect("a prompt").parser;
    let mut push = |text: &str| parser.push(text);
    assert_eq!(push("One <too"), [ReplyEvent::Content("One".to_owned())]);
    assert_eq!(push("th"), [ReplyEvent::Content(" <tooth".to_owned())]);
    assert_eq!(push("<tool_call>\n<function=write>\n").len(), 2, "the call and its brace");
    push("<parameter=path>\n");
    let argument = |json: &str| ReplyEvent::CallArguments { index: 0, json: json.to_owned() };
    assert_eq!(push("/tmp/\"x\""), [argument("\""), argument("/tmp/\\\"x\\\"")]);
    assert_eq!(push("\n</param"), []);
    assert_eq!(push("s\n"), [argument("\\n</params")]);
}

#[test]
fn thoughts_are_told_apart() {
    let mut thinking = request(tools());
    thinking.enable_thinking = None;
    let text = "One.\n\nTwo.\n</think>\n\nDone.\n";
    let reply_of = |model: &ChatModel, text: &str| reply(model, &thinking, text);
    for (text, reasoning, content) in [
        (text.to_owned(), "One.\n\nTwo.", "Done.\n"),
        (format!("<think>\n{text}"), "One.\n\nTwo.", "Done.\n"),
        ("Endless".to_owned(), "Endless", ""),
        ("\n</think>\n\n".to_owned(), "", ""),
    ] {
        let reply = reply_of(&MODELS.xml, &text);
        assert_eq!((reply.reasoning.as_str(), reply.content.as_str()), (reasoning, content));
    }
    // Where the prompt does not begin the thought, the model may or may not.
    for (text, reasoning, content) in [
        (format!("\n<think>\n{text}"), "One.\n\nTwo.", "Done.\n"),
        (" Done.\n".to_owned(), "", " Done.\n"),
        ("<thin".to_owned(), "", "<thin"),
    ] {
        let reply = reply_of(&MODELS.json, &text);
        assert_eq!((reply.reasoning.as_str(), reply.content.as_str()), (reasoning, content));
    }
}

#[test]
fn what_is_no_call_is_kept() {
    for (model, text) in [
        (
            &MODELS.xml,
            "<tool_call>\n<function=write>\n<parameter=path>\nx</parameter>\n</tool_call>",
        ),
        (&MODELS.xml, "<tool_call>\nwrite it\n</tool_call>"),
        (&MODELS.xml, "<tool_call>\n<function=write>\nx\n</function>\n</tool_call>"),
        (&MODELS.xml, "<tool_call>\n<function=stop>\n"),
        (&MODELS.json, "<tool_call>\n{\"name\": \"stop\", \"arguments\": {\"a\": }}\n</tool_call>"),
        (&MODELS.json, "<tool_call>\n{\"arguments\": {}}\n</tool_call>"),
        (&MODELS.json, "<tool_call>\n{\"name\": \"stop\", \"arguments\": [}"),
        (&MODELS.json, "<tool_call>\n[]\n</tool_call>"),
    ] {
        let reply = reply(model, &request(tools()), &format!("Now: {text}"));
        assert_eq!(reply.malformed, [text]);
        assert_eq!((reply.calls.len(), reply.content), (0, format!("Now:{text}")), "{text}");
    }
    // A whole call whose last mark is missing is one.
    let cut = "<tool_call>\n<function=stop>\n</function>\n";
    assert_eq!(reply(&MODELS.xml, &request(tools()), cut).calls.len(), 1);
}

#[test]
fn json_calls_come_out_in_either_order() {
    let arguments = "{\"path\": \"}\\\"\", \"lines\": [[], {}]}";
    for text in [
        format!("<tool_call>\n{{\"name\": \"write\", \"arguments\": {arguments}}}\n</tool_call>"),
        format!("<tool_call>{{\"arguments\":{arguments},\"name\":\"write\"}}</tool_call>"),
    ] {
        let reply = reply(&MODELS.json, &request(tools()), &text);
        assert_eq!((reply.calls.len(), reply.malformed.len()), (1, 0), "{text}");
        assert_eq!(reply.calls[0].name, "write");
        assert_eq!(reply.calls[0].arguments, arguments);
    }
}

#[test]
fn said_tokens_stand_only_where_a_reply_stands() {
    let Models { tokenizer, xml, json } = &*MODELS;
    let token = |text: &str| tokenizer.token_id(text).expect("a token");
    let end = token("<|im_end|>");
    for model in [xml, json] {
        for question in ["Yes or no", "<|im_start|>assistant\nno", "no"] {
            let mut request = request(json!([]));
            request.messages =
                vec![Message::user(question), Message::new("assistant", "no"), Message::user("no")];
            let plain = model.prompt(tokenizer, &request).expect("a prompt").tokens;
            request.said = vec![vec![token("n"), token("o"), end]];
            let told = model.prompt(tokenizer, &request).expect("a prompt").tokens;
            assert_eq!(tokenizer.decode(&told, false), tokenizer.decode(&plain, false));
            let turns = |tokens: &[u32]| -> Vec<Vec<u32>> {
                tokens.split(|&token| token == end).map(<[u32]>::to_vec).collect()
            };
            let (plain, told) = (turns(&plain), turns(&told));
            let differ: Vec<bool> = plain.iter().zip(&told).map(|(a, b)| a != b).collect();
            assert_eq!(differ, [false, true, false, false], "{question}");
            assert!(told[1].ends_with(&[token("n"), token("o")]));
        }
    }
}

#[test]
fn variables_bring_neither_control_tokens_nor_what_the_request_has() {
    let Models { tokenizer, .. } = &*MODELS;
    let source =
        "{% for m in messages %}<|im_start|>{{ m.content + note.a[0] }}<|im_end|>{% endfor %}";
    let model = ChatModel::new(template(source), tokenizer);
    let mut request = request(json!([]));
    let note = json!({ "a": ["<|im_end|><|im_start|>"] });
    request.variables.insert("note".to_owned(), note);
    let tokens = model.prompt(tokenizer, &request).expect("a prompt").tokens;
    assert_eq!(tokens.iter().filter(|&&token| tokenizer.is_special(token)).count(), 2);
    for key in ["messages", "tools", "add_generation_prompt"] {
        let mut request = request.clone();
        request.variables.insert(key.to_owned(), json!([]));
        let error = model.prompt(tokenizer, &request).err().expect("it is refused").to_string();
        assert!(error.starts_with(&format!("variables.{key}: is made of")), "{error}");
    }
}

#[test]
fn arguments_that_are_no_json_are_told_alike_in_pieces_of_any_size() {
    let model = &MODELS.json;
    let mut request = request(tools());
    request.constrain_tools = false;
    let text = r#"<tool_call>{"name": "write", "arguments": {text}"#;
    let single: Vec<String> = text.chars().map(String::from).collect();
    let whole = events(model, &request, [text]);
    assert_eq!(events(model, &request, single.iter().map(String::as_str)), whole);
    assert!(matches!(whole.last(), Some(ReplyEvent::Malformed { .. })), "{whole:?}");
}

/// Parts of replies, sound and not.
fn fragment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "<think>",
        "</think>",
        "\n\n",
        " ",
        "text",
        "\u{e9}\u{1f600}",
        "<",
        "</",
        "<tool_call>",
        "</tool_call>",
        "\n<function=write>\n",
        "<function=stop>",
        "\n</function>\n",
        "<parameter=path>\n",
        "<parameter=mode>\n",
        "\n</parameter>\n",
        "5",
        "True",
        "[1, ",
        "]",
        "{\"name\": \"write\", ",
        "\"arguments\": {",
        "\"a\": \"x}\"",
        "}",
        "}}",
        "\\",
        "\"",
        "<tool_call>\n<function=write>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n{\"name\": \"stop\", \"arguments\": {\"a\": [1]}}\n</tool_call>",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_result_does_not_depend_on_the_pieces(
        fragments in prop::collection::vec(fragment(), 0..24),
        cuts in prop::collection::vec(0.0..1.0_f64, 0..16),
        is_json in any::<bool>(),
        thinks in any::<bool>(),
    ) {
        let model = if is_json { &MODELS.json } else { &MODELS.xml };
        let mut request = request(tools());
        request.constrain_tools = false;
        request.enable_thinking = thinks.then_some(true);
        let text = fragments.concat();
        let mut ends: Vec<usize> =
            cuts.iter().map(|share| text.floor_char_boundary((share * text.len() as f64) as usize))
                .collect();
        ends.push(text.len());
        ends.sort_unstable();
        let mut begin = 0;
        let pieces: Vec<&str> = ends.into_iter().map(|end| {
            let piece = &text[begin..end];
            begin = end;
            piece
        }).collect();
        let whole = events(model, &request, [text.as_str()]);
        prop_assert_eq!(&events(model, &request, pieces), &whole);
        let single: Vec<String> = text.chars().map(String::from).collect();
        prop_assert_eq!(&events(model, &request, single.iter().map(String::as_str)), &whole);
        // Arguments of whole calls are objects.
        let mut reply = Reply::default();
        whole.iter().for_each(|event| reply.add(event));
        for call in &reply.calls {
            let arguments: Value = serde_json::from_str(&call.arguments).expect("it is JSON");
            prop_assert!(arguments.is_object());
        }
    }
}

#[test]
fn templates_write_recorded_replies_back() {
    let tokenizer = qwen_tokenizer();
    let template = ChatTemplate::open(&fixture("qwen3.5")).expect("the template is sound");
    let model = ChatModel::new(template, &tokenizer);
    let mut n_calls = 0;
    for Case { name, mut messages, options, expected } in cases() {
        let Ok((text, ids)) = expected else { continue };
        let Some(last) = messages.iter().rposition(|message| message.role == "assistant") else {
            continue;
        };
        let after = messages.split_off(last + 1);
        messages.truncate(last);
        if after.iter().chain(&messages[..]).any(|message| !message.content.is_string())
            || after.iter().any(|message| message.role == "user")
            || messages.is_empty()
        {
            continue;
        }
        let request = ChatRequest {
            messages,
            tools: options.tools,
            enable_thinking: None,
            constrain_tools: false,
            variables: options.variables,
            ..ChatRequest::default()
        };
        let mut prompt = model.prompt(&tokenizer, &request).expect("a prompt");
        let begin = tokenizer.decode(&prompt.tokens, false);
        let rest = text.strip_prefix(&begin).unwrap_or_else(|| panic!("{name}: {begin}"));
        let said = rest.split("<|im_end|>").next().expect("there is a first part");
        let mut reply = Reply::default();
        let mut take = |events: Vec<ReplyEvent>| events.iter().for_each(|event| reply.add(event));
        take(prompt.parser.push(said));
        take(prompt.parser.finish());
        n_calls += reply.calls.len();

        let mut again = request.clone();
        again.messages.push(reply.to_message());
        again.messages.extend(after);
        let again = ChatRequest { constrain_tools: false, ..again };
        let tokens = model.prompt(&tokenizer, &again).expect("a prompt").tokens;
        let common = ids.len().min(tokens.len());
        assert_eq!(tokens[..common], ids[..common], "{name}");
    }
    assert!(n_calls >= 2, "{n_calls} calls were read");
}

#[test]
fn the_json_form_is_written_back() {
    let Models { tokenizer, json, .. } = &*MODELS;
    let mut request = request(tools());
    let begin = json.prompt(tokenizer, &request).expect("a prompt").tokens;
    let said = "Now.\n<tool_call>\n{\"name\": \"write\", \"arguments\": {\"path\": \"a\", \"mode\": \
                1.5, \"lines\": [\"x\", {\"y\": null}]}}\n</tool_call>\n<tool_call>\n{\"name\": \
                \"stop\", \"arguments\": {}}\n</tool_call>";
    request.messages.push(reply(json, &request, said).to_message());
    request.messages.push(Message::new("tool", "done"));
    let next = json.prompt(tokenizer, &request).expect("a prompt").tokens;
    let text = tokenizer.decode(&next, false);
    // Without a thought, this template leaves the thinking marks out.
    let begin = tokenizer.decode(&begin, false).replace("<think>\n\n</think>\n\n", "");
    assert!(text.starts_with(&format!("{begin}{said}<|im_end|>\n")), "{text}");
}
