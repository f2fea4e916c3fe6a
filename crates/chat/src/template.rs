//! A checkpoint's chat template.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as JinjaValue};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::message::Message;
use crate::python;

/// Steps that a rendering may take: thousands of messages take a few million.
const FUEL: u64 = 50_000_000;
/// A longer template than any real one.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
const NAME: &str = "chat_template";
/// Variables of a template that are made of other parts of a request, so that they cannot be given otherwise.
pub const RESERVED_VARIABLES: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// What a prompt is made for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RenderOptions {
    /// Tools that the model may call, as JSON objects in the form of the OpenAI API.
    pub tools: Vec<Value>,
    /// End with the beginning of the model's answer.
    pub add_generation_prompt: bool,
    /// Whether the model shall think first; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// More variables of the template, none of [`RESERVED_VARIABLES`].
    pub variables: Map<String, Value>,
}

/// A checkpoint's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// The template of a checkpoint: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json`.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("chat_template.jinja");
        if let Some(source) = read(&path)? {
            return Self::new(&path, &source);
        }
        let path = directory.join("tokenizer_config.json");
        if let Some(config) = read(&path)? {
            let malformed = |error: serde_json::Error| Error::Malformed {
                path: path.clone(),
                reason: error.to_string(),
            };
            let config: Value = serde_json::from_str(&config).map_err(malformed)?;
            if let Some(source) = template_of(&config) {
                return Self::new(&path, source);
            }
        }
        Err(Error::NoTemplate { path: directory.to_owned() })
    }

    /// A template from its source; `path` is for errors.
    pub fn new(path: &Path, source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters are sound"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| {
            out.write_str(&python::str_of(value)).map_err(minijinja::Error::from)
        });
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", |value: &JinjaValue| match value.as_str() {
            Some(_) => value.clone(),
            None => JinjaValue::from(python::str_of(value)),
        });
        environment.add_function("raise_exception", |message: String| {
            let error = minijinja::Error::new(ErrorKind::InvalidOperation, "refused");
            Err::<JinjaValue, _>(error.with_source(Refusal(message)))
        });
        environment
            .add_function("strftime_now", |format: &str| strftime(format, SystemTime::now()));
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| {
            Error::Malformed { path: path.to_owned(), reason: error.to_string() }
        })?;
        Ok(Self { environment })
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, Error> {
        self.render_with(messages, options, |_| {})
    }

    /// The text of a conversation whose messages, tools and variables `prepare` may change first.
    pub(crate) fn render_with(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        prepare: impl Fn(&mut Value),
    ) -> Result<String, Error> {
        let mut messages: Vec<Value> =
            messages.iter().map(Message::to_value).collect::<Result<_, _>>()?;
        messages.iter_mut().for_each(&prepare);
        let mut tools = options.tools.clone();
        tools.iter_mut().for_each(&prepare);

        if let Some(key) =
            RESERVED_VARIABLES.into_iter().find(|key| options.variables.contains_key(*key))
        {
            let reason =
                "is made of the request, so it cannot be given as a variable of the template";
            return Err(Error::request(format!("variables.{key}"), reason));
        }
        let mut context = options.variables.clone();
        context.values_mut().for_each(&prepare);
        context.insert("messages".to_owned(), Value::Array(messages));
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        if !tools.is_empty() {
            context.insert("tools".to_owned(), Value::Array(tools));
        }
        if let Some(enable_thinking) = options.enable_thinking {
            context.insert("enable_thinking".to_owned(), enable_thinking.into());
        }
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render(Serde(context)));
        rendered.map_err(|error| {
            match std::error::Error::source(&error).and_then(|source| source.downcast_ref()) {
                Some(Refusal(message)) => Error::Refused(message.clone()),
                None => Error::Failed(error.to_string()),
            }
        })
    }
}

/// What a template said when it refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// The text of a file of sane length; `None` when it is not there.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
        Ok(meta) if meta.len() > MAX_TEMPLATE_BYTES => {
            let reason = format!("{} bytes are too many", meta.len());
            Err(Error::Malformed { path: path.to_owned(), reason })
        }
        Ok(_) => fs::read_to_string(path).map(Some).map_err(io),
    }
}

/// The template in `tokenizer_config.json`: a text, or a list of named ones.
fn template_of(config: &Value) -> Option<&str> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source),
        Value::Array(list) => {
            let is_default =
                |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            list.iter().find(is_default)?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// Removes the tags that mark the model's own words for training; they render nothing.
fn without_generation_tags(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let Some(len) = rest[begin..].find("%}") else { break };
        let (tag, after) = rest[begin..].split_at(len + 2);
        let inner = tag[2..len].trim_matches(['-', '+']).trim();
        kept.push_str(&rest[..begin]);
        if matches!(inner, "generation" | "endgeneration") {
            // An empty comment takes away the same space around it as the tag did.
            let trims = |at: usize| if tag.as_bytes()[at] == b'-' { "-" } else { "" };
            kept.push_str(&format!("{{#{}{}#}}", trims(2), trims(len - 1)));
        } else {
            kept.push_str(tag);
        }
        rest = after;
    }
    kept.push_str(rest);
    kept
}

/// The date in UTC by the directives that chat templates use.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('y') => text.push_str(&format!("{:02}", year % 100)),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(MONTHS[month as usize - 1]),
            Some('b') => text.push_str(&MONTHS[month as usize - 1][..3]),
            Some('H') => text.push_str(&format!("{:02}", time / 3600)),
            Some('M') => text.push_str(&format!("{:02}", time / 60 % 60)),
            Some('S') => text.push_str(&format!("{:02}", time % 60)),
            Some('%') => text.push('%'),
            // Python leaves a directive that it does not know as it is.
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of a number of days since 1970-01-01 (Hinnant, "chrono-compatible low-level
/// date algorithms").
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(Path::new("test.jinja"), source).expect("the template is sound")
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| {
            strftime("%Y-%m-%d %H:%M:%S %d %b %Q%%", UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert_eq!(at(0), "1970-01-01 00:00:00 01 Jan %Q%");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59 28 Feb %Q%");
        assert_eq!(at(951_868_800), "2000-03-01 00:00:00 01 Mar %Q%");
    }

    #[test]
    fn generation_tags_render_nothing() {
        let source = "a {%- generation %} b {% endgeneration -%} c";
        let rendered = template(source).render(&[], &RenderOptions::default());
        assert_eq!(rendered.expect("it renders"), "a b c");
    }

    #[test]
    fn a_hostile_template_ends() {
        let endless = template(
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        );
        assert!(matches!(endless.render(&[], &RenderOptions::default()), Err(Error::Failed(_))));
        let recursive = template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
        assert!(matches!(recursive.render(&[], &RenderOptions::default()), Err(Error::Failed(_))));
    }

    #[test]
    fn a_broken_template_is_named() {
        let error = ChatTemplate::new(Path::new("dir/x.jinja"), "{% if %}").expect_err("broken");
        assert!(error.to_string().contains("dir/x.jinja"), "{error}");
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let list = serde_json::json!({ "chat_template": [
            { "name": "rag", "template": "a" }, { "name": "default", "template": "b" },
        ]});
        assert_eq!(template_of(&list), Some("b"));
    }
}
