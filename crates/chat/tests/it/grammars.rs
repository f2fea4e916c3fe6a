//! Grammars: what a held reply may and may not say, where it may end, and what is refused.

use std::fs;
use std::path::Path;

use chat::{
    ChatModel, ChatRequest, ChatTemplate, Error, Message, Reply, ResponseFormat, ToolChoice,
};
use serde_json::{Value, json};
use tokenizer::Tokenizer;

use crate::demo_directory;
use crate::replies::{MODELS, request};

/// How far a text can be said, in bytes, and whether the reply may end there.
#[derive(Debug, PartialEq)]
struct Verdict {
    said: usize,
    may_end: bool,
}

/// Says a text under the constraint of a request, in tokens that the constraint allows. What can be said as
/// a whole is read back, and nothing of it may be malformed.
fn say(model: &ChatModel, request: &ChatRequest, text: &str) -> Verdict {
    let verdict = speak(model, request, text);
    if verdict == (Verdict { said: text.len(), may_end: true }) {
        assert_eq!(read(model, request, text).malformed, [""; 0], "{text}");
    }
    verdict
}

/// What is read of a reply.
fn read(model: &ChatModel, request: &ChatRequest, text: &str) -> Reply {
    let mut parser = model.prompt(&MODELS.tokenizer, request).expect("a prompt").parser;
    let mut reply = Reply::default();
    for event in parser.push(text).into_iter().chain(parser.finish()) {
        reply.add(&event);
    }
    reply
}

/// The argument `x` of the only call of a reply.
fn read_x(model: &ChatModel, request: &ChatRequest, text: &str) -> Value {
    let reply = read(model, request, text);
    assert_eq!(reply.calls.len(), 1, "{text}");
    let arguments = &reply.calls[0].arguments;
    let arguments: Value = serde_json::from_str(arguments).expect("arguments are JSON");
    arguments["x"].clone()
}

/// What a value is, written as templates do: a text where only a text is allowed or nothing else reads.
fn written(value: &str, x: &Value) -> Value {
    match value {
        _ if x.is_string() => value.into(),
        "True" => true.into(),
        "False" => false.into(),
        "None" => Value::Null,
        json => serde_json::from_str(json).expect("it is JSON"),
    }
}

fn speak(model: &ChatModel, request: &ChatRequest, text: &str) -> Verdict {
    let tokenizer = &MODELS.tokenizer;
    let mut prompt = model.prompt(tokenizer, request).expect("a prompt");
    let constraint = prompt.constraint.as_mut().expect("a constraint");
    let (mut said, mut forced) = (0, Vec::new());
    loop {
        forced.clear();
        constraint.forced(&mut forced).expect("it holds");
        for &token in &forced {
            let bytes = tokenizer.token_bytes(token);
            if !text.as_bytes()[said..].starts_with(bytes) {
                return Verdict { said, may_end: false };
            }
            said += bytes.len();
        }
        if constraint.is_finished() {
            return Verdict { said, may_end: true };
        }
        let mut logits = vec![0.0_f32; 8192];
        constraint.mask(&mut logits).expect("it holds");
        let allowed = |token: u32| logits[token as usize] == 0.0;
        let may_end = allowed(8161);
        let rest = &text.as_bytes()[said..];
        // Within a character no text begins.
        let canonical = text
            .get(said..)
            .and_then(|rest| tokenizer.encode(rest).expect("it can be encoded").first().copied());
        let fits = |token: &u32| {
            let bytes = tokenizer.token_bytes(*token);
            allowed(*token) && !bytes.is_empty() && rest.starts_with(bytes)
        };
        let longest =
            || (0..8192).filter(fits).max_by_key(|&token| tokenizer.token_bytes(token).len());
        let Some(token) = canonical.filter(fits).or_else(longest) else {
            return Verdict { said, may_end };
        };
        constraint.commit(token).expect("it was allowed");
        said += tokenizer.token_bytes(token).len();
    }
}

