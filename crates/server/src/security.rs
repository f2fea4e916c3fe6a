//! Who may ask: keys, hosts, origins. What is checked before anything of a request is read.
//!
//! A server on `localhost` is within reach of every web page that the user opens. Two things keep pages
//! out: a page's request names its origin, which must be ours or an allowed one; and a name that an
//! attacker has pointed at `127.0.0.1` shows in the `Host` header, which must be an address, `localhost`,
//! or a name that was allowed.

use std::hint::black_box;
use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Method, header};

use crate::error::{ApiError, Code};
use crate::options::ServerOptions;

/// Whether a request's `Host` is one of ours.
pub(crate) fn check_host(headers: &HeaderMap, options: &ServerOptions) -> Result<(), ApiError> {
    let host = text(headers, &header::HOST).unwrap_or_default();
    let name = host_name(host);
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_local = name.eq_ignore_ascii_case("localhost");
    let is_allowed = options.hosts.iter().any(|allowed| name.eq_ignore_ascii_case(allowed));
    if is_address || is_local || is_allowed {
        return Ok(());
    }
    let message = format!("requests to the host {name:?} are not allowed; --allow-host allows it");
    Err(ApiError::new(Code::HostNotAllowed, message))
}

/// Whether the page that a request comes from may ask; `true` when it needs headers that let it read the
/// answer.
pub(crate) fn check_origin(headers: &HeaderMap, options: &ServerOptions) -> Result<bool, ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(false) };
    let origin = origin.to_str().unwrap_or_default();
    if options.cors_origins.iter().any(|allowed| allowed == origin) {
        return Ok(true);
    }
    let host = text(headers, &header::HOST).unwrap_or_default();
    let at = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    if !host.is_empty() && at == Some(host) {
        return Ok(false);
    }
    let message = format!("pages of {origin:?} are not allowed; --cors-origin allows them");
    Err(ApiError::new(Code::OriginNotAllowed, message))
}

/// Headers that let a page of an allowed origin read an answer, or ask at all.
pub(crate) fn allow_origin(request: &HeaderMap, method: &Method, response: &mut HeaderMap) {
    let Some(origin) = request.get(header::ORIGIN) else { return };
    response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    response.append(header::VARY, HeaderValue::from_static("origin"));
    if method == Method::OPTIONS {
        let methods = HeaderValue::from_static("GET, POST, OPTIONS");
        response.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let asked = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let names = asked.unwrap_or(HeaderValue::from_static("authorization, content-type"));
        response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
        response.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// The number of the key that a request shows. Every key is compared to its end, so that the time tells
/// nothing about how much of one was right.
pub(crate) fn check_key(headers: &HeaderMap, options: &ServerOptions) -> Result<usize, ApiError> {
    if options.api_keys.is_empty() {
        return Ok(0);
    }
    let bearer = text(headers, &header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let shown = bearer.or_else(|| headers.get("x-api-key").and_then(|key| key.to_str().ok()));
    let shown = shown.unwrap_or_default().as_bytes();
    let mut found = None;
    for (number, key) in options.api_keys.iter().enumerate() {
        if is_equal(shown, key.as_bytes()) {
            found = Some(number);
        }
    }
    found.ok_or_else(|| {
        let message = "a key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        ApiError::new(Code::InvalidApiKey, message)
    })
}

/// Compares in a time that depends on the lengths alone.
fn is_equal(shown: &[u8], key: &[u8]) -> bool {
    let mut difference = shown.len() ^ key.len();
    for (index, &byte) in key.iter().enumerate() {
        let other = shown.get(index).copied().unwrap_or_default();
        difference |= usize::from(black_box(byte ^ other));
    }
    black_box(difference) == 0
}

/// A host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|&(name, value)| {
            let value = HeaderValue::from_str(value).expect("test values are sound");
            (header::HeaderName::from_static(name), value)
        });
        pairs.collect()
    }

    #[test]
    fn hosts_are_addresses_or_named() {
        let options = ServerOptions { hosts: vec!["box.lan".to_owned()], ..Default::default() };
        let is_ok = |host: &str| check_host(&headers(&[("host", host)]), &options).is_ok();
        for host in
            ["127.0.0.1:8080", "127.0.0.1", "localhost:1", "[::1]:8080", "[::1]", "BOX.lan:80"]
        {
            assert!(is_ok(host), "{host}");
        }
        for host in
            ["evil.example:8080", "localhost.evil.example", "", "127.0.0.1.evil.example", "[::1].x"]
        {
            assert!(!is_ok(host), "{host}");
        }
    }

    #[test]
    fn origins_are_ours_or_named() {
        let cors_origins = vec!["https://app.example".to_owned()];
        let options = ServerOptions { cors_origins, ..Default::default() };
        let check = |origin: &str| {
            let headers = headers(&[("host", "127.0.0.1:8080"), ("origin", origin)]);
            check_origin(&headers, &options).ok()
        };
        assert_eq!(check("http://127.0.0.1:8080"), Some(false));
        assert_eq!(check("https://app.example"), Some(true));
        for origin in
            ["http://127.0.0.1:8081", "https://app.example.evil", "null", "http://evil.example"]
        {
            assert_eq!(check(origin), None, "{origin}");
        }
        let none = headers(&[("host", "127.0.0.1:8080")]);
        assert_eq!(check_origin(&none, &options), Ok(false));
    }

    #[test]
    fn keys_are_compared_whole() {
        let api_keys = vec!["first".to_owned(), "second key".to_owned()];
        let options = ServerOptions { api_keys, ..Default::default() };
        let check = |name, value: &str| check_key(&headers(&[(name, value)]), &options).ok();
        assert_eq!(check("authorization", "Bearer first"), Some(0));
        assert_eq!(check("authorization", "bearer second key"), Some(1));
        assert_eq!(check("x-api-key", "first"), Some(0));
        for value in
            ["Bearer firs", "Bearer first1", "Bearer ", "Basic first", "first", "Bearer FIRST"]
        {
            assert_eq!(check("authorization", value), None, "{value}");
        }
        assert_eq!(check_key(&HeaderMap::new(), &ServerOptions::default()), Ok(0));
    }
}
