//! JSON schemas of tools: which of JSON's types a value may have, and what is refused before a grammar is
//! made of a schema.

use serde_json::{Map, Value};

use crate::error::Error;

/// Nesting of a schema.
const MAX_DEPTH: usize = 32;
/// Values in a schema, all in all.
const MAX_VALUES: usize = 20_000;
/// Values of an enumeration.
const MAX_ENUM: usize = 2_000;
/// Bytes of a regular expression.
pub(crate) const MAX_PATTERN: usize = 4_096;
/// Repetitions that a schema may count: longer ones make automata of as many states.
const MAX_COUNT: u64 = 4096;
/// The longest text that a schema may ask for: the first mask of a longer one takes more than a step may.
const MAX_MIN_LENGTH: u64 = 500;
/// References followed in a row.
const MAX_REFERENCES: usize = 16;
/// Schemas looked at to find the types of one: references may lead in circles.
const MAX_STEPS: usize = 2_000;

/// Keywords that say something about values and that no grammar here expresses.
const UNSUPPORTED: [&str; 16] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "x-guidance",
];

/// Types that a value may have, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Types(u8);

impl Types {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const NULL: Self = Self(1);
    pub(crate) const BOOLEAN: Self = Self(2);
    pub(crate) const NUMBER: Self = Self(4);
    pub(crate) const STRING: Self = Self(8);
    pub(crate) const ARRAY: Self = Self(16);
    pub(crate) const OBJECT: Self = Self(32);
    pub(crate) const ALL: Self = Self(63);

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn named(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "number" | "integer" => Self::NUMBER,
            "string" => Self::STRING,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => Self::NONE,
        }
    }

    /// The type of a value.
    pub(crate) fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(_) => Self::NUMBER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// The types that a schema allows; `root` is what its references point into.
    pub(crate) fn of_schema(schema: &Value, root: &Value) -> Self {
        Self::of_nested(schema, root, 0, &mut { MAX_STEPS })
    }

    fn of_nested(schema: &Value, root: &Value, depth: usize, steps: &mut usize) -> Self {
        let Some(map) = schema.as_object() else {
            return if schema == &Value::Bool(false) { Self::NONE } else { Self::ALL };
        };
        if depth > MAX_DEPTH || *steps == 0 {
            return Self::ALL;
        }
        *steps -= 1;
        let list = |key: &str| map.get(key).and_then(Value::as_array);
        let mut of = |schema: &Value| Self::of_nested(schema, root, depth + 1, steps);
        let mut types = match map.get("type") {
            Some(Value::String(name)) => Self::named(name),
            Some(Value::Array(names)) => {
                let named = names.iter().filter_map(Value::as_str).map(Self::named);
                named.fold(Self::NONE, Self::or)
            }
            _ => Self::ALL,
        };
        if let Some(values) = list("enum") {
            types = types.and(values.iter().map(Self::of_value).fold(Self::NONE, Self::or));
        }
        if let Some(value) = map.get("const") {
            types = types.and(Self::of_value(value));
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(options) = list(key) {
                types = types.and(options.iter().map(&mut of).fold(Self::NONE, Self::or));
            }
        }
        for part in list("allOf").into_iter().flatten() {
            types = types.and(of(part));
        }
        if let Some(target) = referenced(schema, root) {
            types = types.and(of(target));
        }
        types
    }
}

/// What a schema's `$ref` points to.
pub(crate) fn referenced<'a>(schema: &Value, root: &'a Value) -> Option<&'a Value> {
    root.pointer(schema.get("$ref")?.as_str()?.strip_prefix('#')?)
}

/// A schema behind its references, if it says nothing beside them.
pub(crate) fn resolve<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    const ANNOTATIONS: [&str; 11] = [
        "$ref",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
    ];
    for _ in 0..MAX_REFERENCES {
        let only = schema
            .as_object()
            .is_some_and(|map| map.keys().all(|key| ANNOTATIONS.contains(&key.as_str())));
        match referenced(schema, root) {
            Some(target) if only => schema = target,
            _ => break,
        }
    }
    schema
}

/// Refuses schemas that are too large to be sensible, and keywords that would be ignored.
pub(crate) fn check(field: &str, schema: &Value) -> Result<(), Error> {
    let mut n_values = 0;
    check_sizes(field, schema, 0, &mut n_values)?;
    check_keywords(field, schema)
}

fn check_sizes(
    field: &str,
    value: &Value,
    depth: usize,
    n_values: &mut usize,
) -> Result<(), Error> {
    *n_values += 1;
    if *n_values > MAX_VALUES {
        return Err(Error::request(field, format!("has more than {MAX_VALUES} values")));
    }
    // Each level of a schema is a keyword and what it holds.
    if depth > 2 * MAX_DEPTH {
        let reason = format!("is nested deeper than {MAX_DEPTH} levels");
        return Err(Error::request(field, reason));
    }
    match value {
        Value::Array(items) => {
            items.iter().try_for_each(|item| check_sizes(field, item, depth + 1, n_values))
        }
        Value::Object(map) => {
            map.values().try_for_each(|item| check_sizes(field, item, depth + 1, n_values))
        }
        _ => Ok(()),
    }
}

fn check_keywords(field: &str, schema: &Value) -> Result<(), Error> {
    let map = match schema {
        Value::Object(map) => map,
        Value::Bool(_) => return Ok(()),
        _ => return Err(Error::request(field, "is no schema: neither an object nor a boolean")),
    };
    for (key, value) in map {
        let field = format!("{field}.{key}");
        check_keyword(&field, key, value)?;
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(map)) => {
                for (name, schema) in map {
                    check_keywords(&format!("{field}.{name}"), schema)?;
                }
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    check_keywords(&format!("{field}[{index}]"), schema)?;
                }
            }
            ("additionalProperties" | "items" | "additionalItems", Value::Object(_)) => {
                check_keywords(&field, value)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_keyword(field: &str, key: &str, value: &Value) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::request(field, reason));
    match key {
        _ if UNSUPPORTED.contains(&key) => {
            refuse("this keyword is not supported\nhint: leave it out".to_owned())
        }
        "uniqueItems" if value != &Value::Bool(false) => {
            refuse("this keyword is not supported\nhint: leave it out".to_owned())
        }
        "enum" => match value.as_array() {
            Some(values) if values.len() > MAX_ENUM => {
                refuse(format!("has {} values; {MAX_ENUM} are supported", values.len()))
            }
            Some(values) if !values.is_empty() => Ok(()),
            _ => refuse("must be a list of values".to_owned()),
        },
        "pattern" => match value.as_str() {
            Some(pattern) if pattern.len() > MAX_PATTERN => {
                refuse(format!("is longer than {MAX_PATTERN} bytes"))
            }
            Some(_) => Ok(()),
            None => refuse("must be a text".to_owned()),
        },
        "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
            let most = if key == "minLength" { MAX_MIN_LENGTH } else { MAX_COUNT };
            match value.as_u64() {
                Some(count) if count <= most => Ok(()),
                _ => refuse(format!("must be an integer from 0 to {most}")),
            }
        }
        "$ref" => match value.as_str() {
            Some(target) if target.starts_with('#') => Ok(()),
            _ => refuse("must point into the same schema, as in #/$defs/NAME".to_owned()),
        },
        _ => Ok(()),
    }
}

/// The tables that references point into, if a schema has any.
pub(crate) fn definitions(root: &Value) -> Map<String, Value> {
    let tables = ["$defs", "definitions"].into_iter();
    let found = tables.filter_map(|key| Some((key.to_owned(), root.get(key)?.clone())));
    found.collect()
}