#[track_caller]
fn assert_said(model: &ChatModel, request: &ChatRequest, text: &str) {
    assert_eq!(say(model, request, text), Verdict { said: text.len(), may_end: true }, "{text}");
}

/// The text cannot be said as a whole reply.
#[track_caller]
fn assert_refused(model: &ChatModel, request: &ChatRequest, text: &str) {
    let verdict = say(model, request, text);
    assert!(verdict.said < text.len() || !verdict.may_end, "{text}: {verdict:?}");
}

fn tool(name: &str, properties: Value, required: &[&str]) -> Value {
    json!({ "type": "function", "function": { "name": name, "parameters": {
        "type": "object", "properties": properties, "required": required,
    } } })
}

fn xml(name: &str, arguments: &[(&str, &str)]) -> String {
    let argument =
        |(key, value): &(&str, &str)| format!("<parameter={key}>\n{value}\n</parameter>\n");
    let arguments: String = arguments.iter().map(argument).collect();
    format!("<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>")
}

/// A tool with one argument `x` of this schema.
fn one(schema: Value) -> ChatRequest {
    request(json!([tool("f", json!({ "x": schema }), &["x"])]))
}

#[test]
fn text_is_free_until_a_call_opens() {
    let model = &MODELS.xml;
    let tools =
        json!([tool("add", json!({ "a": { "type": "integer" } }), &["a"]), { "name": "stop" }]);
    let mut request = request(tools);
    let call = xml("add", &[("a", "12")]);
    assert_said(model, &request, "Any text <b> at all");
    assert_said(model, &request, &call);
    assert_said(model, &request, &format!("First.\n\n{call}\n{}", xml("stop", &[])));
    for wrong in [
        xml("sub", &[("a", "1")]),
        xml("add", &[]),
        xml("add", &[("a", "one")]),
        xml("add", &[("b", "1")]),
        xml("add", &[("a", "1"), ("b", "1")]),
        format!("{call} and more"),
        "<tool_call>\n{}".to_owned(),
    ] {
        assert_refused(model, &request, &wrong);
    }
    request.parallel_tool_calls = false;
    assert_said(model, &request, &call);
    assert_refused(model, &request, &format!("{call}\n{call}"));
    request.constrain_tools = false;
    assert!(model.prompt(&MODELS.tokenizer, &request).expect("a prompt").constraint.is_none());
}

#[test]
fn a_call_can_be_asked_for() {
    let model = &MODELS.xml;
    let mut request = request(json!([tool("a", json!({}), &[]), tool("b", json!({}), &[])]));
    request.tool_choice = ToolChoice::Required;
    assert_said(model, &request, &xml("b", &[]));
    assert_eq!(say(model, &request, "Text").said, 0);
    assert_eq!(say(model, &request, ""), Verdict { said: 0, may_end: false });
    request.tool_choice = ToolChoice::Named("a".to_owned());
    assert_said(model, &request, &xml("a", &[]));
    assert_refused(model, &request, &xml("b", &[]));
    request.tool_choice = ToolChoice::None;
    let prompt = model.prompt(&MODELS.tokenizer, &request).expect("a prompt");
    assert!(prompt.constraint.is_none());
    let text = MODELS.tokenizer.decode(&prompt.tokens, false);
    assert!(!text.contains("<tools>"), "tools that may not be called are not shown");
    request.tool_choice = ToolChoice::Named("c".to_owned());
    let error = model.prompt(&MODELS.tokenizer, &request).err().expect("there is no c");
    assert_eq!(error.to_string(), "tool_choice: there is no tool \"c\"");
}

