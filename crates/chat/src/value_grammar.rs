//! Grammars of single values as templates write them outside of JSON: texts without quotes, Python's words
//! for `true`, `false` and `null`, and everything else as JSON. What reads back, by the rule in
//! `call_xml.rs`, is always of a type that the schema allows.

use std::cell::Cell;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::call_xml::{self, VALUE_END};
use crate::error::Error;
use crate::grammar::{as_templates_write, literal};
use crate::schema::{self, Types};

/// Digits of a number that has no bounds: what a JSON reader surely keeps.
const INTEGER: &str = "-?(0|[1-9][0-9]{0,17})";
const NUMBER: &str = "-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,17})?";
/// The end of a value, as a regular expression.
const END: &str = "\\n<\\/parameter>";
/// Texts that have the end of a value in them, or would have it with the line break before them.
const WITH_END: &str = "/(?s:(.*\\n)?<\\/parameter>.*)/";

/// Keywords that combine schemas.
const COMBINED: [&str; 3] = ["anyOf", "oneOf", "allOf"];

/// Schemas of a tool that are looked at for booleans: references may lead in circles.
const MAX_STEPS: usize = 2_000;
/// Options of one value, those of enumerations counted.
const MAX_OPTIONS: usize = 4_000;
/// Options within options, where texts are among them.
const MAX_NESTED: usize = 4;

/// Rules for the values of one tool.
pub(crate) struct ValueRules<'a> {
    /// The schema that references point into.
    root: &'a Value,
    definitions: Map<String, Value>,
    /// Rules that were needed, in Lark's notation.
    pub(crate) rules: String,
    n_rules: usize,
    /// How many more schemas are looked at to find out which booleans they allow.
    steps: Cell<usize>,
}

impl<'a> ValueRules<'a> {
    pub(crate) fn new(root: &'a Value) -> Self {
        let definitions = schema::definitions(root);
        Self { root, definitions, rules: String::new(), n_rules: 0, steps: Cell::new(MAX_STEPS) }
    }

    /// What a value and its end may be. `name` begins the names of its rules, `field` is for errors.
    pub(crate) fn value(
        &mut self,
        name: &str,
        field: &str,
        schema: &Value,
    ) -> Result<String, Error> {
        let types = Types::of_schema(schema, self.root);
        if types == Types::NONE {
            return Err(Error::request(field, "no value can match this schema"));
        }
        let mut options = Vec::new();
        if types.has(Types::STRING) {
            self.texts(name, field, schema, types, 0, &mut options)?;
        }
        let mut others = types.without(Types::STRING);
        if types.has(Types::STRING) && types.has(Types::NUMBER) {
            // A text may begin like a number, so each is read to its end as one.
            self.numbers(field, schema, false, 0, &mut options)?;
            others = others.without(Types::NUMBER);
        }
        self.others(schema, others, &mut options);
        match options.len() {
            0 => Err(Error::request(field, "no value can match this schema")),
            1..=MAX_OPTIONS => Ok(options.join(" | ")),
            n => {
                let reason = format!("has {n} options; {MAX_OPTIONS} are supported");
                Err(Error::request(field, reason))
            }
        }
    }

