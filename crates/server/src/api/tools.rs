//! Tools and what may be said, in the forms that the APIs have for them.

use chat::{ResponseFormat, ToolChoice};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// A tool as templates know it.
pub(crate) fn tool(
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    at: &str,
) -> Result<Value, ApiError> {
    if name.is_empty() {
        return Err(ApiError::invalid(format!("{at}.name"), "must not be empty"));
    }
    let parameters = parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    if !parameters.is_object() {
        return Err(ApiError::invalid(format!("{at}.parameters"), "must be a JSON schema object"));
    }
    let mut function = Map::new();
    function.insert("name".to_owned(), name.into());
    if let Some(description) = description {
        function.insert("description".to_owned(), description.into());
    }
    function.insert("parameters".to_owned(), parameters);
    Ok(json!({ "type": "function", "function": function }))
}

/// The tools of OpenAI's chat completions, which Ollama's are too.
pub(crate) fn read_tools(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let tools = fields.list("tools")?.unwrap_or_default().into_iter().map(|(at, value)| {
        let mut fields = Fields::of(value, &at)?;
        is_function(&mut fields)?;
        let mut function = fields.object("function")?.ok_or_else(|| fields.missing("function"))?;
        fields.finish()?;
        read_function(&mut function, "parameters", &format!("{at}.function")).and_then(|tool| {
            function.finish()?;
            Ok(tool)
        })
    });
    tools.collect()
}

/// Name, description and schema of a tool. Calls match the schema always, so that `strict` changes
/// nothing.
pub(crate) fn read_function(
    fields: &mut Fields,
    schema: &str,
    at: &str,
) -> Result<Value, ApiError> {
    let name = fields.need("name")?;
    let description = fields.opt("description")?;
    let parameters = fields.take(schema);
    fields.opt::<bool>("strict")?;
    tool(name, description, parameters, at)
}

/// Refuses tools that are no functions.
pub(crate) fn is_function(fields: &mut Fields) -> Result<(), ApiError> {
    let path = fields.path("type");
    match fields.opt::<String>("type")?.as_deref() {
        None | Some("function") => Ok(()),
        Some(other) => Err(ApiError::unsupported(path, format!("{other:?} is not a function"))),
    }
}

/// OpenAI's `tool_choice`.
pub(crate) fn read_tool_choice(fields: &mut Fields) -> Result<ToolChoice, ApiError> {
    let path = fields.path("tool_choice");
    match fields.take("tool_choice") {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            _ => Err(ApiError::invalid(path, "must be auto, none, required, or name a function")),
        },
        Some(value) => {
            let mut choice = Fields::of(value, &path)?;
            is_function(&mut choice)?;
            let name = match choice.object("function")? {
                Some(mut function) => {
                    let name = function.need("name")?;
                    function.finish()?;
                    name
                }
                None => choice.need("name")?,
            };
            choice.finish()?;
            Ok(ToolChoice::Named(name))
        }
    }
}

/// Refuses a choice that the tools do not allow.
pub(crate) fn check_choice(choice: &ToolChoice, tools: &[Value]) -> Result<(), ApiError> {
    match choice {
        ToolChoice::Auto | ToolChoice::None => Ok(()),
        ToolChoice::Required if tools.is_empty() => {
            Err(ApiError::invalid("tool_choice", "a call is required, and there are no tools"))
        }
        ToolChoice::Required => Ok(()),
        ToolChoice::Named(name) => {
            let is_it = |tool: &Value| tool["function"]["name"].as_str() == Some(name);
            match tools.iter().any(is_it) {
                true => Ok(()),
                false => {
                    Err(ApiError::invalid("tool_choice", format!("there is no tool {name:?}")))
                }
            }
        }
    }
}

/// OpenAI's `response_format`, with forms of ours for expressions, grammars and choices. In the form of
/// the responses API the schema is not in an object of its own.
pub(crate) fn read_format(fields: &mut Fields, name: &str) -> Result<ResponseFormat, ApiError> {
    let path = fields.path(name);
    let Some(mut format) = fields.object(name)? else { return Ok(ResponseFormat::Text) };
    let kind: String = format.need("type")?;
    let read = match kind.as_str() {
        "text" => ResponseFormat::Text,
        "json_object" => ResponseFormat::JsonObject,
        "json_schema" => match format.object("json_schema")? {
            Some(mut inner) => {
                let schema = read_schema(&mut inner)?;
                inner.finish()?;
                schema
            }
            None => read_schema(&mut format)?,
        },
        "regex" => ResponseFormat::Regex(format.need("pattern")?),
        "lark" => ResponseFormat::Lark(format.need("grammar")?),
        "choice" => {
            let choices: Vec<String> = format.need("choices")?;
            if choices.is_empty() {
                return Err(ApiError::invalid(format.path("choices"), "must not be empty"));
            }
            ResponseFormat::Choice(choices)
        }
        _ => {
            let why = "must be text, json_object, json_schema, regex, lark or choice";
            return Err(ApiError::invalid(format!("{path}.type"), why));
        }
    };
    format.finish()?;
    Ok(read)
}

fn read_schema(fields: &mut Fields) -> Result<ResponseFormat, ApiError> {
    fields.accept(&["name", "description"]);
    fields.opt::<bool>("strict")?;
    let schema = fields.take("schema").ok_or_else(|| fields.missing("schema"))?;
    Ok(ResponseFormat::JsonSchema(schema))
}