#[test]
fn marks_cannot_be_spelt_out() {
    let request = request(json!([{ "name": "stop" }]));
    let model = &MODELS.xml;
    let tokenizer = &MODELS.tokenizer;
    let mut constraint = model.prompt(tokenizer, &request).expect("a prompt").constraint;
    let constraint = constraint.as_mut().expect("a constraint");
    for byte in "so <tool_call".bytes() {
        let token = (0..8192).find(|&id| tokenizer.token_bytes(id) == [byte]).expect("a token");
        constraint.commit(token).expect("text is free");
    }
    let mut logits = vec![0.0_f32; 8192];
    constraint.mask(&mut logits).expect("it holds");
    for id in 0..8192 {
        let completes = tokenizer.token_bytes(id).starts_with(b">");
        assert_eq!(logits[id as usize] != 0.0, completes, "token {id}");
    }
}

#[test]
fn the_json_form_is_held_as_well() {
    let model = &MODELS.json;
    let mut request = request(json!([
        tool("add", json!({ "a": { "type": "integer" }, "b": { "enum": ["x", null] } }), &["a"]),
        { "name": "stop" },
    ]));
    let call = |json: &str| format!("<tool_call>\n{json}\n</tool_call>");
    let sum = call("{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": null}}");
    let stop = call("{\"name\": \"stop\", \"arguments\": {}}");
    assert_said(model, &request, &format!("Well.\n{sum}\n{stop}"));
    for wrong in [
        call("{\"name\": \"add\", \"arguments\": {}}"),
        call("{\"name\": \"add\", \"arguments\": {\"a\":1}}"),
        call("{\"name\": \"add\", \"arguments\": {\"a\": 1, \"c\": 1}}"),
        call("{\"name\": \"stop\", \"arguments\": {\"a\": 1}}"),
        call("{\"name\": \"go\", \"arguments\": {}}"),
    ] {
        assert_refused(model, &request, &wrong);
    }
    request.tool_choice = ToolChoice::Required;
    assert_said(model, &request, &stop);
    assert_eq!(say(model, &request, "Well.").said, 0);
}

#[test]
fn texts_that_must_be_long_can_be_said() {
    for min in [100, 300, 500] {
        let schema = json!({ "type": "object", "required": ["x"],
            "properties": { "x": { "type": "string", "minLength": min } } });
        let request = request(json!([{ "name": "f", "parameters": schema }]));
        assert_said(&MODELS.xml, &request, &xml("f", &[("x", &"a sea ".repeat(min / 6 + 1))]));
        assert_refused(&MODELS.xml, &request, &xml("f", &[("x", &"a".repeat(min - 1))]));
    }
}

