//! Requests with the calls, the JSON or the number that they should lead to.

use std::fs;
use std::path::Path;

use chat::{ChatModel, ChatRequest, Message, Reply, ResponseFormat, ToolChoice};
use engine::{Engine, FinishReason, GenerateOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cost::Cost;
use crate::error::Error;
use crate::schema::{Unchecked, matches_schema};

/// Most tokens of a reply. A free one that runs in circles ends there and counts as no call; a held one is
/// brought to its end before.
const MAX_TOKENS: usize = 600;

/// A request, and what it should lead to.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Numbers are given for each group; by default the file's name is the group.
    #[serde(default)]
    pub group: String,
    /// The conversation.
    #[serde(default)]
    pub messages: Vec<Message>,
    /// Instead of a conversation, all that the user says.
    pub user: Option<String>,
    /// Tools that may be called, as in the API of OpenAI.
    #[serde(default)]
    pub tools: Vec<Value>,
    /// The calls that should come, each with `name` and `arguments`.
    pub calls: Option<Vec<Value>>,
    /// Without tools: the JSON that should come, as in the API of OpenAI.
    pub response_format: Option<Value>,
    /// The value that it should be; without tools and form, the number that the reply should end with.
    pub answer: Option<Value>,
}

/// How a reply is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Not at all.
    Free,
    /// From the mark of a call on, which need not come.
    Auto,
    /// From its beginning: a call of one of the tools, or JSON of the wanted form.
    Constrained,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseUnit {
    /// Its place in the file.
    pub index: usize,
    /// Its group.
    pub group: String,
    /// How its reply was held.
    pub way: Way,
    /// Whether JSON was wanted, not calls.
    pub json: bool,
    /// Whether a number was wanted, not calls.
    #[serde(default)]
    pub number: bool,
    /// Whole calls and nothing malformed, or JSON, or a number, to the reply's end.
    pub well_formed: bool,
    /// Besides, of the offered tools and with arguments that match their schemas; `None` when a schema has
    /// keywords that are not checked.
    pub valid: Option<bool>,
    /// The very calls, the very value or the very number that should come; `None` when the file has none.
    pub exact: Option<bool>,
    /// What it cost.
    pub cost: Cost,
}

/// A reply with all that it was made of.
#[derive(Debug)]
pub struct Said {
    /// What was asked.
    pub request: ChatRequest,
    /// The reply.
    pub reply: Reply,
    /// The tokens of prompt and reply, up to its end.
    pub tokens: Vec<u32>,
    /// Of the prompt.
    pub n_prompt: usize,
    /// Passes after which tokens were chosen.
    pub n_passes: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it cost.
    pub cost: Cost,
}

