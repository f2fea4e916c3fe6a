//! The APIs: each module translates one of them to [`crate::ask::Ask`], and what comes of it back.

pub(crate) mod chat_completions;
pub(crate) mod completions;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod ollama;
pub(crate) mod openai;
pub(crate) mod responses;
mod timestamp;
pub(crate) mod tokens;
mod tools;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::error::{ApiError, Code};

/// Whose shape an error has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Family {
    /// The family of a path; our own paths speak as OpenAI's do.
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// The status of an error.
    pub(crate) fn status(self, error: &ApiError) -> StatusCode {
        match (self, error.code) {
            // What Anthropic's clients know as a server that is busy.
            (Self::Anthropic, Code::QueueFull) => {
                StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
            }
            _ => error.code.status(),
        }
    }

    /// The body of an error.
    pub(crate) fn error(self, error: &ApiError) -> Value {
        let ApiError { code, message, param, .. } = error;
        let code_name = code.name();
        match self {
            Self::OpenAi => json!({
                "error": {
                    "message": message,
                    "type": openai_type(*code),
                    "param": param,
                    "code": code_name,
                },
            }),
            Self::Anthropic => json!({
                "type": "error",
                "error": { "type": anthropic_type(*code), "message": message, "code": code_name },
            }),
            Self::Ollama => json!({ "error": message, "code": code_name }),
        }
    }
}

fn openai_type(code: Code) -> &'static str {
    match code.status().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        503 => "overloaded_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(code: Code) -> &'static str {
    match code {
        Code::InvalidApiKey => "authentication_error",
        Code::HostNotAllowed | Code::OriginNotAllowed => "permission_error",
        Code::NotFound | Code::ModelNotFound => "not_found_error",
        Code::BodyTooLarge => "request_too_large",
        Code::QueueFull | Code::ShuttingDown => "overloaded_error",
        Code::DeadlineExceeded => "timeout_error",
        Code::EngineFailed => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_shape_of_the_api() {
        let error = ApiError::invalid("top_p", "must be a number");
        let openai = Family::of("/v1/chat/completions").error(&error);
        assert_eq!(
            openai.to_string(),
            r#"{"error":{"message":"top_p: must be a number","type":"invalid_request_error","param":"top_p","code":"invalid_value"}}"#
        );
        let anthropic = Family::of("/v1/messages/count_tokens").error(&error);
        assert_eq!(
            anthropic.to_string(),
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"top_p: must be a number","code":"invalid_value"}}"#
        );
        let ollama = Family::of("/api/chat").error(&error);
        assert_eq!(
            ollama.to_string(),
            r#"{"error":"top_p: must be a number","code":"invalid_value"}"#
        );
        let full = ApiError::new(Code::QueueFull, "full");
        assert_eq!(Family::Anthropic.status(&full).as_u16(), 529);
        assert_eq!(Family::OpenAi.status(&full).as_u16(), 503);
    }
}
