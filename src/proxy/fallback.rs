//! What a caller gets instead of an error: a fixed response, another service's, or the last good one.

use super::{
    body::Body,
    header_maps, headers,
    headers::X_PILLION_ATTEMPT,
    http::{Downstream, Proxy, carry_to},
    journey::discard,
    record::Record,
    retry,
};
use crate::{
    cluster::Cluster,
    config::{Fallback, FallbackOn, FixedResponse},
    error::{Fault, ProxyError, Reason},
    telemetry::labels::FallbackKind,
};
use http::{HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE, request};
use std::sync::Arc;
use tokio::time::Instant;

/// Says that an answer is not what the service itself answered, and what it is.
const X_PILLION_FALLBACK: HeaderName = HeaderName::from_static("x-pillion-fallback");

/// What came of a request.
type Outcome = Result<Response<Body>, ProxyError>;

/// A request for a service that has a fallback, once it is known what came of it.
pub struct Asked<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub fallback: &'a Fallback,
    pub is_grpc: bool,
    pub deadline: Option<Instant>,
    pub parts: request::Parts,
    /// Its body from its start, if it is still at hand.
    pub body: Option<Body>,
}

/// A request that calls for something else than what came of it.
pub struct Unsettled<'a> {
    asked: Asked<'a>,
    cause: Reason,
    outcome: Outcome,
}

impl<'a> Asked<'a> {
    /// Gives what came of the request, if that is what the caller gets. A good answer is kept for later, where that is
    /// wanted.
    pub fn accept(self, outcome: Outcome, proxy: &Proxy) -> Result<Outcome, Box<Unsettled<'a>>> {
        match self.cause(&outcome) {
            Some(cause) => Err(Box::new(Unsettled { asked: self, cause, outcome })),
            None => Ok(outcome.map(|response| self.keep(response, proxy))),
        }
    }

    /// Why something else is wanted in the place of what came of the request.
    fn cause(&self, outcome: &Outcome) -> Option<Reason> {
        let (on, reason) = match outcome {
            Err(error) if error.reason.fault() != Fault::Downstream => (FallbackOn::Error, error.reason),
            Ok(response)
                if retry::is_gateway_error(response) || self.is_grpc && retry::is_grpc_unavailable(response) =>
            {
                (FallbackOn::GatewayError, Reason::UpstreamUnavailable)
            }
            _ => return None,
        };
        self.fallback.on.contains(&on).then_some(reason)
    }

    /// It goes on as it is.
    fn keep(self, mut response: Response<Body>, proxy: &Proxy) -> Response<Body> {
        if let Some(limits) = &self.fallback.last_good {
            headers::prepare_response(&mut response);
            response = proxy.last_good.keep(self.cluster, limits, &self.parts, response);
        }
        header_maps::give(self.parts.headers);
        response
    }

    /// The answer that pillion has itself. None that a gRPC caller could read.
    fn own_answer(&self, proxy: &Proxy) -> Option<(FallbackKind, Response<Body>)> {
        if self.is_grpc {
            return None;
        }
        if let Some(response) = &self.fallback.response {
            return Some((FallbackKind::Response, fixed(response)));
        }
        let limits = self.fallback.last_good.as_ref()?;
        let response = proxy.last_good.find(self.cluster, limits, &self.parts)?;
        Some((FallbackKind::LastGood, response))
    }
}

impl Unsettled<'_> {
    /// What the caller gets: something else, if there is any, or what came of the request.
    pub async fn settle(self: Box<Self>, down: &mut Downstream<'_>, record: &mut Record) -> Outcome {
        if self.asked.fallback.service.is_some() {
            return self.ask_other(down, record).await;
        }
        let Self { asked, cause, outcome } = *self;
        let instead = asked.own_answer(down.proxy);
        header_maps::give(asked.parts.headers);
        let Some((kind, response)) = instead else { return outcome };
        record.fell_back(kind, cause);
        if let Ok(response) = outcome {
            discard(response);
        }
        Ok(marked(response, kind))
    }

    /// Lets another service answer, if the request can still be sent. No further: that service's own fallback does not count.
    async fn ask_other(self: Box<Self>, down: &mut Downstream<'_>, record: &mut Record) -> Outcome {
        let Self { asked, cause, outcome } = *self;
        let Asked { cluster, fallback, is_grpc, deadline, mut parts, body } = asked;
        let (Some(service), Some(body)) = (fallback.service.as_deref(), body) else { return outcome };
        // gRPC's UNAVAILABLE says that nothing was done.
        let refused = is_grpc && cause == Reason::UpstreamUnavailable;
        let unsafe_again = cause.may_have_run() && !refused && !parts.method.is_idempotent();
        // (Inherited from `defaults`, it may be the same.)
        if unsafe_again || *service == *cluster.name || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return outcome;
        }
        record.fell_back(FallbackKind::Service, cause);
        if let Ok(response) = outcome {
            discard(response);
        }
        parts.headers.remove(X_PILLION_ATTEMPT);
        match carry_to(service, parts, body, is_grpc, deadline, down, record).await {
            Ok(response) => Ok(marked(response, FallbackKind::Service)),
            Err(mut error) => {
                let cause = cause.as_str();
                error.detail = format!("{} (from the fallback `{service}`, after {cause})", error.detail).into();
                Err(error)
            }
        }
    }
}

fn marked(mut response: Response<Body>, kind: FallbackKind) -> Response<Body> {
    headers::prepare_response(&mut response);
    response.headers_mut().insert(X_PILLION_FALLBACK, HeaderValue::from_static(kind.as_str()));
    response
}

/// The config was checked, so nothing of it is left out.
pub fn fixed(config: &FixedResponse) -> Response<Body> {
    let body = if config.content.is_empty() { Body::Empty } else { Body::Full(config.content.clone()) };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(config.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    if !config.content.is_empty()
        && let Ok(content_type) = HeaderValue::from_str(&config.content_type)
    {
        headers.insert(CONTENT_TYPE, content_type);
    }
    for (name, value) in &config.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
    response
}