#[test]
fn values_match_their_schemas() {
    let definitions = json!({ "$defs": { "level": { "enum": ["low", "high"] } }, "type": "object",
        "properties": { "x": { "$ref": "#/$defs/level" } }, "required": ["x"] });
    let by_reference = request(json!([{ "name": "f", "parameters": definitions }]));
    assert_said(&MODELS.xml, &by_reference, &xml("f", &[("x", "high")]));
    assert_refused(&MODELS.xml, &by_reference, &xml("f", &[("x", "mid")]));
    let noted = json!({ "$defs": { "level": { "enum": ["low"] }, "yes": { "const": true } },
        "type": "object", "required": ["x", "y"], "properties": {
            "x": { "$ref": "#/$defs/level", "$comment": "c", "examples": [1], "deprecated": true,
                "readOnly": false, "writeOnly": false },
            "y": { "$ref": "#/$defs/yes", "type": "boolean" },
        } });
    let noted = request(json!([{ "name": "f", "parameters": noted }]));
    assert_said(&MODELS.xml, &noted, &xml("f", &[("x", "low"), ("y", "True")]));
    assert_refused(&MODELS.xml, &noted, &xml("f", &[("x", "mid"), ("y", "True")]));
    assert_refused(&MODELS.xml, &noted, &xml("f", &[("x", "low"), ("y", "False")]));
    for (schema, right, wrong) in [
        (
            json!({ "type": "string" }),
            vec!["", "\n", "a\nb", "a</parameter>", "</parameter", "\u{e9}<"],
            vec!["a\n</parameter>b", "</parameter>", "</parameter>b", "\n</parameter>"],
        ),
        (json!({ "type": "string", "enum": ["a", "b c"] }), vec!["b c"], vec!["c", ""]),
        (
            json!({ "type": "string", "maxLength": 3, "minLength": 2 }),
            vec!["ab", "\u{e9}\u{e9}c"],
            vec!["a", "abcd"],
        ),
        (json!({ "type": "string", "minLength": 1 }), vec!["a"], vec!["</parameter>"]),
        (json!({ "type": "string", "pattern": "r" }), vec!["r"], vec!["</parameter>"]),
        (json!({ "enum": ["a", "abc"], "const": "a" }), vec!["a"], vec!["abc"]),
        (json!({ "enum": ["a", "abc"], "maxLength": 2 }), vec!["a"], vec!["abc"]),
        (
            json!({ "enum": ["a", 1.5, 8], "type": ["string", "integer"] }),
            vec!["a", "8"],
            vec!["1.5"],
        ),
        (
            json!({ "type": ["integer", "string"], "anyOf": [{ "maxLength": 2 }] }),
            vec!["12345", "ab"],
            vec!["1.5", "abc"],
        ),
        (
            json!({ "oneOf": [{ "type": "boolean" }, { "const": true }, { "type": "null" }] }),
            vec!["False", "None"],
            vec!["True"],
        ),
        (json!({ "type": "string", "pattern": "^[a-z]+$" }), vec!["abc"], vec!["aB", ""]),
        (json!({ "type": "string", "pattern": "b" }), vec!["abc", "b"], vec!["ac"]),
        (
            json!({ "type": "string", "format": "date" }),
            vec!["2024-03-31"],
            vec!["2024-02-30", "today"],
        ),
        (json!({ "type": "integer" }), vec!["0", "-12"], vec!["1.5", "01", "one"]),
        (
            json!({ "type": "integer", "minimum": 3, "maximum": 12 }),
            vec!["3", "12"],
            vec!["2", "13"],
        ),
        (json!({ "type": "number" }), vec!["1.25", "-3"], vec!["1e5", ".5"]),
        (json!({ "type": "boolean" }), vec!["True", "False"], vec!["true", "1"]),
        (json!({ "const": true }), vec!["True"], vec!["False"]),
        (json!({ "type": ["string", "null"] }), vec!["None", "none", "5", "[x"], vec!["null"]),
        (json!({ "type": ["string", "integer"] }), vec!["7", "7 up"], vec!["7.5"]),
        (
            json!({ "anyOf": [{ "type": "string", "enum": ["a"] }, { "type": "integer" }] }),
            vec!["a", "1"],
            vec!["b", "None"],
        ),
        (
            json!({ "type": "array", "items": { "type": "integer" }, "maxItems": 2 }),
            vec!["[]", "[1, 2]"],
            vec!["[1,2]", "[1, 2, 3]", "[\"1\"]"],
        ),
        (
            json!({ "type": "object", "properties": { "a": { "type": "boolean" } }, "required": ["a"], "additionalProperties": false }),
            vec!["{\"a\": true}"],
            vec!["{}", "{\"a\": True}", "{\"a\": true, \"b\": 1}"],
        ),
        (json!({}), vec!["any text", "[1, {\"a\": null}]", "5", "True"], vec!["{a"]),
    ] {
        let request = one(schema.clone());
        for value in right {
            let text = xml("f", &[("x", value)]);
            let verdict = say(&MODELS.xml, &request, &text);
            assert_eq!(verdict, Verdict { said: text.len(), may_end: true }, "{schema}: {value:?}");
            let x = read_x(&MODELS.xml, &request, &text);
            assert_eq!(x, written(value, &x), "{schema}: {value:?}");
        }
        for value in wrong {
            let text = xml("f", &[("x", value)]);
            let verdict = say(&MODELS.xml, &request, &text);
            assert!(verdict.said < text.len(), "{schema}: {value:?}: {verdict:?}");
        }
    }
}

