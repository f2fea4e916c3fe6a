//! What every request passes: hosts, origins, keys; and what every error passes on its way out: the shape
//! of the API that was asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::Family;
use crate::app::App;
use crate::engine_thread::Client;
use crate::error::{ApiError, Code};
use crate::log;
use crate::router::json_response;
use crate::security;

/// The header that says that answers are not the model's own, and why.
const LOSSY: HeaderName = HeaderName::from_static("x-flash-moe-lossy");

/// An error on its way out: [`guard`] gives it the shape of the API that was asked.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Checks a request, has it answered, and gives errors their shape.
pub(crate) async fn guard(
    State(app): State<Arc<App>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let origin = security::check_origin(&headers, &app.options);
    let checked =
        security::check_host(&headers, &app.options).and(origin.clone()).and_then(|is_foreign| {
            match (is_foreign, &method) {
                (true, &Method::OPTIONS) => Ok(None),
                _ if is_public(&path) => Ok(Some(0)),
                _ => security::check_key(&headers, &app.options).map(Some),
            }
        });
    let mut response = match checked {
        Ok(Some(key)) => {
            request.extensions_mut().insert(Client { key, address: address.ip() });
            next.run(request).await
        }
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => error.into_response(),
    };
    let error = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = &error {
        response = shaped(&path, error);
    }
    if origin == Ok(true) {
        security::allow_origin(&headers, &method, response.headers_mut());
    }
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let lossy = app.model.lossy.as_ref().and_then(|lossy| HeaderValue::from_str(lossy).ok());
    if let Some(lossy) = lossy {
        response.headers_mut().insert(LOSSY, lossy);
    }
    let status = response.status();
    app.metrics.response(status.as_u16());
    if app.options.log {
        let took = begun.elapsed().as_secs_f64();
        let about = error.map(|error| {
            let detail = error.detail.unwrap_or(error.message);
            format!(" {}: {detail}", error.code.name())
        });
        let about = about.unwrap_or_default();
        log::line(&format!(
            "{} {method} {path} {} {took:.3} s{about}",
            address.ip(),
            status.as_u16()
        ));
    }
    response
}

/// What needs no key: the page before a key is typed in, and what tells only that a server is here.
fn is_public(path: &str) -> bool {
    path == "/" || path.starts_with("/page/") || path == "/health" || path == "/openapi.json"
}

fn shaped(path: &str, error: &ApiError) -> Response {
    let family = Family::of(path);
    let mut response = json_response(family.status(error), &family.error(error));
    let headers = response.headers_mut();
    match error.code {
        Code::QueueFull | Code::ShuttingDown => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Code::InvalidApiKey => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    response
}
