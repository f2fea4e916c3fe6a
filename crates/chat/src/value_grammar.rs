//! Grammars of single values as templates write them outside of JSON: texts without quotes, Python's words
//! for `true`, `false` and `null`, and everything else as JSON. What reads back, by the rule in
//! `call_xml.rs`, is always of a type that the schema allows.

use std::cell::Cell;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::call_xml::VALUE_END;
use crate::error::Error;
use crate::grammar::{as_templates_write, literal};
use crate::schema::{self, Types};

/// Digits of a number that has no bounds: what a JSON reader surely keeps.
const INTEGER: &str = "-?(0|[1-9][0-9]{0,17})";
const NUMBER: &str = "-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,17})?";
/// The end of a value, as a regular expression.
const END: &str = "\\n<\\/parameter>";

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
            self.numbers(field, schema, 0, &mut options)?;
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
        depth: usize,
        options: &mut Vec<String>,
    ) -> Result<(), Error> {
        const BOUNDS: [&str; 5] =
            ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
        let schema = schema::resolve(schema, self.root);
        let get = |key: &str| schema.get(key);
        let list = |key: &str| get(key).and_then(Value::as_array);
        if let Some(key) = BOUNDS.into_iter().find(|key| get(key).is_some()) {
            let reason = "is not supported beside texts\nhint: allow either texts or numbers";
            return Err(Error::request(format!("{field}.{key}"), reason));
        }
        if let Some(values) =
            get("const").map(std::slice::from_ref).or(list("enum").map(Vec::as_slice))
        {
            let numbers = values.iter().filter(|value| value.is_number());
            options.extend(numbers.map(|value| literal(&format!("{value}{VALUE_END}"))));
            return Ok(());
        }
        let parts = ["anyOf", "oneOf", "allOf"].into_iter().find_map(list);
        if depth > MAX_NESTED {
            return Err(Error::request(field, "is nested too deep for numbers beside texts"));
        }
        if let Some(parts) = parts {
            let has = |part: &&Value| Types::of_schema(part, self.root).has(Types::NUMBER);
            return parts
                .iter()
                .filter(has)
                .try_for_each(|part| self.numbers(field, part, depth + 1, options));
        }
        let named = |name: &str| match get("type") {
            Some(Value::String(only)) => only == name,
            Some(Value::Array(names)) => names.iter().any(|other| other == name),
            _ => true,
        };
        let digits = if named("number") { NUMBER } else { INTEGER };
        options.push(format!("/{digits}{END}/"));
        Ok(())
    }

    /// Whether a schema that allows booleans allows this one. What lies too deep is not allowed.
    fn allows(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let schema = schema::resolve(schema, self.root);
        let list = |key: &str| schema.get(key).and_then(Value::as_array);
        let nested = |schema: &Value| {
            Types::of_schema(schema, self.root).has(Types::of_value(value))
                && self.allows(schema, value, depth + 1)
        };
        let steps = self.steps.get();
        self.steps.set(steps.saturating_sub(1));
        depth <= MAX_NESTED
            && steps > 0
            && list("enum").is_none_or(|values| values.contains(value))
            && schema.get("const").is_none_or(|only| only == value)
            && ["anyOf", "oneOf"]
                .iter()
                .all(|key| list(key).is_none_or(|options| options.iter().any(nested)))
            && list("allOf").is_none_or(|parts| parts.iter().all(nested))
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
        let fixed = match (map.get("enum"), map.get("const")) {
            (_, Some(value)) => Some(vec![value.clone()]),
            (Some(values), None) => values.as_array().cloned(),
            (None, None) => None,
        };
        if let Some(values) = fixed {
            let texts = values.iter().filter_map(Value::as_str);
            for text in texts {
                if text.contains(VALUE_END) {
                    let reason = "a value with a line that begins with </parameter> cannot be said";
                    return Err(Error::request(field, reason));
                }
                options.push(literal(&format!("{text}{VALUE_END}")));
            }
            return Ok(());
        }
        let combined = ["anyOf", "oneOf", "allOf"].into_iter().find(|key| map.contains_key(*key));
        let Some(key) = combined else {
            return self.text(name, field, map, types, options);
        };
        let parts = map.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let is_text = |part: &&Value| Types::of_schema(part, self.root).has(Types::STRING);
        let texts: Vec<&Value> = parts.iter().filter(is_text).collect();
        let beside = ["minLength", "maxLength", "pattern", "format", "$ref"];
        let several = match key {
            "anyOf" => false,
            "oneOf" => texts.len() > 1,
            _ => parts.len() > 1,
        };
        if several || depth > MAX_NESTED || beside.iter().any(|key| map.contains_key(*key)) {
            let reason = "is not supported in this place for values that are texts";
            return Err(Error::request(format!("{field}.{key}"), reason));
        }
        for part in texts {
            self.texts(name, field, part, types, depth + 1, options)?;
        }
        Ok(())
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
        if parts.is_empty() && types != Types::STRING {
            // What is taken away needs something to be taken from.
            parts.push("/(?s:.*)/".to_owned());
        }
        parts.extend(no_text(types));
        let index = self.n_rules;
        self.n_rules += 1;
        let rule = format!("{name}-text-{index}");
        let end = literal(VALUE_END);
        if parts.is_empty() {
            writeln!(self.rules, "{rule}[suffix={end}]: /(?s:.*)/").expect("a String takes all");
        } else {
            parts.push(format!("~/(?s:.*){END}(?s:.*)/"));
            let terminal = rule.to_uppercase();
            let parts = parts.join(" & ");
            writeln!(self.rules, "{rule}[suffix={end}]: {terminal}\n{terminal}: {parts}")
                .expect("as above");
        }
        options.push(rule);
        Ok(())
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
