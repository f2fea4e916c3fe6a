//! `GET /v1/models`. Anthropic's clients read the same list, so each entry has the names of both.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::router::json_response;

/// All names of the model.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    let names = &app.options.model_names;
    let data: Vec<Value> = names.iter().map(|name| entry(name, &app)).collect();
    let value = json!({
        "object": "list",
        "data": data,
        "first_id": names.first(),
        "last_id": names.last(),
        "has_more": false,
    });
    json_response(StatusCode::OK, &value)
}

/// One of them.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = path.map_err(|_| ApiError::invalid("model", "must be UTF-8"))?;
    app.check_model(&name)?;
    Ok(json_response(StatusCode::OK, &entry(&name, &app)))
}

fn entry(name: &str, app: &App) -> Value {
    let created = app.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "flash-moe",
        "type": "model",
        "display_name": name,
        "context_length": app.model.context,
    })
}