/// A request without tools whose reply has a form.
fn formed(format: ResponseFormat) -> ChatRequest {
    let messages = vec![Message::user("Do it.")];
    ChatRequest { messages, format, enable_thinking: Some(false), ..ChatRequest::default() }
}

#[test]
fn replies_have_the_form_that_is_asked_for() {
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } },
        "required": ["n"], "additionalProperties": false });
    let lark = "start: \"a\"+ end\nend: \"!\" | \"?\"\n";
    for (format, right, wrong) in [
        (ResponseFormat::JsonObject, vec!["{}", "{\n  \"a\": [1, {}]\n}"], vec!["[]", "{", "{} "]),
        (
            ResponseFormat::JsonSchema(schema),
            vec!["{\"n\": 1}", "{\"n\":1}"],
            vec!["{}", "{\"n\": 1, \"m\": 2}"],
        ),
        (ResponseFormat::JsonSchema(json!(true)), vec!["null", "[1]"], vec!["x"]),
        (ResponseFormat::Regex("[ab]{2}/\\d".to_owned()), vec!["ab/1"], vec!["ab/", "ab/12", "c"]),
        (ResponseFormat::Lark(lark.to_owned()), vec!["aa!", "a?"], vec!["!", "aa"]),
        (
            ResponseFormat::Choice(vec!["yes".to_owned(), "no \"\n".to_owned()]),
            vec!["yes", "no \"\n"],
            vec!["ye", "maybe"],
        ),
    ] {
        let request = formed(format.clone());
        for text in right {
            let verdict = say(&MODELS.xml, &request, text);
            assert_eq!(
                verdict,
                Verdict { said: text.len(), may_end: true },
                "{format:?}: {text:?}"
            );
        }
        for text in wrong {
            let verdict = say(&MODELS.xml, &request, text);
            let refused = verdict.said < text.len() || !verdict.may_end;
            assert!(refused, "{format:?}: {text:?}: {verdict:?}");
        }
    }
    // Beside tools, the form is that of a reply which is no call.
    let mut both = request(json!([{ "name": "stop" }]));
    both.format = ResponseFormat::Choice(vec!["yes".to_owned()]);
    assert_said(&MODELS.xml, &both, "yes");
    assert_said(&MODELS.xml, &both, &xml("stop", &[]));
    assert_refused(&MODELS.xml, &both, "no");
}

#[test]
fn a_form_holds_after_the_thought() {
    let mut request = formed(ResponseFormat::Choice(vec!["yes".to_owned(), "no".to_owned()]));
    request.enable_thinking = None;
    assert_said(&MODELS.xml, &request, "Let me see: maybe.\n</think>\n\nyes");
    assert_refused(&MODELS.xml, &request, "Let me see.\n</think>\n\nmaybe");
    let unended = say(&MODELS.xml, &request, "Let me see");
    assert_eq!(unended, Verdict { said: 10, may_end: false }, "an answer has to come");
    // Where the prompt does not begin a thought, there may be one or none.
    assert_said(&MODELS.json, &request, "<think>\nWell.\n</think>\n\nno");
    assert_said(&MODELS.json, &request, "no");
    assert_eq!(say(&MODELS.json, &request, "Well").said, 0);

    let mut calls = one(json!({ "type": "boolean" }));
    calls.enable_thinking = None;
    let call = xml("f", &[("x", "True")]);
    assert_said(&MODELS.xml, &calls, &format!("Hm.\n</think>\n\n{call}"));
    calls.tool_choice = ToolChoice::Required;
    assert_said(&MODELS.xml, &calls, &format!("Hm.\n</think>\n\n{call}"));
    assert_refused(&MODELS.xml, &calls, "Hm.\n</think>\n\nText");
}

