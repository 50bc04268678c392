//! Why a request was not simply carried: whose fault it was, whether another try can help, and what the caller is told.

use http::StatusCode;
use std::{borrow::Cow, error::Error, num::NonZeroU32, time::Duration};

/// Who would have to change something for the error to go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The one that called us.
    Downstream,
    /// The one that we called.
    Upstream,
    /// pillion or its configuration.
    Internal,
}

/// Whether the same request may be tried once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// Nothing of the request reached an application: any request may be tried again.
    Always,
    /// It may have been executed: only idempotent requests, and only those whose body is still at hand.
    IfIdempotent,
}

/// Every reason there is, as a metric label, an access-log flag, and the `x-pillion-error` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request cannot be parsed, or breaks a rule of HTTP.
    BadRequest,
    /// Two parsers could read the request differently.
    AmbiguousRequest,
    HeadTooLarge,
    HeadTimeout,
    /// `CONNECT` where the listener takes none, or a transfer coding other than `chunked`.
    Unsupported,
    /// The caller went away, or broke off its request's body.
    DownstreamClosed,
    /// Nobody knows a service of this name.
    UnknownService,
    /// The service is known and has no endpoint.
    NoEndpoints,
    /// No registry answered about the service in time.
    DiscoveryTimeout,
    /// `discovery.max_services` are followed already.
    TooManyServices,
    ConnectFailed,
    ConnectTimeout,
    /// The upstream's connection ended before its response.
    UpstreamClosed,
    /// The upstream's response cannot be parsed, or breaks a rule of HTTP.
    UpstreamProtocol,
    /// The upstream refused the HTTP/2 stream before it looked at it.
    UpstreamRefused,
    /// The upstream's connection ended in the middle of its response.
    UpstreamTruncated,
    /// No response within `timeouts.request`.
    RequestTimeout,
    /// One try took longer than `retry.per_try_timeout`.
    TryTimeout,
    /// The upstream answered 502, 503, 504 or gRPC UNAVAILABLE. Never an error of our own: a reason for another try, or for
    /// a fallback.
    UpstreamUnavailable,
    /// No byte moved for `timeouts.idle`.
    IdleTimeout,
    /// The exchange took longer than `timeouts.stream`.
    StreamTimeout,
    /// The time that the caller gave its request (`grpc-timeout`, `x-request-timeout`) is over.
    DeadlineExceeded,
    /// pillion is stopping.
    ShuttingDown,
    /// `limits.requests` of the service are in flight, or as many as it can work on at one time.
    Overloaded,
    /// `limits.connections` to the service are open.
    ConnectionLimit,
    /// More requests per second than `limits.rate` allows.
    RateLimited,
    /// The config asks for faults (`faults.abort`), with a status of its own.
    FaultInjected,
    /// The routes of one service after another hand the request on.
    RouteLoop,
    /// The connection's endpoint has left the service, and `tcp.when_gone` says to close it.
    EndpointGone,
    /// A listener with `transparent` got a connection that would come back to pillion.
    Loop,
    /// Where the tunnel is to go is no service, and the listener lets none go there.
    DestinationRefused,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 31] = [
        Self::BadRequest,
        Self::AmbiguousRequest,
        Self::HeadTooLarge,
        Self::HeadTimeout,
        Self::Unsupported,
        Self::DownstreamClosed,
        Self::UnknownService,
        Self::NoEndpoints,
        Self::DiscoveryTimeout,
        Self::TooManyServices,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::UpstreamClosed,
        Self::UpstreamProtocol,
        Self::UpstreamRefused,
        Self::UpstreamTruncated,
        Self::RequestTimeout,
        Self::TryTimeout,
        Self::UpstreamUnavailable,
        Self::IdleTimeout,
        Self::StreamTimeout,
        Self::DeadlineExceeded,
        Self::ShuttingDown,
        Self::Overloaded,
        Self::ConnectionLimit,
        Self::RateLimited,
        Self::FaultInjected,
        Self::RouteLoop,
        Self::EndpointGone,
        Self::Loop,
        Self::DestinationRefused,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::AmbiguousRequest => "ambiguous_request",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::Unsupported => "unsupported",
            Self::DownstreamClosed => "downstream_closed",
            Self::UnknownService => "unknown_service",
            Self::NoEndpoints => "no_endpoints",
            Self::DiscoveryTimeout => "discovery_timeout",
            Self::TooManyServices => "too_many_services",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::UpstreamRefused => "upstream_refused",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::RequestTimeout => "request_timeout",
            Self::TryTimeout => "try_timeout",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::IdleTimeout => "idle_timeout",
            Self::StreamTimeout => "stream_timeout",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::ShuttingDown => "shutting_down",
            Self::Overloaded => "overloaded",
            Self::ConnectionLimit => "connection_limit",
            Self::RateLimited => "rate_limited",
            Self::FaultInjected => "fault_injected",
            Self::RouteLoop => "route_loop",
            Self::EndpointGone => "endpoint_gone",
            Self::Loop => "loop",
            Self::DestinationRefused => "destination_refused",
        }
    }

    pub const fn fault(self) -> Fault {
        match self {
            Self::BadRequest
            | Self::AmbiguousRequest
            | Self::HeadTooLarge
            | Self::HeadTimeout
            | Self::Unsupported
            | Self::DownstreamClosed
            | Self::UnknownService
            | Self::DeadlineExceeded
            | Self::RateLimited
            | Self::DestinationRefused => Fault::Downstream,
            Self::NoEndpoints
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamClosed
            | Self::UpstreamProtocol
            | Self::UpstreamRefused
            | Self::UpstreamTruncated
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::UpstreamUnavailable
            | Self::IdleTimeout
            | Self::StreamTimeout
            | Self::EndpointGone => Fault::Upstream,
            Self::DiscoveryTimeout
            | Self::TooManyServices
            | Self::ShuttingDown
            | Self::Overloaded
            | Self::ConnectionLimit
            | Self::FaultInjected
            | Self::RouteLoop
            | Self::Loop => Fault::Internal,
        }
    }

    pub const fn retry(self) -> Retry {
        match self {
            Self::ConnectFailed | Self::ConnectTimeout | Self::UpstreamRefused => Retry::Always,
            Self::UpstreamClosed | Self::TryTimeout | Self::UpstreamUnavailable => Retry::IfIdempotent,
            _ => Retry::Never,
        }
    }

    /// Whether an application may have executed the request that ended so.
    pub const fn may_have_run(self) -> bool {
        matches!(
            self,
            Self::UpstreamClosed
                | Self::UpstreamProtocol
                | Self::UpstreamTruncated
                | Self::UpstreamUnavailable
                | Self::RequestTimeout
                | Self::DeadlineExceeded
                | Self::TryTimeout
                | Self::IdleTimeout
                | Self::StreamTimeout
        )
    }

    /// What an HTTP caller gets.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::AmbiguousRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            // Never sent: there is nobody to read it. It stands in the access log, as nginx writes it there.
            Self::DownstreamClosed => match StatusCode::from_u16(499) {
                Ok(status) => status,
                Err(_) => StatusCode::BAD_REQUEST,
            },
            Self::UnknownService => StatusCode::NOT_FOUND,
            Self::DestinationRefused => StatusCode::FORBIDDEN,
            Self::NoEndpoints
            | Self::UpstreamUnavailable
            | Self::DiscoveryTimeout
            | Self::TooManyServices
            | Self::ShuttingDown
            | Self::Overloaded
            | Self::ConnectionLimit
            | Self::FaultInjected => StatusCode::SERVICE_UNAVAILABLE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::RouteLoop | Self::Loop => StatusCode::LOOP_DETECTED,
            Self::ConnectFailed
            | Self::UpstreamClosed
            | Self::UpstreamProtocol
            | Self::UpstreamRefused
            | Self::UpstreamTruncated
            | Self::EndpointGone => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::IdleTimeout
            | Self::StreamTimeout
            | Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What a gRPC caller gets: the code that makes its own retries do the right thing.
    /// (Numbers: grpc.io, "Status codes and their use in gRPC".)
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::BadRequest | Self::AmbiguousRequest | Self::HeadTooLarge => 13, // INTERNAL, as gRPC maps HTTP 400
            Self::HeadTimeout
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::StreamTimeout
            | Self::DeadlineExceeded => 4, // DEADLINE_EXCEEDED
            Self::DownstreamClosed => 1,                                          // CANCELLED
            Self::UnknownService | Self::Unsupported => 12, // UNIMPLEMENTED, as gRPC maps HTTP 404
            Self::UpstreamProtocol | Self::RouteLoop | Self::Loop => 13,
            Self::RateLimited => 8,        // RESOURCE_EXHAUSTED
            Self::DestinationRefused => 7, // PERMISSION_DENIED, as gRPC maps HTTP 403
            _ => 14,                       // UNAVAILABLE
        }
    }
}

