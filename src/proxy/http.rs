//! The life of one request: route, pick, checkout, send, respond; round the middle again where another try can help.

use super::{
    admission,
    body::Body,
    connect::ConnectError,
    h1, h2, header_maps,
    headers::{self, Origin},
    listener::Listener,
    pool::{Lease, Pool},
    record::Record,
    respond, retry,
    retry::Verdict,
    timer::Timer,
    waiting::{Waiting, past_deadline},
};
use crate::{
    backoff::Backoff,
    cluster::{
        Cluster, Endpoint, Snapshot,
        budget::Grant,
        endpoint::InFlight,
        health::{Choice, Outcome},
        table::State,
    },
    discovery,
    error::{Fault, ProxyError, Reason},
    registry::Protocol,
    route,
    telemetry::Telemetry,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, request};
use std::{
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// One worker's proxy: everything a request needs, none of it shared by a lock.
#[derive(Debug)]
pub struct Proxy {
    pub discovery: discovery::Handle,
    pub pool: Rc<Pool>,
    pub telemetry: Arc<Telemetry>,
}

/// Where a request came in, as its codec knows it.
pub struct Downstream<'a> {
    pub proxy: &'a Proxy,
    pub listener: &'a Rc<Listener>,
    pub origin: &'a Origin,
    pub timer: &'a mut Timer,
    pub interim: &'a dyn Interim,
}

/// Takes informational (1xx) responses on their way to the client.
pub trait Interim {
    fn send(&self, response: Response<()>);
}

/// A pooled connection that turns out to be dead is replaced by a fresh one at most this often per request. It is no retry:
/// the endpoint has seen nothing of the request, or may see it twice.
const MAX_FRESH: u32 = 2;
/// What is read of a response that is given up for another try, so that its connection can be used again.
const MAX_DISCARDED: usize = 64 * 1024;

/// Carries a request and gives its response, which is pillion's own if something went wrong, and the record of it, which
/// the codec ends when the body has been written.
pub async fn handle(request: Request<Body>, down: &mut Downstream<'_>) -> (Response<Body>, Record) {
    let mut record = Record::start(down, &request);
    let is_grpc = headers::is_grpc(request.headers());
    let response = match carry(request, is_grpc, down, &mut record).await {
        Ok(response) => response,
        Err(error) => {
            let response = respond::error(&error, is_grpc);
            record.failed(error);
            response
        }
    };
    record.responded(response.status());
    (response, record)
}

async fn carry(
    request: Request<Body>,
    is_grpc: bool,
    down: &mut Downstream<'_>,
    record: &mut Record,
) -> Result<Response<Body>, ProxyError> {
    if request.method() == Method::CONNECT {
        return Err(ProxyError::new(Reason::Unsupported, "CONNECT"));
    }
    let cluster = find_cluster(&request, down).await?;
    cluster.mark_used();
    record.routed(cluster.clone());
    let found = headers::Found::new(request.headers());
    let deadline = headers::deadline(request.headers(), &found, record.started())?;
    let delayed = admission::admit(&cluster, &request, deadline, record).await?;
    let (snapshot, begun) =
        ready_snapshot(&cluster, record.started(), down.proxy.discovery.first_answer(), deadline).await?;
    let (mut parts, body) = request.into_parts();
    headers::prepare_request(&mut parts, &found, down.origin);
    record.prepared(&parts);
    let service = &snapshot.settings.service;
    let mut waiting = Waiting::new(&mut *down.timer, service, begun, deadline);
    if delayed {
        waiting.delayed();
    }
    let (proxy, interim) = (down.proxy, down.interim);
    let mut journey = Journey { cluster: &cluster, snapshot: &snapshot, proxy, interim, is_grpc, parts, waiting };
    let response = journey.try_endpoints(body, record).await;
    header_maps::give(journey.parts.headers);
    let mut response = response?;
    headers::prepare_response(&mut response);
    Ok(response)
}

/// The service that the request asks for.
async fn find_cluster(request: &Request<Body>, down: &Downstream<'_>) -> Result<Arc<Cluster>, ProxyError> {
    let settings = down.listener.settings();
    let service = route::service(request, &settings.rule)?;
    match down.proxy.discovery.table().get(service) {
        Some(cluster) => Ok(cluster),
        // Boxed, like all that is large and rare here: a connection's memory is that of its whole future.
        None => Box::pin(down.proxy.discovery.follow(service)).await,
    }
}

/// The service's endpoints; on the first request for it, once its registry has answered. And since when the request's own
/// time counts: `started`, if it did not have to wait.
async fn ready_snapshot(
    cluster: &Cluster,
    started: Instant,
    first_answer: Duration,
    deadline: Option<Instant>,
) -> Result<(Arc<Snapshot>, Instant), ProxyError> {
    let (mut snapshot, mut begun) = (cluster.load(), started);
    if snapshot.state == State::Pending {
        snapshot = Box::pin(async {
            let answered = cluster.first_answer(first_answer);
            match deadline {
                None => Ok(answered.await),
                Some(deadline) => tokio::time::timeout_at(deadline, answered).await.map_err(|_| past_deadline()),
            }
        })
        .await?;
        begun = Instant::now();
    }
    match snapshot.state {
        State::Known => Ok((arc_swap::Guard::into_inner(snapshot), begun)),
        State::Unknown => {
            let detail = format!("no registry knows a service `{}`", cluster.name);
            Err(ProxyError::new(Reason::UnknownService, detail))
        }
        State::Pending => {
            let detail = format!("no registry has answered about `{}` yet; {first_answer:?} are allowed", cluster.name);
            Err(ProxyError::new(Reason::DiscoveryTimeout, detail))
        }
    }
}