#[test]
fn any_space_may_come_before_a_thought() {
    let mut request = request(json!([{ "name": "stop" }]));
    request.enable_thinking = None;
    let text = "\u{3000}\n<think>\nIs <tool_call> a mark?\n</think>\n\nText";
    assert_said(&MODELS.json, &request, text);
    assert_refused(&MODELS.json, &request, "\u{3000}\nIs <tool_call> a mark?");
}

#[test]
fn no_token_that_stops_comes_before_a_form() {
    let tokenizer = &MODELS.tokenizer;
    let stop = tokenizer.token_id("<|im_start|>").expect("a token");
    let mut request = formed(ResponseFormat::Choice(vec!["yes".to_owned()]));
    request.enable_thinking = None;
    for (stop_tokens, may_come) in [(vec![], true), (vec![stop], false)] {
        let model = ChatModel::open(&demo_directory(), None, tokenizer).expect("a template");
        let model = model.with_stop_tokens(&stop_tokens);
        let constraint = model.prompt(tokenizer, &request).expect("a prompt").constraint;
        let mut logits = vec![0.0_f32; 8192];
        constraint.expect("a constraint").mask(&mut logits).expect("it holds");
        assert_eq!(logits[stop as usize] == 0.0, may_come);
    }
}

#[test]
fn thoughts_whose_marks_are_no_tokens_cannot_come_before_a_form() {
    let read = |name: &str| fs::read_to_string(demo_directory().join(name)).expect("it is there");
    for (mark, other) in [("</think>", "</thunk>"), ("<think>", "<thunk>")] {
        let json = read("tokenizer.json").replace(mark, other);
        let config = read("tokenizer_config.json").replace(mark, other);
        let tokenizer =
            Tokenizer::from_json(Path::new("x"), json.as_bytes(), Some(config.as_bytes()));
        let tokenizer = tokenizer.expect("it is sound");
        let hermes = ChatTemplate::new(Path::new("x"), include_str!("hermes.jinja"));
        let model = ChatModel::new(hermes.expect("it is sound"), &tokenizer);
        let mut form = formed(ResponseFormat::JsonObject);
        assert!(model.prompt(&tokenizer, &form).is_ok(), "without a thought there is no need");
        form.enable_thinking = None;
        let mut calls = request(json!([{ "name": "stop" }]));
        calls.enable_thinking = None;
        for (request, field) in [(form, "response_format"), (calls, "tools")] {
            let error = model.prompt(&tokenizer, &request).err().expect("it is refused");
            let wanted = format!("{field}: {mark} is no token of this model");
            assert!(error.to_string().starts_with(&wanted), "{error}");
        }
    }
}

#[test]
fn schemas_of_calls_that_are_not_held_are_not_refused() {
    let mut request = one(json!({ "not": {} }));
    assert!(refusal(&request).contains("this keyword is not supported"));
    request.constrain_tools = false;
    assert!(MODELS.xml.prompt(&MODELS.tokenizer, &request).is_ok());
}

#[test]
fn json_of_any_size_keeps_its_type() {
    let request = one(json!({ "type": ["number", "array", "null"] }));
    let deep = "[".repeat(200) + &"]".repeat(200);
    for value in ["1e999", &"9".repeat(400), &deep] {
        let text = xml("f", &[("x", value)]);
        assert_said(&MODELS.xml, &request, &text);
        let arguments = &read(&MODELS.xml, &request, &text).calls[0].arguments;
        assert_eq!(arguments, &format!("{{\"x\": {value}}}"));
        let call =
            format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
        assert_said(&MODELS.json, &request, &call);
    }
}

