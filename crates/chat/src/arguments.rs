//! JSON that a model wrote, as values.

use serde_json::Value;

/// Reads JSON whose numbers may be of any size: one beyond the largest that programs hold becomes the
/// largest. How large a number may be is the reader's to say (RFC 8259, section 6), and a grammar of JSON
/// lets a model write any.
pub fn read_json(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| match bound_numbers(text) {
        Some(bounded) => serde_json::from_str(&bounded),
        None => Err(error),
    })
}

/// The text with the largest number in the place of larger ones; `None` where there are none.
fn bound_numbers(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut is_changed) = (text, false);
    while let Some(begin) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        out.push_str(&rest[..begin]);
        rest = &rest[begin..];
        let len = if rest.starts_with('"') { string_len(rest) } else { number_len(rest) };
        let (token, after) = rest.split_at(len);
        let infinite = token.parse::<f64>().ok().filter(|value| value.is_infinite());
        match infinite {
            Some(value) => {
                out += &format!("{:e}", value.clamp(f64::MIN, f64::MAX));
                is_changed = true;
            }
            None => out.push_str(token),
        }
        rest = after;
    }
    out.push_str(rest);
    is_changed.then_some(out)
}

/// Bytes of the string that a text begins with, with its quotes.
fn string_len(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of the number that a text begins with.
fn number_len(text: &str) -> usize {
    let part = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    text.find(|c| !part(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_of_any_size_are_read() {
        let read = |text| read_json(text).expect("it is JSON");
        assert_eq!(
            read(r#"{"a": 1e999, "b": [-2E+400, 3]}"#),
            json!({ "a": f64::MAX, "b": [f64::MIN, 3] })
        );
        assert_eq!(
            read(r#"{"1e999": "\"1e999", "c": 1e400}"#),
            json!({ "1e999": "\"1e999", "c": f64::MAX })
        );
        assert_eq!(read("-12.5"), json!(-12.5));
        for text in ["{\"a\": 1e999", "1e999 2", "--1e999", "\"1e999"] {
            assert!(read_json(text).is_err(), "{text} is no JSON");
        }
    }
}
