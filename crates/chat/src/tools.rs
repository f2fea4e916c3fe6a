//! Tools as requests offer them, checked once.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::error::Error;
use crate::schema::{self, Types};

/// Tools of a request.
const MAX_TOOLS: usize = 256;

/// A tool that may be called.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// The schema of its arguments.
    pub(crate) parameters: Value,
    /// Where the schema is, for errors.
    pub(crate) field: String,
}

/// Types of the arguments of each tool, by their names: what a reader needs of schemas.
pub(crate) type ArgumentTypes = HashMap<String, HashMap<String, Types>>;

impl Tool {
    /// The tools of a request, in the form of the OpenAI API, with or without `function` around each.
    pub(crate) fn list(tools: &[Value]) -> Result<Vec<Self>, Error> {
        if tools.len() > MAX_TOOLS {
            let reason = format!("{} tools are more than {MAX_TOOLS}", tools.len());
            return Err(Error::request("tools", reason));
        }
        let mut list: Vec<Self> = Vec::with_capacity(tools.len());
        for (index, tool) in tools.iter().enumerate() {
            let (tool, prefix) = match tool.get("function") {
                Some(function) => (function, format!("tools[{index}].function")),
                None => (tool, format!("tools[{index}]")),
            };
            let field = format!("{prefix}.name");
            let name = tool.get("name").and_then(Value::as_str).unwrap_or_default();
            check_name(&field, name)?;
            if list.iter().any(|other| other.name == name) {
                return Err(Error::request(field, format!("{name} is the name of two tools")));
            }
            let field = format!("{prefix}.parameters");
            let parameters = match tool.get("parameters") {
                None | Some(Value::Null) => Value::Object(Map::new()),
                Some(parameters) => parameters.clone(),
            };
            if !parameters.is_object() {
                return Err(Error::request(field, "must be a JSON schema, an object"));
            }
            let tool = Self { name: name.to_owned(), parameters, field };
            for (name, ..) in tool.arguments() {
                check_name(&format!("{}.properties", tool.field), name)?;
            }
            list.push(tool);
        }
        Ok(list)
    }

    /// The schemas of its arguments, in order; one that is required and not described may be anything.
    pub(crate) fn arguments(&self) -> Vec<(&str, &Value, bool)> {
        let required = self.parameters.get("required").and_then(Value::as_array);
        let required: Vec<&str> =
            required.into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = self.parameters.get("properties").and_then(Value::as_object);
        let described = properties.into_iter().flatten();
        let mut arguments: Vec<(&str, &Value, bool)> = described
            .map(|(name, schema)| (name.as_str(), schema, required.contains(&name.as_str())))
            .collect();
        for name in required {
            if arguments.iter().all(|&(other, ..)| other != name) {
                arguments.push((name, &Value::Bool(true), true));
            }
        }
        arguments
    }

    /// The types of the arguments of tools.
    pub(crate) fn types(tools: &[Self]) -> ArgumentTypes {
        let of = |tool: &Self| {
            let arguments = tool.arguments().into_iter();
            let types = arguments.map(|(name, schema, _)| {
                (name.to_owned(), Types::of_schema(schema, &tool.parameters))
            });
            (tool.name.clone(), types.collect())
        };
        tools.iter().map(of).collect()
    }

    /// Refuses schemas that no grammar can be made of.
    pub(crate) fn check_schema(&self) -> Result<(), Error> {
        schema::check(&self.field, &self.parameters)
    }
}

/// Names stand within marks of the reply, so they cannot hold what ends one.
fn check_name(field: &str, name: &str) -> Result<(), Error> {
    let bad = |c: char| c.is_control() || matches!(c, '<' | '>' | '"' | '\\' | '\u{7f}');
    if name.is_empty() || name.len() > 256 || name.contains(bad) || name.trim() != name {
        let reason = format!(
            "{name:?} cannot be a name: 1 to 256 bytes, no control characters, no space around it, \
             none of < > \" \\"
        );
        return Err(Error::request(field, reason));
    }
    Ok(())
}
