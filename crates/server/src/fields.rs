//! Reading the parameters of a request so that none goes unnoticed: each is taken out by its name, and
//! what is left at the end is an error.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ApiError, Code};

/// An object of a request, of which what was read is gone.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object is, such as `messages[2].`; empty for the request itself.
    at: String,
}

impl Fields {
    /// The body of a request.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::new(Code::InvalidJson, format!("the body is not JSON: {error}"))
        })?;
        match value {
            Value::Object(map) => Ok(Self { map, at: String::new() }),
            _ => Err(ApiError::new(Code::InvalidJson, "the body must be a JSON object")),
        }
    }

    /// A value inside a request, which must be an object.
    pub(crate) fn of(value: Value, at: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, at: format!("{at}.") }),
            _ => Err(ApiError::invalid(at, "must be an object")),
        }
    }

    /// Where a field of this object is.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.at)
    }

    /// A field as it came. Null is as good as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        // The order of the others is kept, so that errors name the first of them.
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A field that is to be read later.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// A field of a certain type.
    pub(crate) fn opt<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match serde_json::from_value(value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(ApiError::invalid(self.path(name), error.to_string())),
        }
    }

    /// A field that must be there.
    pub(crate) fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.opt(name)?.ok_or_else(|| self.missing(name))
    }

    /// The error that a field is not there.
    pub(crate) fn missing(&self, name: &str) -> ApiError {
        let path = self.path(name);
        let message = format!("{path} is required");
        ApiError::about(Code::MissingParameter, path, message)
    }

    /// An object in a field.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.path(name);
        self.take(name).map(|value| Self::of(value, &path)).transpose()
    }

    /// A list in a field, each entry with its place.
    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<(String, Value)>>, ApiError> {
        let path = self.path(name);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let placed = items.into_iter().enumerate();
                Ok(Some(placed.map(|(i, item)| (format!("{path}[{i}]"), item)).collect()))
            }
            Some(_) => Err(ApiError::invalid(path, "must be a list")),
        }
    }

    /// Takes fields that are meant for others than the model and change nothing in its answer.
    pub(crate) fn accept(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Refuses a field unless it has one of the values that ask for nothing.
    pub(crate) fn refuse(
        &mut self,
        name: &str,
        harmless: &[Value],
        why: &str,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless.contains(&value) => {
                Err(ApiError::unsupported(self.path(name), why))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what nobody has read.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.map.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path = format!("{}{name}", self.at);
                let message = format!("{path} is not a parameter that this server knows");
                Err(ApiError::about(Code::UnknownParameter, path, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).expect("the body is an object")
    }

    #[test]
    fn what_nobody_reads_is_an_error_that_names_it() {
        let mut request =
            fields(r#"{"model": "m", "options": {"depth": 2, "x": null}, "y": null}"#);
        assert_eq!(request.need::<String>("model").as_deref(), Ok("m"));
        let options = request.object("options").expect("it is one").expect("it is there");
        let error = options.finish().expect_err("depth was not read");
        assert_eq!(error.param.as_deref(), Some("options.depth"));
        assert_eq!(error.code, Code::UnknownParameter);
        request.finish().expect("null asks for nothing");
    }

    #[test]
    fn wrong_types_name_the_place() {
        let mut request = fields(r#"{"messages": [{"role": 3}]}"#);
        let mut list = request.list("messages").expect("it is one").expect("it is there");
        let (at, first) = list.remove(0);
        let mut message = Fields::of(first, &at).expect("it is an object");
        let error = message.opt::<String>("role").expect_err("three is no role");
        assert_eq!(error.param.as_deref(), Some("messages[0].role"));
        let error = message.need::<String>("content").expect_err("it is missing");
        assert_eq!(error.message, "messages[0].content is required");
        assert_eq!(Fields::parse(b"[]").expect_err("no object").code, Code::InvalidJson);
    }
}
