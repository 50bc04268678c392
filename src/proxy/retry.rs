//! Whether a try that failed is followed by another one, and when.

use crate::{
    config::{self, RetryOn},
    error::{Reason, Retry},
    proxy::{body::Body, headers::GRPC_STATUS, journey::SendFailure},
};
use http::{
    HeaderMap, HeaderName, Method, Response, StatusCode,
    header::{HeaderValue, RETRY_AFTER},
};
use std::time::{Duration, SystemTime};

/// How a gRPC server says when to come again, or with a negative number not to. (gRFC A6, "Client Retries".)
const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const UNAVAILABLE: &str = "14";

/// Nobody waits for longer, and no clock can be asked to add up what a header may say.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What a response says about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the caller.
    Final,
    /// Another endpoint may do better, but not before this time, where the upstream gave one.
    Again(Option<Duration>),
}

/// Judges a response by its head.
pub fn judge(response: &Response<Body>, is_grpc: bool, method: &Method, retry: &config::Retry) -> Verdict {
    let headers = response.headers();
    if is_grpc {
        if !is_grpc_unavailable(response) || !retry.on.contains(&RetryOn::GrpcUnavailable) {
            return Verdict::Final;
        }
        return match headers.get(GRPC_RETRY_PUSHBACK) {
            None => Verdict::Again(None),
            Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
                Some(millis) => Verdict::Again(Some(Duration::from_millis(millis).min(LONGEST))),
                // Negative, or not a number: "do not retry".
                None => Verdict::Final,
            },
        };
    }
    if is_gateway_error(response) && method.is_idempotent() && retry.on.contains(&RetryOn::GatewayError) {
        return Verdict::Again(retry_after(headers));
    }
    Verdict::Final
}

/// Whether a response says that its service cannot be reached, or cannot serve now.
pub fn is_gateway_error(response: &Response<Body>) -> bool {
    matches!(response.status(), StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// The same of a response to gRPC, by its head. A response that has begun cannot be taken back.
pub fn is_grpc_unavailable(response: &Response<Body>) -> bool {
    response.headers().get(GRPC_STATUS).is_some_and(|status| status == UNAVAILABLE)
}

/// Whether a request whose try gave no response can be sent again without being executed twice.
pub fn is_safe(failure: &SendFailure, method: &Method) -> bool {
    match failure.error.reason.retry() {
        Retry::Never => false,
        Retry::Always => true,
        Retry::IfIdempotent => !failure.wrote || method.is_idempotent(),
    }
}

/// Whether the config wants another try after this.
pub fn is_wanted(reason: Reason, retry: &config::Retry) -> bool {
    retry.on.contains(&match reason {
        Reason::ConnectFailed | Reason::ConnectTimeout => RetryOn::ConnectFailure,
        Reason::UpstreamRefused => RetryOn::RefusedStream,
        _ => RetryOn::Reset,
    })
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER).map(HeaderValue::to_str)?.ok()?.trim();
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(after.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn judged(status: u16, fields: &[(&str, &str)], is_grpc: bool, method: Method) -> Verdict {
        let builder = Response::builder().status(status);
        let builder = fields.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        judge(&builder.body(Body::Empty).unwrap(), is_grpc, &method, &config::Retry::default())
    }

    #[test]
    fn gateway_errors_are_tried_again_for_idempotent_methods() {
        for (status, method, again) in [
            (503, Method::GET, true),
            (502, Method::PUT, true),
            (504, Method::DELETE, true),
            (503, Method::POST, false),
            (500, Method::GET, false),
            (429, Method::GET, false),
            (200, Method::GET, false),
        ] {
            assert_eq!(judged(status, &[], false, method.clone()) != Verdict::Final, again, "{method} {status}");
        }
    }

    #[test]
    fn grpc_unavailable_is_tried_again_unless_the_server_says_no() {
        let call = |fields: &[(&str, &str)]| judged(200, fields, true, Method::POST);
        let status = ("grpc-status", "14");
        let pushback = |millis| call(&[status, ("grpc-retry-pushback-ms", millis)]);
        assert_eq!(call(&[status]), Verdict::Again(None));
        assert_eq!(pushback("250"), Verdict::Again(Some(Duration::from_millis(250))));
        assert_eq!((pushback("-1"), pushback("soon")), (Verdict::Final, Verdict::Final));
        assert_eq!(call(&[("grpc-status", "13")]), Verdict::Final);
        assert_eq!(call(&[]), Verdict::Final, "a message follows");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after =
            |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]));
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after(&httpdate::fmt_http_date(UNIX_EPOCH)), Some(Duration::ZERO), "past is now");
        let later = after(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60))).unwrap();
        assert!((58..=60).contains(&later.as_secs()), "{later:?}");
        assert_eq!(after("soon"), None);
        assert_eq!(after(&u64::MAX.to_string()), Some(LONGEST));
        assert_eq!(after("18446744073709551616"), None, "no number of seconds");
    }
}
