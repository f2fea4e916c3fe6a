//! Which path is answered by what.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::api;
use crate::app::App;
use crate::engine_thread::{Client, Reservation};
use crate::error::{ApiError, Code};
use crate::fields::Fields;
use crate::guard;
use crate::page;
use crate::picture;
use crate::stream::{self, Frames, Framing};

/// How long a client may take to send its request.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Bodies from this length are parsed where they keep no other client waiting.
const LONG_BODY: usize = 64 << 10;

/// What programs ask; `/openapi.json` describes all of it.
fn paths() -> [(&'static str, MethodRouter<Arc<App>>); 19] {
    [
        ("/health", get(health)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(openapi)),
        ("/engine", get(engine)),
        ("/engine/events", get(events)),
        ("/tokenize", post(api::tokens::tokenize)),
        ("/detokenize", post(api::tokens::detokenize)),
        ("/v1/models", get(api::models::list)),
        ("/v1/models/{*model}", get(api::models::one)),
        ("/v1/chat/completions", post(api::chat_completions::create)),
        ("/v1/completions", post(api::completions::create)),
        ("/v1/responses", post(api::responses::create)),
        ("/v1/messages", post(api::messages::create)),
        ("/v1/messages/count_tokens", post(api::messages::count_tokens)),
        ("/api/chat", post(api::ollama::chat)),
        ("/api/generate", post(api::ollama::generate)),
        ("/api/tags", get(api::ollama::tags)),
        ("/api/show", post(api::ollama::show)),
        ("/api/version", get(api::ollama::version)),
    ]
}

/// All paths: those, and the page's.
pub(crate) fn router(app: Arc<App>) -> Router {
    let page = Router::new().route("/", get(page::index)).route("/page/{file}", get(page::file));
    let all = paths().into_iter().fold(page, |router, (path, method)| router.route(path, method));
    all.fallback(async || ApiError::new(Code::NotFound, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(Code::MethodNotAllowed, "this path does not take this method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// A request's body, of which no parameter goes unnoticed.
pub(crate) struct Asked(pub(crate) Fields);

impl FromRequest<Arc<App>> for Asked {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limit = app.options.body_bytes;
        let too_large = || {
            let message = format!("the body is longer than the {limit} bytes that are allowed");
            ApiError::new(Code::BodyTooLarge, message)
        };
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let body = timeout(BODY_TIME, to_bytes(request.into_body(), limit)).await;
        let body = body.map_err(|_| {
            ApiError::new(Code::DeadlineExceeded, "the body took too long to arrive")
        })?;
        let body = body.map_err(|_| too_large())?;
        let is_long = body.len() > LONG_BODY;
        let parse = move || Fields::parse(&body);
        let fields = if is_long { app.off_thread(parse).await? } else { parse() };
        fields.map(Self)
    }
}

/// A request for an answer. It has its place in the queue before its body is read, so that the queue bounds
/// what is done for requests before they wait, too.
pub(crate) struct Queued {
    pub(crate) fields: Fields,
    pub(crate) reservation: Reservation,
}

impl FromRequest<Arc<App>> for Queued {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let client = request.extensions().get::<Client>().copied();
        let client = client.ok_or_else(|| ApiError::failed("the client is not known"))?;
        let reservation = app.engine.reserve(client)?;
        let Asked(fields) = Asked::from_request(request, app).await?;
        Ok(Self { fields, reservation })
    }
}

/// A response of JSON.
pub(crate) fn json_response(status: StatusCode, value: &serde_json::Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, value.to_string()).into_response()
}

/// Whether the engine's thread runs; answered by the server's own threads, also while it computes.
async fn health(State(app): State<Arc<App>>) -> Response {
    let is_alive = app.engine.is_alive();
    let facts = app.engine.facts();
    let status = if is_alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if is_alive { "ok" } else { "failed" };
    let value =
        json!({ "status": word, "running": facts.scheduler.running, "waiting": facts.waiting });
    json_response(status, &value)
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.text(&app.engine.facts());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn openapi() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, include_str!("openapi.json")).into_response()
}

async fn engine(State(app): State<Arc<App>>) -> Response {
    let mut value = app.describe();
    value["now"] = picture::sums(&app.engine.facts());
    json_response(StatusCode::OK, &value)
}

/// What the engine does, as events: `engine` once, then `state` as it changes.
async fn events(State(app): State<Arc<App>>) -> Response {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut watcher = app.engine.watch();
        let mut closing = app.closing.subscribe();
        let mut frames = Frames::default();
        frames.event("engine", &app.describe());
        let mut last = String::new();
        loop {
            if sender.send(frames.take()).await.is_err() || *closing.borrow_and_update() {
                return;
            }
            tokio::select! {
                changed = watcher.pictures.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = closing.changed() => return,
                () = sender.closed() => return,
                () = tokio::time::sleep(stream::SILENCE) => {
                    frames.comment("still here");
                    continue;
                }
            }
            let picture = watcher.pictures.borrow_and_update().to_string();
            if picture == last {
                frames.comment("the same");
            } else {
                frames.raw_event("state", &picture);
                last = picture;
            }
        }
    });
    stream::response(Framing::Events, receiver)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_path_is_described_and_nothing_else() {
        let described: Value =
            serde_json::from_str(include_str!("openapi.json")).expect("the file is JSON");
        let described = described["paths"].as_object().expect("there are paths");
        let mut described: Vec<&str> = described.keys().map(String::as_str).collect();
        let mut routed = paths().map(|path| path.0.replace("{*", "{"));
        described.sort_unstable();
        routed.sort_unstable();
        assert_eq!(described, routed);
    }
}
