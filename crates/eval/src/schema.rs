//! Whether a value matches a JSON schema: a check of replies that shares nothing with the grammars by which
//! they may be held.

use serde_json::Value;

/// How deep schemas may refer to each other.
const MAX_DEPTH: usize = 64;

/// A keyword that is not checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unchecked(pub String);

/// Whether a value matches a schema, of those keywords that function definitions commonly use.
pub fn matches_schema(value: &Value, schema: &Value) -> Result<bool, Unchecked> {
    check(value, schema, schema, 0)
}

fn check(value: &Value, schema: &Value, root: &Value, depth: usize) -> Result<bool, Unchecked> {
    if depth > MAX_DEPTH {
        return Err(Unchecked("$ref, too deep".to_owned()));
    }
    let object = match schema {
        Value::Bool(all) => return Ok(*all),
        Value::Object(object) => object,
        _ => return Err(Unchecked("a schema that is no object".to_owned())),
    };
    let inner = |value: &Value, schema: &Value| check(value, schema, root, depth + 1);
    for (keyword, wanted) in object {
        let unchecked = || Unchecked(keyword.clone());
        let holds = match keyword.as_str() {
            "title" | "description" | "default" | "examples" | "$schema" | "$id" | "$comment"
            | "$defs" | "definitions" | "deprecated" => true,
            "type" => match wanted {
                Value::Array(types) => types.iter().any(|kind| is_of_type(value, kind)),
                kind => is_of_type(value, kind),
            },
            "enum" => wanted.as_array().ok_or_else(unchecked)?.iter().any(|one| equal(one, value)),
            "const" => equal(wanted, value),
            "$ref" => {
                let path = wanted.as_str().and_then(|path| path.strip_prefix('#'));
                let target = path.and_then(|path| root.pointer(path)).ok_or_else(unchecked)?;
                inner(value, target)?
            }
            "anyOf" | "oneOf" | "allOf" => {
                let schemas = wanted.as_array().ok_or_else(unchecked)?;
                let mut n_matching = 0;
                for schema in schemas {
                    n_matching += usize::from(inner(value, schema)?);
                }
                match keyword.as_str() {
                    "anyOf" => n_matching > 0,
                    "oneOf" => n_matching == 1,
                    _ => n_matching == schemas.len(),
                }
            }
            "required" => {
                let names = wanted.as_array().ok_or_else(unchecked)?;
                let has = |name: &Value| name.as_str().is_some_and(|key| value.get(key).is_some());
                !value.is_object() || names.iter().all(has)
            }
            "properties" => {
                let schemas = wanted.as_object().ok_or_else(unchecked)?;
                all(value.as_object().into_iter().flatten(), |(key, value)| {
                    schemas.get(key).map_or(Ok(true), |schema| inner(value, schema))
                })?
            }
            // What is not described may be anything; the calls' grammars are stricter.
            "additionalProperties" => {
                let known = object.get("properties").and_then(Value::as_object);
                let others = value.as_object().into_iter().flatten();
                let mut others =
                    others.filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
                all(&mut others, |(_, value)| inner(value, wanted))?
            }
            "items" => all(value.as_array().into_iter().flatten(), |item| inner(item, wanted))?,
            "minItems" | "maxItems" => {
                value.as_array().is_none_or(|list| within(list.len() as f64, keyword, wanted))
            }
            "minLength" | "maxLength" => value
                .as_str()
                .is_none_or(|text| within(text.chars().count() as f64, keyword, wanted)),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                value.as_f64().is_none_or(|number| within(number, keyword, wanted))
            }
            _ => return Err(unchecked()),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn all<T>(
    items: impl IntoIterator<Item = T>,
    mut holds: impl FnMut(T) -> Result<bool, Unchecked>,
) -> Result<bool, Unchecked> {
    for item in items {
        if !holds(item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn within(number: f64, keyword: &str, bound: &Value) -> bool {
    let Some(bound) = bound.as_f64() else { return false };
    match keyword {
        "exclusiveMinimum" => number > bound,
        "exclusiveMaximum" => number < bound,
        _ if keyword.starts_with("min") => number >= bound,
        _ => number <= bound,
    }
}

/// Equality under which `1` is `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|number| b.as_f64() == Some(number))
}

fn is_of_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap_or_default() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|x| x.fract() == 0.0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_match_or_do_not() {
        let schema = json!({
            "type": "object",
            "properties": {
                "city": { "type": "string", "minLength": 2 },
                "unit": { "enum": ["C", "F"] },
                "days": { "type": "integer", "minimum": 1, "exclusiveMaximum": 8 },
                "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "maxItems": 2 },
                "at": { "anyOf": [{ "type": "null" }, { "type": "number" }] },
            },
            "required": ["city"],
            "additionalProperties": false,
            "$defs": { "tag": { "type": ["string", "boolean"] } },
        });
        let is = |value| matches_schema(&value, &schema).expect("all keywords are known");
        assert!(is(
            json!({ "city": "Oslo", "unit": "C", "days": 7.0, "tags": ["a", true], "at": null })
        ));
        for value in [
            json!({}),
            json!([]),
            json!({ "city": "O" }),
            json!({ "city": "Oslo", "unit": "K" }),
            json!({ "city": "Oslo", "days": 8 }),
            json!({ "city": "Oslo", "days": 1.5 }),
            json!({ "city": "Oslo", "tags": ["a", 1] }),
            json!({ "city": "Oslo", "tags": ["a", "b", "c"] }),
            json!({ "city": "Oslo", "at": "noon" }),
            json!({ "city": "Oslo", "country": "Norway" }),
        ] {
            assert!(!is(value.clone()), "{value}");
        }
        let odd = json!({ "type": "string", "pattern": "^a" });
        assert_eq!(matches_schema(&json!("a"), &odd), Err(Unchecked("pattern".to_owned())));
        let circle = json!({ "$ref": "#" });
        assert!(matches_schema(&json!(1), &circle).is_err());
    }
}