    /// Values that are no texts.
    fn others(&mut self, schema: &Value, types: Types, options: &mut Vec<String>) {
        let end = literal(VALUE_END);
        let schema = schema::resolve(schema, self.root);
        let plain = |keys: &[&str]| {
            let says = |key: &String| {
                !matches!(key.as_str(), "title" | "description" | "default" | "examples" | "format")
                    && !keys.contains(&key.as_str())
            };
            !schema.as_object().is_some_and(|map| map.keys().any(says))
        };
        let number = schema.get("type").and_then(Value::as_str);
        if let (Some(name), Types::NUMBER, true) = (number, types, plain(&["type"])) {
            let digits = if name == "integer" { INTEGER } else { NUMBER };
            options.push(format!("/{digits}/ {end}"));
            return;
        }
        if types.has(Types::BOOLEAN) && self.allows(schema, &Value::Bool(true), 0) {
            options.push(literal(&format!("True{VALUE_END}")));
        }
        if types.has(Types::BOOLEAN) && self.allows(schema, &Value::Bool(false), 0) {
            options.push(literal(&format!("False{VALUE_END}")));
        }
        if types.has(Types::NULL) {
            options.push(literal(&format!("None{VALUE_END}")));
        }
        let mut names = Vec::new();
        for (bit, name) in
            [(Types::NUMBER, "number"), (Types::ARRAY, "array"), (Types::OBJECT, "object")]
        {
            if types.has(bit) {
                names.push(name);
            }
        }
        if !names.is_empty() {
            let mut schema = json!({ "allOf": [schema, { "type": names }] });
            if let Some(map) = schema.as_object_mut() {
                map.extend(self.definitions.clone());
            }
            options.push(format!("%json {} {end}", as_templates_write(schema)));
        }
    }

