//! `/tokenize` and `/detokenize`: the tokenizer by itself.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::app::App;
use crate::error::ApiError;
use crate::router::{Asked, json_response};

/// A text's tokens. The text of a control token is text, unless `parse_special` says that it is one.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    Asked(mut fields): Asked,
) -> Result<Response, ApiError> {
    let text: String = fields.need("content")?;
    let special = fields.opt("parse_special")?.unwrap_or(false);
    fields.finish()?;
    let tokenizer = Arc::clone(&app.tokenizer);
    let work = move || match special {
        true => tokenizer.encode_trusted(&text),
        false => tokenizer.encode(&text),
    };
    let tokens = app.off_thread(work).await??;
    Ok(json_response(StatusCode::OK, &json!({ "tokens": tokens })))
}

/// The text of tokens.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    Asked(mut fields): Asked,
) -> Result<Response, ApiError> {
    let tokens: Vec<u32> = fields.need("tokens")?;
    fields.finish()?;
    check(&tokens, "tokens", &app)?;
    let tokenizer = Arc::clone(&app.tokenizer);
    let content = app.off_thread(move || tokenizer.decode(&tokens, false)).await?;
    Ok(json_response(StatusCode::OK, &json!({ "content": content })))
}

/// Refuses tokens that the model does not have.
pub(crate) fn check(tokens: &[u32], path: &str, app: &App) -> Result<(), ApiError> {
    let vocab_size = app.model.vocab_size;
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        None => Ok(()),
        Some(token) => {
            let why = format!("{token} is not in the vocabulary of {vocab_size}");
            Err(ApiError::invalid(path, why))
        }
    }
}
