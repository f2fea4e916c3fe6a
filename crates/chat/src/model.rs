//! A model that is talked to: conversations to prompts, with what reads the reply and what holds it to a
//! form.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value};
use tokenizer::Tokenizer;

use crate::closing::Closer;
use crate::constraint::{Mark, Marks, ReplyConstraint, first_line};
use crate::error::Error;
use crate::format::{AFTER_THINKING, CALL, CallFormat, ReplyFormat, THINK, THINK_END};
use crate::grammar::{CallRules, GrammarText, grammar};
use crate::message::Message;
use crate::parser::{Opening, ReplyParser};
use crate::template::{ChatTemplate, RenderOptions};
use crate::tools::Tool;
use crate::vocabulary;

/// A model's template, the form of its replies, and what its grammars need.
pub struct ChatModel {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    format: ReplyFormat,
    marks: OnceLock<Marks>,
    closer: OnceLock<Arc<Closer>>,
    /// Made when a grammar is asked for the first time.
    factory: OnceLock<Result<ParserFactory, String>>,
    /// Compiled grammars by their texts, the last used at the end: an agent asks with the same tools again.
    compiled: Mutex<Vec<(String, Matcher)>>,
}

/// Compiled grammars that are kept.
const N_COMPILED: usize = 8;
/// Tools that are tried one by one to find the one whose schema is at fault.
const N_BLAMED: usize = 32;

/// What is asked of the model.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Tools that may be called, in the form of the OpenAI API.
    pub tools: Vec<Value>,
    /// Whether and what shall be called.
    pub tool_choice: ToolChoice,
    /// Whether a reply may hold several calls.
    pub parallel_tool_calls: bool,
    /// What the reply has to be, where it is no call.
    pub format: ResponseFormat,
    /// Whether the model shall think first; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// Whether calls are held to the schemas of the tools.
    pub constrain_tools: bool,
    /// Tokens of the model's earlier replies, as they were generated and in order. Where a reply in the prompt
    /// has the text of one, it has it in these tokens: a model may say a text in other tokens than an encoder,
    /// and what was computed for them can then be used again.
    pub said: Vec<Vec<u32>>,
    /// More variables of the template.
    pub variables: Map<String, Value>,
}

impl Default for ChatRequest {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            format: ResponseFormat::Text,
            enable_thinking: None,
            constrain_tools: true,
            said: Vec::new(),
            variables: Map::new(),
        }
    }
}

/// Whether and what the model shall call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model sees fit.
    #[default]
    Auto,
    /// Nothing; the tools are not shown to the model.
    None,
    /// Any of the tools, at once.
    Required,
    /// This tool, at once.
    Named(String),
}

/// What a reply has to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that matches this schema.
    JsonSchema(Value),
    /// A text that matches this regular expression as a whole.
    Regex(String),
    /// A text of this grammar, in Lark's notation.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A prompt, with what the reply to it needs. The reply is to be generated with
/// `GenerateOptions::show_special`, so that marks are seen, and with the model's stop tokens.
pub struct Prompt {
    /// The conversation up to the reply.
    pub tokens: Vec<u32>,
    /// What the reply may say, if it may not say everything.
    pub constraint: Option<Box<dyn engine::Constraint>>,
    /// Reads the reply.
    pub parser: ReplyParser,
}

impl ChatModel {
    /// The model in a checkpoint's directory. `embedded` is a template that the checkpoint's own file
    /// holds ([`engine::Engine::chat_template`]).
    pub fn open(
        directory: &Path,
        embedded: Option<&str>,
        tokenizer: &Tokenizer,
    ) -> Result<Self, Error> {
        let template = match embedded {
            Some(source) => ChatTemplate::new(directory, source)?,
            None => ChatTemplate::open(directory)?,
        };
        Ok(Self::new(template, tokenizer))
    }

    /// The model with this template.
    pub fn new(template: ChatTemplate, tokenizer: &Tokenizer) -> Self {
        Self {
            format: ReplyFormat::of(&template, tokenizer),
            template,
            tokenizer: tokenizer.clone(),
            marks: OnceLock::new(),
            closer: OnceLock::new(),
            factory: OnceLock::new(),
            compiled: Mutex::default(),
        }
    }

    /// The model whose generation ends at these tokens, too, beside those that its template shows.
    pub fn with_stop_tokens(mut self, stop_tokens: &[u32]) -> Self {
        for &token in stop_tokens {
            if !self.format.stop_tokens.contains(&token) {
                self.format.stop_tokens.push(token);
            }
        }
        self
    }

    /// How the model writes calls.
    pub fn call_format(&self) -> CallFormat {
        self.format.calls
    }

