//! Values as Python writes them: templates are made for it, and models are trained on what it writes.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// What `str()` gives.
pub(crate) fn str_of(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number => number(value),
        ValueKind::Undefined => String::new(),
        _ => value.to_string(),
    }
}

/// Jinja's filter `tojson` as chat templates know it: `json.dumps(value, ensure_ascii=False)`, with an
/// optional `indent`.
pub(crate) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let mut json = String::new();
    dump(value, indent, 0, &mut json)?;
    // Nothing may escape it again.
    Ok(Value::from_safe_string(json))
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Map => {
            out.push('{');
            let mut is_empty = true;
            for key in value.try_iter()? {
                out.push_str(if is_empty { "" } else { separator });
                is_empty = false;
                new_line(out, depth + 1);
                out.push_str(&quoted(&str_of(&key)));
                out.push_str(": ");
                dump(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if !is_empty {
                new_line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut is_empty = true;
            for item in value.try_iter()? {
                out.push_str(if is_empty { "" } else { separator });
                is_empty = false;
                new_line(out, depth + 1);
                dump(&item, indent, depth + 1, out)?;
            }
            if !is_empty {
                new_line(out, depth);
            }
            out.push(']');
        }
        ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
        kind => {
            let message = format!("a value of kind {kind} cannot be written as JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

/// A JSON text; the same characters are escaped as by Python.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            control if control < ' ' => {
                write!(quoted, "\\u{:04x}", u32::from(control)).expect("a String takes all");
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// A number as Python's `repr` writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => float_repr(float),
        Err(_) => value.to_string(),
    }
}

/// The shortest digits that read back as the same number; with an exponent below 1e-4 and from 1e16.
fn float_repr(float: f64) -> String {
    if !float.is_finite() {
        let name = if float.is_nan() { "nan" } else { "inf" };
        return if float < 0.0 { format!("-{name}") } else { name.to_owned() };
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{float}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e20, "1e+20"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-300, "-2.5e-300"),
            (-0.0, "-0.0"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_repr(float), text);
        }
    }

    #[test]
    fn json_has_pythons_separators_and_escapes() {
        let value = Value::from(Serde(serde_json::json!({
            "b": [1, 2.0, null, true], "a": "<&'\"\u{e9}\n\u{1}", "c": {}, "d": [],
        })));
        let mut json = String::new();
        dump(&value, None, 0, &mut json).expect("it can be written");
        let expected = "{\"b\": [1, 2.0, null, true], \"a\": \"<&'\\\"\u{e9}\\n\\u0001\", \"c\": {}, \"d\": []}";
        assert_eq!(json, expected);
        let mut json = String::new();
        let value = Value::from(Serde(serde_json::json!({ "a": [1, {}], "b": 2 })));
        dump(&value, Some(2), 0, &mut json).expect("it can be written");
        assert_eq!(json, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": 2\n}");
    }
}