/// A request on its way to an endpoint, once it is known which service it is for.
struct Journey<'j> {
    cluster: &'j Cluster,
    snapshot: &'j Snapshot,
    proxy: &'j Proxy,
    interim: &'j dyn Interim,
    is_grpc: bool,
    parts: request::Parts,
    waiting: Waiting<'j>,
}

impl Journey<'_> {
    /// Sends the request to one endpoint after another until there is a response for the caller, or another try cannot
    /// help or is not allowed.
    async fn try_endpoints(&mut self, mut body: Body, record: &mut Record) -> Result<Response<Body>, ProxyError> {
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let first = self.pick(&tried, record.started());
        let (mut endpoint, mut choice) = first.ok_or_else(|| no_endpoints(self.snapshot))?;
        let (mut fresh, mut replaced, mut retries) = (false, 0, 0);
        // Held while a retry waits and until it has ended.
        let mut grant = None;
        loop {
            record.attempt(InFlight::start(endpoint.clone(), choice));
            let sent = self.send_to(&endpoint, body, fresh).await;
            let failed = match self.classify(sent, &endpoint) {
                Ok(response) => {
                    record.answered(&response, self.is_grpc);
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            drop(grant.take());
            if failed.stale
                && replaced < MAX_FRESH
                && let Some(again) = failed.again
            {
                (fresh, replaced) = (true, replaced + 1);
                record.retried(failed.reason);
                body = again;
                continue;
            }
            match &failed.outcome {
                Ok(response) => record.answered(response, self.is_grpc),
                Err(error) if says_something(error.reason) => record.tell(Outcome::Failure),
                Err(_) => {}
            }
            tried.push(endpoint.clone());
            let next = Box::pin(self.next_try(&failed, &tried, retries, &mut grant)).await;
            let (Some(next), Some(again)) = (next, failed.again) else { return failed.outcome };
            if let Ok(response) = failed.outcome {
                discard(response);
            }
            record.retried(failed.reason);
            ((endpoint, choice), body, fresh, retries) = (next, again, false, retries + 1);
            self.parts.headers.insert(headers::X_PILLION_ATTEMPT, HeaderValue::from(retries + 1));
        }
    }

    /// What came of a try: a response for the caller, or a failure.
    fn classify(&self, sent: Result<Sent, SendFailure>, endpoint: &Endpoint) -> Result<Response<Body>, Box<Failed>> {
        let (method, retry) = (&self.parts.method, &self.snapshot.settings.service.retry);
        match sent {
            Ok(Sent { response, again }) => {
                let now = Instant::now();
                endpoint.live.observe(now - self.waiting.since(), now);
                match retry::judge(&response, self.is_grpc, method, retry) {
                    Verdict::Final => Ok(response),
                    Verdict::Again(after) => Err(Box::new(Failed {
                        outcome: Ok(response),
                        reason: Reason::UpstreamUnavailable,
                        again,
                        after,
                        possible: true,
                        stale: false,
                    })),
                }
            }
            Err(failure) => {
                let safe = retry::is_safe(&failure, method);
                if matches!(failure.error.reason, Reason::RequestTimeout | Reason::TryTimeout) {
                    // It takes at least this long, and others are to know.
                    let now = Instant::now();
                    endpoint.live.observe(now - self.waiting.since(), now);
                }
                Err(Box::new(Failed {
                    reason: failure.error.reason,
                    possible: safe && retry::is_wanted(failure.error.reason, retry),
                    stale: safe && failure.reused,
                    again: failure.body,
                    after: None,
                    outcome: Err(failure.error),
                }))
            }
        }
    }

    /// The endpoint for another try, once the time for it has come. `None`: there is to be none.
    async fn next_try(
        &self,
        failed: &Failed,
        tried: &[Arc<Endpoint>],
        retries: u32,
        grant: &mut Option<Grant>,
    ) -> Option<(Arc<Endpoint>, Choice)> {
        let retry = &self.snapshot.settings.service.retry;
        if !failed.possible || failed.again.is_none() || retries >= retry.attempts {
            return None;
        }
        // One that refused a stream may take the next, if there is no other.
        let refused = failed.reason == Reason::UpstreamRefused;
        let again = || tried.last().filter(|_| refused).map(|last| (last.clone(), Choice::Available));
        let next = self.pick(tried, Instant::now()).or_else(again)?;
        // Where nobody was reached, nobody has to be spared.
        if matches!(failed.reason, Reason::ConnectFailed | Reason::ConnectTimeout) {
            return Some(next);
        }
        let (share, floor) = (f64::from(retry.budget.percent) / 100.0, f64::from(retry.budget.per_second));
        let in_flight = self.cluster.metrics.in_flight.get();
        *grant = self.cluster.retries.take(share, floor, in_flight, Instant::now());
        if grant.is_none() {
            self.cluster.metrics.retries_denied.inc();
            return None;
        }
        let wait = failed.after.unwrap_or_else(|| Backoff::nth_wait(retry.backoff.base, retry.backoff.max, retries));
        if !self.waiting.allows(wait) {
            return None;
        }
        tokio::time::sleep(wait).await;
        Some(next)
    }

    /// An endpoint that was not tried yet, and how it comes to be chosen.
    fn pick(&self, tried: &[Arc<Endpoint>], now: Instant) -> Option<(Arc<Endpoint>, Choice)> {
        self.snapshot.pick(self.is_grpc, tried, now).map(|(endpoint, choice)| (endpoint.clone(), choice))
    }

    /// One try: a connection to the endpoint, and the exchange on it.
    async fn send_to(&mut self, endpoint: &Arc<Endpoint>, body: Body, fresh: bool) -> Result<Sent, SendFailure> {
        let wanted = self.upstream_protocol(endpoint);
        let checkout = self.proxy.pool.checkout(self.cluster, endpoint, &self.snapshot.settings, wanted, fresh);
        let lease = match self.waiting.in_time(checkout).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(error)) => return Err(SendFailure::before(connect_error(endpoint, &error), body)),
            Err(error) => return Err(SendFailure::before(error, body)),
        };
        self.waiting.shorten(&mut self.parts.headers);
        self.waiting.begin_try();
        let keep = self.snapshot.settings.service.retry.buffer;
        match lease {
            Lease::H1(lease) => {
                let reused = lease.is_reused();
                let sent = h1::send(lease, &self.parts, body, keep, &mut self.waiting, self.interim).await;
                sent.map_err(|failure| SendFailure { reused, ..failure })
            }
            Lease::H2(lease) => h2::send(lease, &self.parts, body, keep, &mut self.waiting, self.interim).await,
        }
    }

    /// What to speak to the endpoint: what the config says, what the registry says, what the request needs. `None`: what
    /// ALPN settles.
    fn upstream_protocol(&self, endpoint: &Endpoint) -> Option<Protocol> {
        let service = &self.snapshot.settings.service;
        let tls = service.tls.is_some() || endpoint.instance.tls == Some(true);
        service.protocol.or(endpoint.instance.protocol).or_else(|| {
            if self.is_grpc {
                Some(Protocol::Http2)
            } else if tls && !headers::is_upgrade(&self.parts.headers) {
                None
            } else {
                Some(Protocol::Http1)
            }
        })
    }
}