    /// Values that are numbers and stand beside texts.
    fn numbers(
        &self,
        field: &str,
        schema: &Value,
        whole: bool,
        depth: usize,
        options: &mut Vec<String>,
    ) -> Result<(), Error> {
        const UNSUPPORTED: [&str; 6] =
            ["$ref", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
        let schema = schema::resolve(schema, self.root);
        let empty = Map::new();
        let map = schema.as_object().unwrap_or(&empty);
        if let Some(key) = UNSUPPORTED.into_iter().find(|key| map.contains_key(*key)) {
            let reason = "is not supported beside texts\nhint: allow either texts or numbers";
            return Err(Error::request(format!("{field}.{key}"), reason));
        }
        let named = |name: &str| match map.get("type") {
            Some(Value::String(only)) => only == name,
            Some(Value::Array(names)) => names.iter().any(|other| other == name),
            _ => true,
        };
        let whole = whole || !named("number");
        if let Some(values) = fixed(map) {
            alone(field, map, "enum or const", &COMBINED)?;
            let numbers = values.into_iter().filter(|value| match whole {
                true => value.is_i64() || value.is_u64(),
                false => value.is_number(),
            });
            options.extend(numbers.map(|value| literal(&format!("{value}{VALUE_END}"))));
            return Ok(());
        }
        if let Some(parts) = self.parts(field, map, Types::NUMBER, depth)? {
            return parts
                .into_iter()
                .try_for_each(|part| self.numbers(field, part, whole, depth + 1, options));
        }
        let digits = if whole { INTEGER } else { NUMBER };
        options.push(format!("/{digits}{END}/"));
        Ok(())
    }

    /// Whether a schema that allows booleans allows this one. What lies too deep is not allowed.
    fn allows(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let list = |key: &str| schema.get(key).and_then(Value::as_array);
        let nested = |schema: &Value| {
            Types::of_schema(schema, self.root).has(Types::of_value(value))
                && self.allows(schema, value, depth + 1)
        };
        let one_of = |options: &Vec<Value>| options.iter().filter(|&it| nested(it)).count() == 1;
        let steps = self.steps.get();
        self.steps.set(steps.saturating_sub(1));
        depth <= MAX_NESTED
            && steps > 0
            && list("enum").is_none_or(|values| values.contains(value))
            && schema.get("const").is_none_or(|only| only == value)
            && list("anyOf").is_none_or(|options| options.iter().any(nested))
            && list("oneOf").is_none_or(one_of)
            && list("allOf").is_none_or(|parts| parts.iter().all(nested))
            && (schema.get("$ref").is_none()
                || schema::referenced(schema, self.root).is_some_and(nested))
    }

    /// Values that are texts.
    fn texts(
        &mut self,
        name: &str,
        field: &str,
        schema: &Value,
        types: Types,
        depth: usize,
        options: &mut Vec<String>,
    ) -> Result<(), Error> {
        let schema = schema::resolve(schema, self.root);
        let Some(map) = schema.as_object() else {
            return self.text(name, field, &Map::new(), types, options);
        };
        if map.contains_key("$ref") {
            let reason = "is not supported beside other keywords, where it leads to nothing, or through \
                          many references, for values that are texts";
            return Err(Error::request(format!("{field}.$ref"), reason));
        }
        if let Some(values) = fixed(map) {
            alone(field, map, "enum or const", &["anyOf", "oneOf", "allOf", "pattern", "format"])?;
            let count = |key: &str| map.get(key).and_then(Value::as_u64);
            let fits = |text: &&str| {
                let n = text.chars().count() as u64;
                count("minLength").is_none_or(|min| n >= min)
                    && count("maxLength").is_none_or(|max| n <= max)
            };
            for text in values.into_iter().filter_map(Value::as_str).filter(fits) {
                if !call_xml::reads_back(text, types) {
                    let reason = format!(
                        "the text {text:?} cannot be said: it would be read as another value"
                    );
                    return Err(Error::request(field, reason));
                }
                options.push(literal(&format!("{text}{VALUE_END}")));
            }
            return Ok(());
        }
        let Some(parts) = self.parts(field, map, Types::STRING, depth)? else {
            return self.text(name, field, map, types, options);
        };
        for part in parts {
            self.texts(name, field, part, types, depth + 1, options)?;
        }
        Ok(())
    }

    /// The schemas that one is combined of, if any of a kind of value may match each; `None` if it is not
    /// combined.
    fn parts<'v>(
        &self,
        field: &str,
        map: &'v Map<String, Value>,
        kind: Types,
        depth: usize,
    ) -> Result<Option<Vec<&'v Value>>, Error> {
        let Some(key) = COMBINED.into_iter().find(|key| map.contains_key(*key)) else {
            return Ok(None);
        };
        let all = map.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let is_kind = |part: &&Value| Types::of_schema(part, self.root).has(kind);
        let parts: Vec<&Value> = all.iter().filter(is_kind).collect();
        let several = match key {
            "anyOf" => false,
            "oneOf" => parts.len() > 1,
            _ => all.len() > 1,
        };
        if several || depth > MAX_NESTED {
            let reason = "is not supported in this place for values that may be texts";
            return Err(Error::request(format!("{field}.{key}"), reason));
        }
        alone(
            field,
            map,
            key,
            &["anyOf", "oneOf", "allOf", "minLength", "maxLength", "pattern", "format"],
        )?;
        Ok(Some(parts))
    }

    /// A text that is not one of a list.
    fn text(
        &mut self,
        name: &str,
        field: &str,
        schema: &Map<String, Value>,
        types: Types,
        options: &mut Vec<String>,
    ) -> Result<(), Error> {
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        let mut parts = Vec::new();
        if let Some(pattern) = text("pattern") {
            parts.push(anywhere(&format!("{field}.pattern"), pattern)?);
        }
        if let Some(format) = text("format") {
            let regex = format_regex(format).ok_or_else(|| {
                let reason = format!("the format {format:?} is not supported for texts");
                Error::request(format!("{field}.format"), reason)
            })?;
            parts.push(format!("/{}/", llguidance::regex_to_lark(regex, "dw")));
        }
        let (min, max) = (count("minLength").unwrap_or(0), count("maxLength"));
        if min > 0 || max.is_some() {
            let max = max.map(|max| max.to_string()).unwrap_or_default();
            parts.push(format!("/(?s:.{{{min},{max}}})/"));
        }
        if parts.is_empty() {
            // What is taken away needs something to be taken from.
            parts.push("/(?s:.*)/".to_owned());
        }
        parts.extend(no_text(types));
        parts.push(format!("~{WITH_END}"));
        let index = self.n_rules;
        self.n_rules += 1;
        let rule = format!("{name}-text-{index}");
        let end = literal(VALUE_END);
        let terminal = rule.to_uppercase();
        let parts = parts.join(" & ");
        writeln!(self.rules, "{rule}[suffix={end}]: {terminal}\n{terminal}: {parts}")
            .expect("a String takes all");
        options.push(rule);
        Ok(())
    }
}

