//! What goes wrong with a request: one message for who asked, and one for the log where they differ.

use axum::http::StatusCode;

/// Names of errors. They are part of the published interface (`docs/server.md`) and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidJson,
    MissingParameter,
    InvalidValue,
    UnknownParameter,
    UnsupportedParameter,
    ContextLengthExceeded,
    ConversationRefused,
    NoChatTemplate,
    ModelNotFound,
    InvalidApiKey,
    HostNotAllowed,
    OriginNotAllowed,
    NotFound,
    MethodNotAllowed,
    BodyTooLarge,
    QueueFull,
    DeadlineExceeded,
    ShuttingDown,
    EngineFailed,
}

impl Code {
    /// The name on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::MissingParameter => "missing_parameter",
            Self::InvalidValue => "invalid_value",
            Self::UnknownParameter => "unknown_parameter",
            Self::UnsupportedParameter => "unsupported_parameter",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::ConversationRefused => "conversation_refused",
            Self::NoChatTemplate => "no_chat_template",
            Self::ModelNotFound => "model_not_found",
            Self::InvalidApiKey => "invalid_api_key",
            Self::HostNotAllowed => "host_not_allowed",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooLarge => "body_too_large",
            Self::QueueFull => "queue_full",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::ShuttingDown => "shutting_down",
            Self::EngineFailed => "engine_failed",
        }
    }

    /// The status of a response that is nothing but this error.
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::InvalidApiKey => StatusCode::UNAUTHORIZED,
            Self::HostNotAllowed | Self::OriginNotAllowed => StatusCode::FORBIDDEN,
            Self::NotFound | Self::ModelNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::QueueFull | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::EngineFailed => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why a request gets no answer, or no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) code: Code,
    /// For who asked.
    pub(crate) message: String,
    /// The parameter that is to blame, such as `messages[2].content`.
    pub(crate) param: Option<String>,
    /// For the log, where it says more than the client may know.
    pub(crate) detail: Option<String>,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, detail: None }
    }

    /// An error that a parameter is to blame for.
    pub(crate) fn about(code: Code, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(code, message) }
    }

    /// A value that has no meaning.
    pub(crate) fn invalid(param: impl Into<String>, why: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("{param}: {}", why.as_ref());
        Self::about(Code::InvalidValue, param, message)
    }

    /// A value that has a meaning which this server cannot give it.
    pub(crate) fn unsupported(param: impl Into<String>, why: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("{param} is not supported: {}", why.as_ref());
        Self::about(Code::UnsupportedParameter, param, message)
    }

    /// A failure of ours; the reason is for the log alone.
    pub(crate) fn failed(detail: impl Into<String>) -> Self {
        let message = "the engine failed on this request; its log says why";
        Self { detail: Some(detail.into()), ..Self::new(Code::EngineFailed, message) }
    }
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> Self {
        let message = error.to_string();
        match error {
            engine::Error::Sampling { field, .. } => {
                Self::about(Code::InvalidValue, field, message)
            }
            engine::Error::ContextFull { .. } => Self::new(Code::ContextLengthExceeded, message),
            engine::Error::EmptyPrompt | engine::Error::UnknownToken { .. } => {
                Self::new(Code::InvalidValue, message)
            }
            error => Self::failed(chain(&error)),
        }
    }
}

impl From<chat::Error> for ApiError {
    fn from(error: chat::Error) -> Self {
        let message = error.to_string();
        match error {
            chat::Error::Request { field, .. } => Self::about(Code::InvalidValue, field, message),
            _ => Self::new(Code::ConversationRefused, message),
        }
    }
}

impl From<tokenizer::Error> for ApiError {
    fn from(error: tokenizer::Error) -> Self {
        Self::new(Code::InvalidValue, error.to_string())
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
