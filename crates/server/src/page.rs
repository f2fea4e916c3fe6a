//! The page at `/`: files that are part of the program. Nothing of a request becomes a path.

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, Code};

/// Nothing from elsewhere, nothing inline, nobody around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Names, types and contents.
const FILES: [(&str, &str, &str); 6] = [
    ("style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
    ("main.js", "text/javascript; charset=utf-8", include_str!("../page/main.js")),
    ("chat.js", "text/javascript; charset=utf-8", include_str!("../page/chat.js")),
    ("markdown.js", "text/javascript; charset=utf-8", include_str!("../page/markdown.js")),
    ("engine.js", "text/javascript; charset=utf-8", include_str!("../page/engine.js")),
    ("icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
];

/// The page.
pub(crate) async fn index() -> Response {
    response("text/html; charset=utf-8", include_str!("../page/index.html"))
}

/// What it is made of.
pub(crate) async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|file| file.0 == name);
    let &(_, kind, text) =
        file.ok_or_else(|| ApiError::new(Code::NotFound, "there is no such file of the page"))?;
    Ok(response(kind, text))
}

fn response(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