impl Case {
    /// Reads a file with a request a line.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let mut cases = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |reason: String| Error::line(path, index + 1, reason);
            let mut case: Self =
                serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            if case.messages.is_empty() == case.user.is_none() {
                return Err(bad("has to have either \"messages\" or \"user\"".to_owned()));
            }
            case.messages.extend(case.user.take().map(|text| Message::user(&text)));
            if case.group.is_empty() {
                case.group =
                    path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into());
            }
            let is_one =
                [!case.tools.is_empty(), case.response_format.is_some(), case.number().is_some()];
            if is_one.iter().filter(|is| **is).count() != 1 {
                let reason = "has to have either \"tools\", or \"response_format\", or an \"answer\" that is a number";
                return Err(bad(reason.to_owned()));
            }
            case.format().map_err(bad)?;
            cases.push(case);
        }
        if cases.is_empty() {
            return Err(Error::file(path, "has no requests"));
        }
        Ok(cases)
    }

    /// The ways in which it can be answered: a number is not held to anything.
    pub fn ways(&self) -> &'static [Way] {
        match self.number() {
            Some(_) => &[Way::Free],
            None => &[Way::Free, Way::Constrained],
        }
    }

    /// The number that is wanted of a reply, where neither calls nor JSON are.
    fn number(&self) -> Option<f64> {
        if !self.tools.is_empty() || self.response_format.is_some() {
            return None;
        }
        match self.answer.as_ref()? {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        }
    }

    /// The form that is wanted of a reply.
    fn format(&self) -> Result<ResponseFormat, String> {
        let Some(format) = &self.response_format else { return Ok(ResponseFormat::Text) };
        match (format["type"].as_str(), &format["json_schema"]["schema"]) {
            (Some("json_object"), _) => Ok(ResponseFormat::JsonObject),
            (Some("json_schema"), schema @ Value::Object(_)) => {
                Ok(ResponseFormat::JsonSchema(schema.clone()))
            }
            _ => {
                Err("response_format is neither json_object nor json_schema with a schema"
                    .to_owned())
            }
        }
    }

    fn request(&self, way: Way, enable_thinking: Option<bool>) -> ChatRequest {
        let held = way != Way::Free;
        ChatRequest {
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            tool_choice: match way {
                Way::Constrained if !self.tools.is_empty() => ToolChoice::Required,
                _ => ToolChoice::Auto,
            },
            format: match held {
                true => self.format().unwrap_or_default(),
                false => ResponseFormat::Text,
            },
            enable_thinking,
            constrain_tools: held,
            ..ChatRequest::default()
        }
    }

    /// What a reply is worth.
    pub fn judge(&self, index: usize, way: Way, said: &Said) -> CaseUnit {
        let Said { reply, finish, cost, .. } = said;
        let ended = way != Way::Free || *finish == FinishReason::Stop;
        let wanted = self.number();
        let (well_formed, valid, exact) = match &self.response_format {
            _ if wanted.is_some() => {
                let number = last_number(&reply.content).filter(|_| ended);
                (number.is_some(), Ok(number.is_some()), Some(number == wanted))
            }
            Some(_) => {
                let value: Option<Value> = serde_json::from_str(reply.content.trim()).ok();
                let value = value.filter(|_| ended);
                let schema = match self.format() {
                    Ok(ResponseFormat::JsonSchema(schema)) => schema,
                    _ => serde_json::json!({ "type": "object" }),
                };
                let valid = value.as_ref().map_or(Ok(false), |it| matches_schema(it, &schema));
                let exact = self.answer.as_ref().map(|answer| value.as_ref() == Some(answer));
                (value.is_some(), valid, exact)
            }
            None => {
                let well_formed = ended && !reply.calls.is_empty() && reply.malformed.is_empty();
                let valid = if well_formed { self.are_valid(reply) } else { Ok(false) };
                let exact =
                    self.calls.as_ref().map(|calls| well_formed && are_the_calls(reply, calls));
                (well_formed, valid, exact)
            }
        };
        CaseUnit {
            index,
            group: self.group.clone(),
            way,
            json: self.response_format.is_some(),
            number: wanted.is_some(),
            well_formed,
            valid: valid.ok(),
            exact,
            cost: *cost,
        }
    }

    /// Whether all calls are of the offered tools and match their schemas.
    fn are_valid(&self, reply: &Reply) -> Result<bool, Unchecked> {
        for call in &reply.calls {
            let tools = self.tools.iter().map(|tool| tool.get("function").unwrap_or(tool));
            let Some(tool) = tools.into_iter().find(|tool| tool["name"] == *call.name) else {
                return Ok(false);
            };
            let Ok(arguments) = serde_json::from_str(&call.arguments) else { return Ok(false) };
            let schema = tool.get("parameters").filter(|it| !it.is_null());
            if !schema.map_or(Ok(true), |schema| matches_schema(&arguments, schema))? {
                return Ok(false);
            }
            // As the grammars have it: only arguments that are described.
            let known = schema.and_then(|schema| schema["properties"].as_object());
            let mut names = arguments.as_object().into_iter().flat_map(Map::keys);
            if known.is_some_and(|known| !names.all(|name| known.contains_key(name))) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Asks a model, greedily.
pub fn run_case(
    engine: &mut Engine,
    model: &ChatModel,
    case: &Case,
    way: Way,
    enable_thinking: Option<bool>,
) -> Result<Said, Error> {
    let request = case.request(way, enable_thinking);
    let tokenizer = engine.shared_tokenizer()?;
    let prompt = model.prompt(&tokenizer, &request);
    let mut prompt =
        prompt.map_err(|source| Error::Chat { case: format!("group {:?}", case.group), source })?;
    let options = GenerateOptions {
        max_tokens: Some(MAX_TOKENS),
        stop_tokens: engine.stop_tokens().to_vec(),
        show_special: true,
        ..GenerateOptions::default()
    };
    // A prompt that was answered in another way is not computed again, where there is a prefix cache.
    let (mut session, n_known) = engine.session_for(&prompt.tokens)?;
    let mut said = Said {
        request,
        reply: Reply::default(),
        n_prompt: prompt.tokens.len(),
        tokens: std::mem::take(&mut prompt.tokens),
        n_passes: 0,
        finish: FinishReason::Cancelled,
        cost: Cost::default(),
    };
    let prompt_tokens = said.tokens.clone();
    let constraint = prompt.constraint.take();
    let rest = &prompt_tokens[n_known..];
    let steps = engine.generate_constrained(&mut session, rest, options, constraint)?;
    for step in steps {
        let step = step?;
        for event in prompt.parser.push(&step.text) {
            said.reply.add(&event);
        }
        said.tokens.extend(step.token);
        said.finish = step.finish.unwrap_or(said.finish);
        if step.usage.tokens > 0 {
            // The first pass holds the prompt, whose cost is another matter.
            if said.n_passes > 0 {
                said.cost += &Cost::of(&step.usage);
            }
            said.n_passes += 1;
        }
    }
    prompt.parser.finish().iter().for_each(|event| said.reply.add(event));
    engine.remember(&session);
    Ok(said)
}

/// The last number that a text says: digits, a part after a point, and a minus before them.
fn last_number(text: &str) -> Option<f64> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let digits = |text: &str| text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let mut begin = digits(&text[..end]);
    if let Some(before) = text[..begin].strip_suffix('.')
        && digits(before) < before.len()
    {
        begin = digits(before);
    }
    begin -= usize::from(text[..begin].ends_with('-'));
    text[begin..end].parse().ok()
}

/// Whether the reply has the calls that should come, in order; values count as their texts, as models
/// write them.
fn are_the_calls(reply: &Reply, expected: &[Value]) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    };
    let texts = |arguments: &Map<String, Value>| {
        let mut texts: Vec<_> =
            arguments.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        texts.sort();
        texts
    };
    reply.calls.len() == expected.len()
        && reply.calls.iter().zip(expected).all(|(call, expected)| {
            let said: Option<Map<String, Value>> = serde_json::from_str(&call.arguments).ok();
            let wanted = expected["arguments"].as_object().map(texts);
            call.name == expected["name"] && said.as_ref().map(texts) == wanted
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_found_in_words() {
        let of = |text| last_number(text);
        assert_eq!(of("The answer is 49."), Some(49.0));
        assert_eq!(of("34 + 58: tens 80, ones 12, together 92.\n\n34 + 58 = 92"), Some(92.0));
        assert_eq!(of("5 - 12 = -7"), Some(-7.0));
        assert_eq!(of("It is 3.5, not 4.25 km"), Some(4.25));
        assert_eq!([of("none"), of("")], [None, None]);
        assert_eq!([of(".5"), of("version 1.2.3")], [Some(5.0), Some(2.3)]);
    }
}
