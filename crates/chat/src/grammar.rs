//! Grammars in Lark's notation: for calls of the offered tools, and for what else a reply may have to be.
//!
//! The rule `call` is a call behind its opening mark. Arguments come in the order in which the schema
//! describes them, so that a grammar of their number suffices.

use std::fmt::Write;

use serde_json::{Value, json};
use tokenizer::Tokenizer;

use crate::call_xml::{FUNCTION, FUNCTION_END, PARAMETER};
use crate::error::Error;
use crate::format::{CALL, CALL_END, CallFormat};
use crate::model::ResponseFormat;
use crate::schema;
use crate::tools::Tool;
use crate::value_grammar::ValueRules;

/// Bytes of a grammar, given or made.
const MAX_GRAMMAR: usize = 1 << 20;
/// Choices of a list.
const MAX_CHOICES: usize = 2_000;

/// A grammar and the part of the request that it was made for.
#[derive(Clone, Debug)]
pub(crate) struct GrammarText {
    pub(crate) lark: String,
    pub(crate) field: &'static str,
}

/// Where a grammar of calls begins, and what else it allows.
#[derive(Clone, Debug)]
pub(crate) struct CallRules<'a> {
    pub(crate) format: CallFormat,
    pub(crate) tools: &'a [Tool],
    /// Whether several calls may follow each other.
    pub(crate) parallel: bool,
}

/// The grammar of a whole reply, or, `after_mark`, of what follows the mark that opens the first call.
pub(crate) fn grammar(
    tokenizer: &Tokenizer,
    calls: Option<&CallRules<'_>>,
    after_mark: bool,
    format: &ResponseFormat,
) -> Result<GrammarText, Error> {
    let mut lark = String::new();
    let mut options = Vec::new();
    if let Some(rules) = calls {
        let open = mark(tokenizer, CALL);
        let more = match rules.parallel {
            true => format!(" (\"\\n\" {open} call)*"),
            false => String::new(),
        };
        let first = if after_mark { String::new() } else { format!("{open} ") };
        options.push(format!("{first}call{more}"));
    }
    let mut field = "tools";
    if let Some((name, body)) = body(format)? {
        if let (ResponseFormat::Lark(grammar), None) = (format, calls) {
            return limited(GrammarText { lark: grammar.clone(), field: name });
        }
        writeln!(lark, "body: {body}").expect("a String takes all");
        options.push("body".to_owned());
        field = name;
    }
    let start = format!("start: {}\n", options.join(" | "));
    if let Some(rules) = calls {
        call_rules(tokenizer, rules, &mut lark)?;
    }
    limited(GrammarText { lark: start + &lark, field })
}

fn limited(grammar: GrammarText) -> Result<GrammarText, Error> {
    match grammar.lark.len() {
        0..=MAX_GRAMMAR => Ok(grammar),
        len => {
            let reason = format!("the grammar has {len} bytes; {MAX_GRAMMAR} are supported");
            Err(Error::request(grammar.field, reason))
        }
    }
}

/// The rules `call` and all that it needs.
fn call_rules(
    tokenizer: &Tokenizer,
    rules: &CallRules<'_>,
    lark: &mut String,
) -> Result<(), Error> {
    let close = mark(tokenizer, CALL_END);
    let (before, after) = match rules.format {
        CallFormat::Xml => (format!("\n{FUNCTION}"), format!("{FUNCTION_END}\n")),
        CallFormat::Json | CallFormat::None => ("\n{\"name\": \"".to_owned(), "}\n".to_owned()),
    };
    let names: Vec<String> = (0..rules.tools.len()).map(|index| format!("tool-{index}")).collect();
    let (before, after) = (literal(&before), literal(&after));
    writeln!(lark, "call: {before} ({}) {after} {close}", names.join(" | ")).expect("as above");
    for (name, tool) in names.iter().zip(rules.tools) {
        match rules.format {
            CallFormat::Xml => xml_tool(name, tool, lark)?,
            CallFormat::Json | CallFormat::None => {
                let begin = literal(&format!("{}\", \"arguments\": ", tool.name));
                let schema = object_schema(&tool.parameters);
                writeln!(lark, "{name}: {begin} %json {schema}").expect("as above");
            }
        }
    }
    Ok(())
}