/// An error on the way of one request: the reason, and what exactly happened for the one who reads the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct ProxyError {
    pub reason: Reason,
    pub detail: Cow<'static, str>,
    /// When to come again, in seconds, where that is known.
    pub retry_after: Option<NonZeroU32>,
}

impl ProxyError {
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into(), retry_after: None }
    }

    /// The same request has a chance once `wait` is over.
    pub fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
        Self { retry_after: NonZeroU32::new(seconds), ..self }
    }
}

/// The innermost error: "connection refused" rather than "transport error".
pub fn root_cause(error: &dyn Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_once_and_in_order() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number, "{}", reason.as_str());
        }
    }

    #[test]
    fn when_to_come_again_is_told_in_whole_seconds() {
        let told = |wait| {
            ProxyError::new(Reason::RateLimited, "").retry_after(Duration::from_millis(wait)).retry_after.unwrap().get()
        };
        assert_eq!([told(0), told(1), told(1000), told(1001), told(59_500)], [1, 1, 1, 2, 60]);
    }

    #[test]
    fn what_is_always_retried_was_not_executed() {
        let wrong = Reason::ALL.into_iter().find(|reason| reason.retry() == Retry::Always && reason.may_have_run());
        assert_eq!(wrong, None);
        let doubtful = Reason::ALL.into_iter().filter(|reason| reason.retry() == Retry::IfIdempotent);
        assert_eq!(doubtful.map(Reason::may_have_run).filter(|may| !may).count(), 0);
    }

    #[test]
    fn only_what_surely_was_not_executed_is_always_retried() {
        let always: Vec<_> = Reason::ALL.into_iter().filter(|r| r.retry() == Retry::Always).collect();
        assert_eq!(always, [Reason::ConnectFailed, Reason::ConnectTimeout, Reason::UpstreamRefused]);
    }
}