/// The values of a schema that lists them.
fn fixed(map: &Map<String, Value>) -> Option<Vec<&Value>> {
    let listed = map.get("enum").and_then(Value::as_array);
    match map.get("const") {
        Some(only) if listed.is_none_or(|values| values.contains(only)) => Some(vec![only]),
        Some(_) => Some(Vec::new()),
        None => listed.map(|values| values.iter().collect()),
    }
}

/// Refuses keywords that would be ignored beside the one that is heeded.
fn alone(
    field: &str,
    map: &Map<String, Value>,
    heeded: &str,
    others: &[&str],
) -> Result<(), Error> {
    match others.iter().find(|&&key| key != heeded && map.contains_key(key)) {
        None => Ok(()),
        Some(key) => {
            let reason = format!("is not supported beside {heeded} for values that may be texts");
            Err(Error::request(format!("{field}.{key}"), reason))
        }
    }
}

/// Texts that do not read as something else that is allowed.
fn no_text(types: Types) -> Option<String> {
    let reads = [
        (Types::NULL, "null|None"),
        (Types::BOOLEAN, "true|false|True|False"),
        (Types::NUMBER, "-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?"),
        (Types::ARRAY, "\\[.*"),
        (Types::OBJECT, "\\{.*"),
    ];
    let reads: Vec<&str> =
        reads.into_iter().filter(|&(bit, _)| types.has(bit)).map(|(_, regex)| regex).collect();
    (!reads.is_empty()).then(|| format!("~/(?s:\\s*({})\\s*)/", reads.join("|")))
}

/// A pattern that may match anywhere in a text, unless its ends are tied, as one of the whole text.
fn anywhere(field: &str, pattern: &str) -> Result<String, Error> {
    let (tied_begin, rest) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let escaped =
        |at: usize| rest[..at].bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1;
    let (tied_end, rest) = match rest.strip_suffix('$') {
        Some(before) if !escaped(rest.len() - 1) => (true, before),
        _ => (false, rest),
    };
    let (mut depth, mut in_class, mut skip) = (0_i32, false, false);
    for c in rest.chars() {
        match c {
            _ if skip => skip = false,
            '\\' => skip = true,
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => depth += 1,
            ')' => depth -= 1,
            '^' | '$' => {
                let reason = "^ and $ are only supported at the ends of the pattern";
                return Err(Error::request(field, reason));
            }
            '|' if depth == 0 && (tied_begin || tied_end) => {
                let reason = "^ and $ beside | need parentheses, as in ^(a|b)$";
                return Err(Error::request(field, reason));
            }
            _ => {}
        }
    }
    let any = "(?s:.*)";
    let (before, after) = (if tied_begin { "" } else { any }, if tied_end { "" } else { any });
    Ok(format!("/{before}(?:{}){after}/", llguidance::regex_to_lark(rest, "dw")))
}

/// The formats of texts that can be kept.
fn format_regex(format: &str) -> Option<&'static str> {
    macro_rules! date {
        () => {
            "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|\
             02-(0[1-9]|1[0-9]|2[0-9]))"
        };
    }
    macro_rules! time {
        () => {
            "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?\
             (Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
        };
    }
    Some(match format {
        "date" => date!(),
        "time" => time!(),
        "date-time" => concat!(date!(), "T", time!()),
        "uuid" => "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "email" => {
            "[a-zA-Z0-9_+-]+(\\.[a-zA-Z0-9_+-]+)*@[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)+"
        }
        "ipv4" => {
            "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
        }
        "hostname" => {
            "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
        }
        "uri" => "[a-zA-Z][a-zA-Z0-9+.-]*:[a-zA-Z0-9._~:/?#\\[\\]@!$&'()*+,;=%-]+",
        _ => return None,
    })
}