    /// Whether the model writes thoughts apart from its reply.
    pub fn thinks(&self) -> bool {
        self.format.thinks
    }

    /// The tokens of a conversation, and what its reply needs.
    pub fn prompt(&self, tokenizer: &Tokenizer, request: &ChatRequest) -> Result<Prompt, Error> {
        let tools = self.tools(request)?;
        let options = RenderOptions {
            tools: if tools.is_empty() { Vec::new() } else { request.tools.clone() },
            add_generation_prompt: true,
            enable_thinking: request.enable_thinking,
            variables: request.variables.clone(),
        };
        let text = crate::render(&self.template, tokenizer, &request.messages, &options)?;
        let opening = self.opening(&text, request.enable_thinking);
        let calls = if tools.is_empty() { CallFormat::None } else { self.format.calls };
        let constraint = self.constraint(request, &tools, opening)?;
        Ok(Prompt {
            tokens: self.encode(tokenizer, &text, &request.said)?,
            constraint,
            parser: ReplyParser::new(calls, Tool::types(&tools), opening),
        })
    }

    /// The tokens of a rendered conversation.
    fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        said: &[Vec<u32>],
    ) -> Result<Vec<u32>, Error> {
        let turn: Vec<u32> = self.format.stop_tokens.first().copied().into_iter().collect();
        let end = tokenizer.decode(&turn, false);
        let (mut tokens, mut rest) = (Vec::new(), text);
        for reply in said {
            let Some(header) = &self.format.header else { break };
            let stops =
                reply.iter().rev().take_while(|&&token| tokenizer.is_special(token)).count();
            let reply = &reply[..reply.len() - stops];
            let words = tokenizer.decode(reply, false);
            let Some(begin) = place(rest, header, &format!("{words}{end}")) else { continue };
            tokens.extend(tokenizer.encode_prompt(&rest[..begin])?);
            tokens.extend_from_slice(reply);
            rest = &rest[begin + words.len()..];
        }
        tokens.extend(tokenizer.encode_prompt(rest)?);
        Ok(tokens)
    }

    /// The tools that may be called.
    fn tools(&self, request: &ChatRequest) -> Result<Vec<Tool>, Error> {
        if request.tools.is_empty() {
            return match &request.tool_choice {
                ToolChoice::Auto | ToolChoice::None => Ok(Vec::new()),
                ToolChoice::Required | ToolChoice::Named(_) => {
                    Err(Error::request("tool_choice", "asks for a call, but there are no tools"))
                }
            };
        }
        let tools = Tool::list(&request.tools)?;
        if let ToolChoice::Named(name) = &request.tool_choice
            && tools.iter().all(|tool| &tool.name != name)
        {
            return Err(Error::request("tool_choice", format!("there is no tool {name:?}")));
        }
        match (&request.tool_choice, self.format.calls) {
            (ToolChoice::None, _) => Ok(Vec::new()),
            (_, CallFormat::None) => Err(Error::NoToolFormat),
            _ => Ok(tools),
        }
    }

    /// How the reply begins, by the end of the prompt.
    fn opening(&self, prompt: &str, enable_thinking: Option<bool>) -> Opening {
        let end = prompt.trim_end();
        if end.ends_with(THINK) {
            Opening::Thinking
        } else if end.ends_with(THINK_END) || !self.format.thinks || enable_thinking == Some(false)
        {
            Opening::Plain
        } else {
            Opening::MayThink
        }
    }

    fn constraint(
        &self,
        request: &ChatRequest,
        tools: &[Tool],
        opening: Opening,
    ) -> Result<Option<Box<dyn engine::Constraint>>, Error> {
        let must = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        let plain = request.format == ResponseFormat::Text;
        if must && !plain {
            let reason = "a reply cannot both be a call and have another form";
            return Err(Error::request("response_format", reason));
        }
        if !request.constrain_tools && (must || !tools.is_empty() && !plain) {
            let reason =
                "only with constraints can a call be asked for, or another form beside calls";
            return Err(Error::request("tool_choice", reason));
        }
        let called: Vec<Tool> = match &request.tool_choice {
            ToolChoice::Named(name) => {
                tools.iter().filter(|tool| &tool.name == name).cloned().collect()
            }
            _ => tools.to_vec(),
        };
        let held = !called.is_empty() && request.constrain_tools;
        if !held && plain {
            return Ok(None);
        }
        if held {
            called.iter().try_for_each(Tool::check_schema)?;
        }
        let rules = CallRules {
            format: self.format.calls,
            tools: &called,
            parallel: request.parallel_tool_calls,
        };
        let rules = held.then_some(&rules);
        // A call that the model may begin when it likes is held from its mark on.
        let opens = plain && !must;
        let marks = self.marks();
        if opens && marks.call.is_none() {
            let reason =
                format!("{CALL} is no token of this model, so calls cannot be held to schemas");
            return Err(Error::request("tools", reason));
        }
        let unseen = match opening {
            Opening::Plain => None,
            Opening::MayThink if marks.think.is_none() => Some(THINK),
            Opening::Thinking | Opening::MayThink if marks.think_end.is_none() => Some(THINK_END),
            Opening::Thinking | Opening::MayThink => None,
        };
        if let Some(mark) = unseen {
            let field = if plain { "tools" } else { "response_format" };
            let reason = format!(
                "{mark} is no token of this model, so it cannot be told where a thought ends and the reply \
                 is to be held\nhint: turn thinking off"
            );
            return Err(Error::request(field, reason));
        }
        let text = grammar(&self.tokenizer, rules, opens, &request.format)?;
        let matcher = self.matcher(&text).map_err(|error| match rules {
            Some(rules) => self.blame(rules, error),
            None => error,
        })?;
        let lead = self.tokenizer.encode(AFTER_THINKING)?;
        Ok(Some(Box::new(ReplyConstraint::new(
            &self.tokenizer,
            Arc::clone(self.closer()),
            marks.clone(),
            self.format.stop_tokens.clone(),
            matcher,
            opening,
            opens,
            lead,
        ))))
    }

    /// The tool whose schema is at fault when no grammar of all of them can be made.
    fn blame(&self, rules: &CallRules<'_>, error: Error) -> Error {
        for tool in rules.tools.iter().take(N_BLAMED) {
            let alone = CallRules { tools: std::slice::from_ref(tool), ..rules.clone() };
            let text = grammar(&self.tokenizer, Some(&alone), true, &ResponseFormat::Text);
            if let Err(Error::Request { reason, .. }) = text.and_then(|text| self.compile(&text)) {
                return Error::request(&tool.field, reason);
            }
        }
        error
    }

    fn marks(&self) -> &Marks {
        self.marks.get_or_init(|| {
            let mark = |text| Mark::new(&self.tokenizer, text);
            Marks { think: mark(THINK), think_end: mark(THINK_END), call: mark(CALL) }
        })
    }

    fn closer(&self) -> &Arc<Closer> {
        // Where no token ends a turn no grammar is compiled.
        let end = self.format.stop_tokens.first().copied().unwrap_or(u32::MAX);
        self.closer.get_or_init(|| Arc::new(Closer::new(&self.tokenizer, end)))
    }

    /// A grammar, compiled now or before.
    fn matcher(&self, text: &GrammarText) -> Result<Matcher, Error> {
        let compiled = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let mut compiled = compiled();
            compiled.iter().position(|(lark, _)| lark == &text.lark).map(|index| {
                let entry = compiled.remove(index);
                let matcher = entry.1.deep_clone();
                compiled.push(entry);
                matcher
            })
        };
        if let Some(matcher) = known {
            return Ok(matcher);
        }
        let matcher = self.compile(text)?;
        let mut compiled = compiled();
        if compiled.len() == N_COMPILED {
            compiled.remove(0);
        }
        compiled.push((text.lark.clone(), matcher.deep_clone()));
        Ok(matcher)
    }

    fn compile(&self, text: &GrammarText) -> Result<Matcher, Error> {
        let factory = self
            .factory
            .get_or_init(|| vocabulary::factory(&self.tokenizer, &self.format.stop_tokens));
        let refused = |reason: String| Error::request(text.field, reason);
        let factory = factory.as_ref().map_err(|reason| refused(reason.clone()))?;
        let grammar = TopLevelGrammar::from_lark(text.lark.clone());
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let refused =
            |error: &str| refused(format!("no grammar can be made: {}", first_line(error)));
        if let Some(error) = matcher.get_error() {
            return Err(refused(&error));
        }
        // The first mask shows what is only found out when the grammar runs.
        matcher.compute_mask().map_err(|error| refused(&error.to_string()))?;
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(refused(warning));
        }
        Ok(matcher)
    }
}

/// Where a reply of these words and their end stands in a prompt: right after the header of a reply, or after
/// the thought that a prompt begins or leaves empty.
fn place(prompt: &str, header: &str, words: &str) -> Option<usize> {
    let empty = format!("{THINK}\n\n{THINK_END}{AFTER_THINKING}");
    let begun = format!("{THINK}\n");
    prompt.match_indices(header).find_map(|(at, _)| {
        let begin = at + header.len();
        ["", &begun, &empty].into_iter().find_map(|lead| {
            let reply = prompt[begin..].strip_prefix(lead)?;
            reply.starts_with(words).then_some(begin + lead.len())
        })
    })
}