fn xml_tool(rule: &str, tool: &Tool, lark: &mut String) -> Result<(), Error> {
    check_parameters(tool)?;
    let mut body = literal(&format!("{}>\n", tool.name));
    let mut values = ValueRules::new(&tool.parameters);
    for (index, (name, schema, required)) in tool.arguments().into_iter().enumerate() {
        let argument = format!("{rule}-{index}");
        let field = format!("{}.properties.{name}", tool.field);
        let value = values.value(&argument, &field, schema)?;
        let begin = literal(&format!("{PARAMETER}{name}>\n"));
        writeln!(lark, "{argument}: {begin} ({value}) \"\\n\"").expect("as above");
        write!(body, " {argument}{}", if required { "" } else { "?" }).expect("as above");
    }
    writeln!(lark, "{rule}: {body}").expect("as above");
    lark.push_str(&values.rules);
    Ok(())
}

/// The arguments are written one by one, so what is said of all of them together cannot be kept.
fn check_parameters(tool: &Tool) -> Result<(), Error> {
    const TOGETHER: [&str; 10] = [
        "$ref",
        "allOf",
        "anyOf",
        "const",
        "enum",
        "maxProperties",
        "minProperties",
        "oneOf",
        "patternProperties",
        "items",
    ];
    let keys = tool.parameters.as_object().into_iter().flat_map(|map| map.keys());
    match keys.map(String::as_str).find(|key| TOGETHER.contains(key)) {
        None if tool.parameters.get("type").is_none_or(|value| value == "object") => Ok(()),
        None => Err(Error::request(format!("{}.type", tool.field), "must be \"object\"")),
        Some(key) => Err(Error::request(
            format!("{}.{key}", tool.field),
            "this keyword is not supported for all arguments together\n\
             hint: describe each argument under properties",
        )),
    }
}

/// The schema of an object of arguments, written as templates write it. Arguments that it does not
/// describe cannot come.
fn object_schema(parameters: &Value) -> Value {
    let mut schema = parameters.clone();
    if let Some(map) = schema.as_object_mut() {
        map.entry("type").or_insert_with(|| "object".into());
        if !map.get("additionalProperties").is_some_and(Value::is_object) {
            map.insert("additionalProperties".to_owned(), false.into());
        }
    }
    as_templates_write(schema)
}

/// A schema whose JSON has the space that Python's `json.dumps` puts there, and no other.
pub(crate) fn as_templates_write(schema: Value) -> Value {
    let mut map = match schema {
        Value::Object(map) => map,
        other => return json!({ "anyOf": [other], "x-guidance": python_space() }),
    };
    map.insert("x-guidance".to_owned(), python_space());
    Value::Object(map)
}

fn python_space() -> Value {
    json!({ "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false })
}

/// The rule of a reply that is not free text, and the part of the request it comes from.
fn body(format: &ResponseFormat) -> Result<Option<(&'static str, String)>, Error> {
    // Space between parts of JSON has to end.
    let with_space = |schema: &Value| {
        let space = json!({ "whitespace_pattern": "[ \\n]{1,20}" });
        let mut map = match schema {
            Value::Object(map) => map.clone(),
            other => json!({ "anyOf": [other] }).as_object().cloned().unwrap_or_default(),
        };
        map.insert("x-guidance".to_owned(), space);
        format!("%json {}", Value::Object(map))
    };
    Ok(match format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => {
            Some(("response_format", with_space(&json!({ "type": "object" }))))
        }
        ResponseFormat::JsonSchema(schema) => {
            schema::check("response_format.schema", schema)?;
            Some(("response_format.schema", with_space(schema)))
        }
        ResponseFormat::Regex(regex) if regex.len() > schema::MAX_PATTERN => {
            let reason = format!("is longer than {} bytes", schema::MAX_PATTERN);
            return Err(Error::request("regex", reason));
        }
        ResponseFormat::Regex(regex) if regex.is_empty() => {
            return Err(Error::request("regex", "is empty"));
        }
        ResponseFormat::Regex(regex) => {
            Some(("regex", format!("/{}/", llguidance::regex_to_lark(regex, ""))))
        }
        ResponseFormat::Lark(grammar) => Some(("grammar", format!("%lark {{\n{grammar}\n}}"))),
        ResponseFormat::Choice(choices) => {
            let n = choices.len();
            if n == 0 || n > MAX_CHOICES || choices.iter().any(String::is_empty) {
                let reason = format!("must be 1 to {MAX_CHOICES} texts, none of them empty");
                return Err(Error::request("choice", reason));
            }
            let choices: Vec<_> = choices.iter().map(|choice| literal(choice)).collect();
            Some(("choice", choices.join(" | ")))
        }
    })
}

/// A mark of the format: its own token where it is a control token, else its text.
fn mark(tokenizer: &Tokenizer, text: &str) -> String {
    match tokenizer.token_id(text) {
        Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
        _ => literal(text),
    }
}

/// A text in quotes.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
