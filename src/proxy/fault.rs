//! Faults that the config asks for, so that one can see how callers bear them.

use super::{
    body::Body,
    record::Record,
    respond::{self, Status},
    waiting::Waiting,
};
use crate::{
    config::{Abort, FaultInjection, Percent},
    error::{ProxyError, Reason},
    telemetry::labels::InjectedFault,
};
use http::{HeaderMap, Response, StatusCode};

/// Puts in what is drawn for this request. A response is the whole answer.
pub async fn inject(
    faults: &FaultInjection,
    headers: &HeaderMap,
    is_grpc: bool,
    waiting: &mut Waiting<'_>,
    record: &mut Record,
) -> Result<Option<Response<Body>>, ProxyError> {
    if let Some(delay) = &faults.delay
        && hits(delay.percent, delay.header.as_deref(), delay.value.as_deref(), headers)
    {
        record.injected(InjectedFault::Delay);
        waiting.in_time(tokio::time::sleep(delay.duration)).await?;
        waiting.delayed();
    }
    if let Some(abort) = &faults.abort
        && hits(abort.percent, abort.header.as_deref(), abort.value.as_deref(), headers)
    {
        record.injected(InjectedFault::Abort);
        let error = ProxyError::new(Reason::FaultInjected, "the config asks for this (faults.abort)");
        let response = respond::with_status(&error, status(abort, is_grpc));
        record.failed(error);
        return Ok(Some(response));
    }
    Ok(None)
}

/// Whether a fault is for this request, and its lot falls on it.
fn hits(percent: Percent, header: Option<&str>, value: Option<&str>, headers: &HeaderMap) -> bool {
    let is_meant = header.is_none_or(|header| match value {
        None => headers.contains_key(header),
        Some(value) => headers.get_all(header).iter().any(|there| there == value),
    });
    is_meant && fastrand::f64() * 100.0 < percent.0
}

fn status(abort: &Abort, is_grpc: bool) -> Status {
    if is_grpc {
        return Status::Grpc(abort.grpc_status.unwrap_or_else(|| grpc_status(abort.status)));
    }
    // The config was checked.
    Status::Http(StatusCode::from_u16(abort.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
}

/// What gRPC libraries make of an answer that is not gRPC's. (grpc/grpc, doc/http-grpc-status-mapping.md)
fn grpc_status(status: u16) -> u8 {
    match status {
        400 => 13,                   // INTERNAL
        401 => 16,                   // UNAUTHENTICATED
        403 => 7,                    // PERMISSION_DENIED
        404 => 12,                   // UNIMPLEMENTED
        429 | 502 | 503 | 504 => 14, // UNAVAILABLE
        _ => 2,                      // UNKNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn share(percent: f64, header: Option<&str>, value: Option<&str>, headers: &HeaderMap) -> f64 {
        const DRAWN: u32 = 200_000;
        let hit = (0..DRAWN).filter(|_| hits(Percent(percent), header, value, headers)).count();
        hit as f64 * 100.0 / f64::from(DRAWN)
    }

    #[test]
    fn the_lot_falls_as_often_as_the_config_says() {
        let headers = HeaderMap::new();
        for (percent, least, most) in [(0.0, 0.0, 0.0), (0.1, 0.05, 0.15), (25.0, 24.0, 26.0), (100.0, 100.0, 100.0)] {
            let share = share(percent, None, None, &headers);
            assert!((least..=most).contains(&share), "{share} for {percent}");
        }
    }

    #[test]
    fn only_requests_with_the_header_and_its_value_are_meant() {
        let mut headers = HeaderMap::new();
        headers.append("x-fault", HeaderValue::from_static("slow"));
        headers.append("x-fault", HeaderValue::from_static("abort"));
        for (header, value, meant) in [
            ("X-Fault", None, true),
            ("x-fault", Some("abort"), true),
            ("x-fault", Some("other"), false),
            ("x-other", None, false),
        ] {
            assert_eq!(share(100.0, Some(header), value, &headers) > 0.0, meant, "{header} {value:?}");
        }
    }

    #[test]
    fn grpc_callers_get_what_is_configured_or_what_fits_the_status() {
        let abort =
            |status, grpc_status| Abort { percent: Percent(1.0), status, grpc_status, header: None, value: None };
        assert_eq!(status(&abort(503, Some(8)), true), Status::Grpc(8));
        for (http, grpc) in [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (500, 2)] {
            assert_eq!(status(&abort(http, None), true), Status::Grpc(grpc));
            assert_eq!(status(&abort(http, Some(8)), false), Status::Http(StatusCode::from_u16(http).unwrap()));
        }
    }
}