/// What is said about a request that is refused.
fn refusal(request: &ChatRequest) -> String {
    let error = MODELS.xml.prompt(&MODELS.tokenizer, request).err().expect("it is refused");
    assert!(matches!(error, Error::Request { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn hostile_schemas_are_refused_by_name() {
    let mut deep = json!({ "type": "integer" });
    for _ in 0..200 {
        deep = json!({ "type": "array", "items": deep });
    }
    let many: Vec<String> = (0..5_000).map(|n| format!("value {n}")).collect();
    let mut all_of = json!({ "type": "string", "pattern": "a" });
    for n in 0..12 {
        all_of = json!({ "anyOf": [{ "allOf": [all_of.clone(), { "minLength": n }] }, all_of] });
    }
    let field = "tools[0].function.parameters.properties.x";
    for (schema, message) in [
        (deep, "tools[0].function.parameters: is nested deeper than 32 levels".to_owned()),
        (json!({ "enum": many }), format!("{field}.enum: has 5000 values; 2000 are supported")),
        (
            json!({ "type": "string", "pattern": "a".repeat(5_000) }),
            format!("{field}.pattern: is longer"),
        ),
        (
            json!({ "type": "string", "maxLength": 1_000_000_000 }),
            format!("{field}.maxLength: must be"),
        ),
        (
            json!({ "type": "array", "uniqueItems": true }),
            format!("{field}.uniqueItems: this keyword"),
        ),
        (json!({ "not": {} }), format!("{field}.not: this keyword is not supported")),
        (
            json!({ "type": "array", "items": { "if": {} } }),
            format!("{field}.items.if: this keyword"),
        ),
        (
            json!({ "type": "string", "format": "iri" }),
            format!("{field}.format: the format \"iri\""),
        ),
        (json!({ "type": "string", "pattern": "a^b" }), format!("{field}.pattern: ^ and $")),
        (
            json!({ "type": "string", "pattern": "(" }),
            "tools[0].function.parameters: no grammar".to_owned(),
        ),
        (json!({ "$ref": "http://example.com/x" }), format!("{field}.$ref: must point into")),
        (
            json!({ "$ref": "#/$defs/none", "type": "object" }),
            "tools[0].function.parameters: no grammar".to_owned(),
        ),
        (
            json!({ "type": "string", "x-guidance": {} }),
            format!("{field}.x-guidance: this keyword"),
        ),
        (json!(false), format!("{field}: no value can match")),
        (all_of, "tools[0].function.parameters".to_owned()),
        (json!([1]), format!("{field}: is no schema")),
        (
            json!({ "$ref": "#/properties/y", "minLength": 2 }),
            format!("{field}.$ref: is not supported beside other keywords"),
        ),
        (
            json!({ "type": ["string", "number"], "anyOf": [{}], "oneOf": [{}] }),
            format!("{field}.oneOf: is not supported beside anyOf"),
        ),
        (
            json!({ "enum": ["a"], "pattern": "b" }),
            format!("{field}.pattern: is not supported beside enum"),
        ),
        (
            json!({ "const": "a", "anyOf": [{ "const": "b" }] }),
            format!("{field}.anyOf: is not supported beside enum or const"),
        ),
        (json!({ "enum": ["7", 8] }), format!("{field}: the text \"7\" cannot be said")),
        (json!({ "const": "</parameter>" }), format!("{field}: the text \"</parameter>\" cannot")),
    ] {
        let shown: String = schema.to_string().chars().take(200).collect();
        let refused = refusal(&one(schema));
        assert!(refused.starts_with(&message), "{shown}: {refused}");
    }
    let error = refusal(&request(json!([tool("a>b", json!({}), &[])])));
    assert!(error.starts_with("tools[0].function.name: \"a>b\" cannot be a name"), "{error}");
    let error = refusal(&request(json!([{ "name": "a" }, { "name": "a" }])));
    assert_eq!(error, "tools[1].name: a is the name of two tools");
}

#[test]
fn hostile_forms_are_refused_by_name() {
    for (format, message) in [
        (ResponseFormat::Regex("(".to_owned()), "regex: no grammar can be made"),
        (ResponseFormat::Regex("x".repeat(10_000)), "regex: is longer than 4096 bytes"),
        (ResponseFormat::Regex(String::new()), "regex: is empty"),
        (ResponseFormat::Lark("begin: \"a\"".to_owned()), "grammar: no grammar can be made"),
        (ResponseFormat::Lark("#".repeat(2 << 20)), "grammar: the grammar has 2097152 bytes"),
        (ResponseFormat::Choice(Vec::new()), "choice: must be 1 to 2000 texts"),
        (
            ResponseFormat::JsonSchema(json!({ "type": "strin" })),
            "response_format.schema: no grammar",
        ),
        (
            ResponseFormat::JsonSchema(json!({ "if": {} })),
            "response_format.schema.if: this keyword",
        ),
    ] {
        let shown: String = format!("{format:?}").chars().take(100).collect();
        let refused = refusal(&formed(format));
        assert!(refused.starts_with(message), "{shown}: {refused}");
    }
}

#[test]
fn costly_automata_end_in_an_error_and_not_in_a_hang() {
    let nested = "(a{1,1000}){1,1000}$";
    let wide = "(a|aa|aaa|aaaa)*(a|b)*[ab]{200}(.*x.*){9}$";
    for request in [
        formed(ResponseFormat::Regex("(a{1,1000}){1,1000}b".to_owned())),
        formed(ResponseFormat::Regex(wide.trim_end_matches('$').to_owned())),
        formed(ResponseFormat::Lark("start: \"a\" start | \"a\" start start | \"a\"".to_owned())),
        one(json!({ "type": "string", "pattern": nested })),
        one(json!({ "type": "array", "items": { "type": "string", "pattern": wide } })),
    ] {
        if let Err(error) = walk(&request, 200) {
            assert!(error.contains("the constraint on the output failed: "), "{error}");
        }
    }
}

/// Says `a` as often as it may be said, or what else may come.
fn walk(request: &ChatRequest, n_tokens: usize) -> Result<(), String> {
    let mut prompt = MODELS.xml.prompt(&MODELS.tokenizer, request).map_err(|it| it.to_string())?;
    let constraint = prompt.constraint.as_mut().expect("a constraint");
    let call = MODELS.tokenizer.token_id("<tool_call>").expect("a token");
    if !request.tools.is_empty() {
        constraint.commit(call).map_err(|error| error.to_string())?;
    }
    let letter = MODELS.tokenizer.token_id("a").expect("a token");
    for _ in 0..n_tokens {
        constraint.forced(&mut Vec::new()).map_err(|error| error.to_string())?;
        if constraint.is_finished() {
            break;
        }
        let mut logits = vec![0.0_f32; 8192];
        constraint.mask(&mut logits).map_err(|error| error.to_string())?;
        let other = logits.iter().position(|&logit| logit == 0.0).expect("something may come");
        let token = if logits[letter as usize] == 0.0 { letter } else { other as u32 };
        constraint.commit(token).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[test]
fn references_in_circles_end() {
    let circle = |n: usize, more: Value| {
        let mut options = vec![json!({ "$ref": "#/$defs/a" }); n];
        options.push(more);
        json!([{ "name": "f", "parameters": {
            "$defs": { "a": { "anyOf": options } }, "type": "object", "required": ["x"],
            "properties": { "x": { "$ref": "#/$defs/a" } },
        } }])
    };
    for more in [
        json!({ "type": "string" }),
        json!({ "type": "boolean" }),
        json!({ "type": ["number", "string"] }),
        json!({ "type": "array", "items": { "$ref": "#/$defs/a" } }),
    ] {
        // Whether it is refused or not: it ends.
        let _ = walk(&request(circle(40, more)), 50);
    }
    let list = json!({ "type": "array", "items": { "$ref": "#/$defs/a" } });
    assert_said(&MODELS.xml, &request(circle(0, list)), &xml("f", &[("x", "[[], [[]]]")]));
}
