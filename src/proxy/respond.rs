//! The one place where an error becomes a response.

use super::{body::Body, headers::GRPC_STATUS};
use crate::error::ProxyError;
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

const X_PILLION_ERROR: HeaderName = HeaderName::from_static("x-pillion-error");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A short plain-text answer with the reason in `x-pillion-error`; for gRPC a trailers-only response.
pub fn error(error: &ProxyError, is_grpc: bool) -> Response<Body> {
    let status = if is_grpc { Status::Grpc(error.reason.grpc_status()) } else { Status::Http(error.reason.status()) };
    with_status(error, status)
}

/// The status of an answer: that of HTTP, or that of a gRPC call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Http(StatusCode),
    Grpc(u8),
}

/// As [`error`], with another status than the reason's own.
pub fn with_status(error: &ProxyError, status: Status) -> Response<Body> {
    let text = format!("pillion: {error}\n");
    let mut response = match status {
        Status::Grpc(status) => {
            let mut response = Response::new(Body::Empty);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
            if let Ok(message) = HeaderValue::from_str(&percent_encode(text.trim_end())) {
                response.headers_mut().insert(GRPC_MESSAGE, message);
            }
            response
        }
        Status::Http(status) => {
            let mut response = Response::new(Body::Full(Bytes::from(text)));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            response
        }
    };
    response.headers_mut().insert(X_PILLION_ERROR, HeaderValue::from_static(error.reason.as_str()));
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.get()));
    }
    response
}

/// As the gRPC protocol wants `grpc-message`: printable ASCII as it is, other bytes and `%` as `%XX`.
fn percent_encode(text: &str) -> String {
    const REST: percent_encoding::AsciiSet = percent_encoding::CONTROLS.add(b'%');
    percent_encoding::utf8_percent_encode(text, &REST).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn http_callers_get_a_status_and_a_reason() {
        let response = error(&ProxyError::new(Reason::NoEndpoints, "none"), false);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-pillion-error"]),
            (503, &HeaderValue::from_static("no_endpoints"))
        );
    }

    #[test]
    fn who_is_too_fast_is_told_when_to_come_again() {
        let limited = || ProxyError::new(Reason::RateLimited, "").retry_after(std::time::Duration::from_millis(1500));
        let response = error(&limited(), false);
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &HeaderValue::from(2)));
        assert_eq!(error(&limited(), true).headers()["grpc-status"], "8");
    }

    #[test]
    fn grpc_callers_get_trailers_only() {
        let response = error(&ProxyError::new(Reason::RequestTimeout, "100 % ä"), true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "pillion: request_timeout: 100 %25 %C3%A4");
        assert!(matches!(response.body(), Body::Empty));
    }
}