fn no_endpoints(snapshot: &Snapshot) -> ProxyError {
    let detail = match snapshot.endpoints.len() {
        0 => "the service has no endpoints".to_owned(),
        count => format!("none of the service's {count} endpoints can take requests"),
    };
    ProxyError::new(Reason::NoEndpoints, detail)
}

/// Whether a try that failed for this reason says something about its endpoint.
fn says_something(reason: Reason) -> bool {
    // While it is sent, a request may just as well stall because its caller does.
    reason.fault() == Fault::Upstream && reason != Reason::IdleTimeout
}

fn connect_error(endpoint: &Endpoint, error: &ConnectError) -> ProxyError {
    ProxyError::new(error.reason(), format!("{}: {error}", endpoint.instance.address))
}

/// Reads what is at hand of a response that nobody gets. Its connection is then free for others, or closed.
fn discard(response: Response<Body>) {
    let mut body = response.into_body();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut read = 0;
    while let Poll::Ready(Some(Ok(frame))) = body.poll_next(&mut cx)
        && read < MAX_DISCARDED
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A try that may be followed by another.
struct Failed {
    /// What the caller gets if it is not.
    outcome: Result<Response<Body>, ProxyError>,
    reason: Reason,
    /// The request's body from its start, if it is still at hand.
    again: Option<Body>,
    /// Not before this time is over, the upstream said.
    after: Option<Duration>,
    /// Whether another try is safe, and wanted by the config.
    possible: bool,
    /// Whether a pooled connection was found dead, which says nothing about its endpoint.
    stale: bool,
}

/// A try that gave a response.
#[derive(Debug)]
pub struct Sent {
    pub response: Response<Body>,
    /// The request's body from its start, if all of it was sent and kept.
    pub again: Option<Body>,
}

/// A try that gave no response.
#[derive(Debug)]
pub struct SendFailure {
    pub error: ProxyError,
    /// Whether any byte of the request was written.
    pub wrote: bool,
    /// Whether the connection had served before, so that it may have been closed in the meantime.
    pub reused: bool,
    /// The body from its start, if it is still at hand.
    pub body: Option<Body>,
}

impl SendFailure {
    /// One that failed before the body was touched.
    pub fn before(error: ProxyError, body: Body) -> Self {
        Self { error, wrote: false, reused: false, body: Some(body) }
    }
}
