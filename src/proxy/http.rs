//! The life of one request: route, pick, checkout, send, respond; round the middle again where another try can help.

use super::{
    body::Body,
    connect::ConnectError,
    h1, h2, header_maps,
    headers::{self, Origin},
    listener::Listener,
    pool::{Lease, Pool},
    record::Record,
    respond,
    timer::Timer,
};
use crate::{
    cluster::{Cluster, Endpoint, Snapshot, endpoint::InFlight, table::State},
    config::Timeouts,
    discovery,
    error::{ProxyError, Reason, Retry},
    registry::Protocol,
    route,
    telemetry::Telemetry,
};
use http::{Method, Request, Response, request};
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

/// A request is tried at most this often. (Retries beyond dead connections come with their policy.)
const MAX_TRIES: u32 = 3;

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
    let snapshot = ready_snapshot(&cluster, down.proxy.discovery.first_answer(), deadline).await?;
    let (mut parts, body) = request.into_parts();
    headers::prepare_request(&mut parts, &found, down.origin);
    record.prepared(&parts);
    let timeouts = &snapshot.settings.service.timeouts;
    let waiting = Waiting::new(&mut *down.timer, timeouts, record.started(), deadline);
    let (proxy, interim) = (down.proxy, down.interim);
    let mut journey = Journey { cluster: &cluster, snapshot: &snapshot, proxy, interim, is_grpc, parts, waiting };
    let response = journey.try_endpoints(body, record).await;
    header_maps::give(journey.parts.headers);
    let mut response = response?;
    headers::prepare_response(response.headers_mut());
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

/// The service's endpoints; on the first request for it, once its registry has answered.
async fn ready_snapshot(
    cluster: &Cluster,
    first_answer: Duration,
    deadline: Option<Instant>,
) -> Result<Arc<Snapshot>, ProxyError> {
    let mut snapshot = cluster.load();
    if snapshot.state == State::Pending {
        snapshot = Box::pin(async {
            let answered = cluster.first_answer(first_answer);
            match deadline {
                None => Ok(answered.await),
                Some(deadline) => tokio::time::timeout_at(deadline, answered).await.map_err(|_| past_deadline()),
            }
        })
        .await?;
    }
    match snapshot.state {
        State::Known => Ok(arc_swap::Guard::into_inner(snapshot)),
        State::Unknown => {
            let detail = format!("no registry knows a service `{}`", cluster.name);
            Err(ProxyError::new(Reason::UnknownService, detail))
        }
        State::Pending => {
            let detail = format!("no registry answered about `{}` in {first_answer:?}", cluster.name);
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
    /// Sends the request to one endpoint after another until a response begins, or another try cannot help.
    async fn try_endpoints(&mut self, mut body: Body, record: &mut Record) -> Result<Response<Body>, ProxyError> {
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut endpoint = self.pick(&tried, record.started()).ok_or_else(|| no_endpoints(self.snapshot))?;
        let mut fresh = false;
        loop {
            record.attempt(InFlight::start(endpoint.clone()));
            let started = if record.attempts() == 1 { record.started() } else { Instant::now() };
            let failure = match self.send_to(&endpoint, body, fresh).await {
                Ok(response) => {
                    let now = Instant::now();
                    endpoint.live.observe(now - started, now);
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            let may_retry = record.attempts() < MAX_TRIES && failure.may_retry(&self.parts.method);
            // A pooled connection that died says nothing about its endpoint, which gets one more chance on a fresh one.
            fresh = failure.reused;
            let next = if fresh {
                Some(endpoint.clone())
            } else {
                endpoint.live.failed();
                tried.push(endpoint.clone());
                // One that refused a stream may take the next, if there is no other.
                let again = (failure.error.reason == Reason::UpstreamRefused).then_some(endpoint);
                self.pick(&tried, Instant::now()).or(again)
            };
            match (failure.body, next) {
                (Some(rest), Some(next)) if may_retry => {
                    tracing::debug!(next = %next.instance.address, error = %failure.error, "trying again");
                    record.retried(failure.error.reason);
                    (body, endpoint) = (rest, next);
                }
                _ => return Err(failure.error),
            }
        }
    }

    /// An endpoint that was not tried yet.
    fn pick(&self, tried: &[Arc<Endpoint>], now: Instant) -> Option<Arc<Endpoint>> {
        let picked = self.snapshot.pick(self.is_grpc, tried, now)?;
        let fresh = !tried.iter().any(|tried| Arc::ptr_eq(&tried.live, &picked.live));
        fresh.then(|| picked.clone())
    }

    /// One try: a connection to the endpoint, and the exchange on it.
    async fn send_to(
        &mut self,
        endpoint: &Arc<Endpoint>,
        body: Body,
        fresh: bool,
    ) -> Result<Response<Body>, SendFailure> {
        let wanted = self.upstream_protocol(endpoint);
        let checkout = self.proxy.pool.checkout(self.cluster, endpoint, &self.snapshot.settings, wanted, fresh);
        let lease = match self.waiting.in_time(checkout).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(error)) => return Err(SendFailure::before(connect_error(endpoint, &error), body)),
            Err(error) => return Err(SendFailure::before(error, body)),
        };
        self.waiting.shorten(&mut self.parts.headers);
        match lease {
            Lease::H1(lease) => {
                let reused = lease.is_reused();
                let sent = h1::send(lease, &self.parts, body, &mut self.waiting, self.interim).await;
                sent.map_err(|failure| SendFailure { reused, ..failure })
            }
            Lease::H2(lease) => h2::send(lease, &self.parts, body, &mut self.waiting, self.interim).await,
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
        0 => "the service has no endpoints".into(),
        count => format!("none of the service's {count} endpoints can take requests").into(),
    };
    ProxyError { reason: Reason::NoEndpoints, detail }
}

fn past_deadline() -> ProxyError {
    ProxyError::new(Reason::RequestTimeout, "the caller's deadline is past")
}

fn connect_error(endpoint: &Endpoint, error: &ConnectError) -> ProxyError {
    ProxyError::new(error.reason(), format!("{}: {error}", endpoint.instance.address))
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

    fn may_retry(&self, method: &http::Method) -> bool {
        match self.error.reason.retry() {
            Retry::Never => false,
            Retry::Always => true,
            Retry::IfIdempotent => !self.wrote || method.is_idempotent(),
        }
    }
}

/// How long one request may take, over all its tries.
pub struct Waiting<'t> {
    timer: &'t mut Timer,
    /// From the end of the request to the start of the response.
    request: Duration,
    /// Without a byte of the request, while it is sent.
    idle: Duration,
    /// What the caller asked for.
    deadline: Option<Instant>,
    /// When it is over, as known so far.
    until: Option<Instant>,
    /// When the request came; until the first wait this is as good as now.
    begun: Option<Instant>,
    sent: bool,
    seen: u64,
    quiet: u32,
}

impl<'t> Waiting<'t> {
    /// The idle time is looked at this often per period, so that bytes that move cost nothing.
    const LOOKS: u32 = 4;

    pub fn new(timer: &'t mut Timer, timeouts: &Timeouts, begun: Instant, deadline: Option<Instant>) -> Self {
        timer.clear();
        Self {
            timer,
            request: timeouts.request,
            idle: timeouts.idle,
            deadline,
            until: deadline,
            begun: Some(begun),
            sent: false,
            seen: 0,
            quiet: 0,
        }
    }

    /// The whole request has left; from now on the response is waited for.
    pub fn request_sent(&mut self) {
        if !self.sent {
            self.sent = true;
            let until = self.begun.unwrap_or_else(Instant::now) + self.request;
            let until = self.deadline.map_or(until, |deadline| deadline.min(until));
            self.until = Some(until);
            self.timer.set(until);
        }
    }

    /// Ready with the error when time is up. `moved` counts what has been sent.
    pub fn poll_expired(&mut self, moved: u64, cx: &mut Context<'_>) -> Poll<ProxyError> {
        self.begun = None;
        if !self.sent && self.quiet == 0 && self.seen == 0 {
            self.next_look();
        }
        while self.timer.poll_expired(cx).is_ready() {
            let now = Instant::now();
            if self.until.is_some_and(|until| now >= until) {
                if self.until == self.deadline {
                    return Poll::Ready(past_deadline());
                }
                let detail = format!("no response in {:?}", self.request);
                return Poll::Ready(ProxyError::new(Reason::RequestTimeout, detail));
            }
            if self.sent {
                return Poll::Pending;
            }
            self.quiet = if moved == self.seen { self.quiet + 1 } else { 1 };
            self.seen = moved;
            if self.quiet > Self::LOOKS {
                let detail = format!("nothing of the request moved for {:?}", self.idle);
                return Poll::Ready(ProxyError::new(Reason::IdleTimeout, detail));
            }
            self.next_look();
        }
        Poll::Pending
    }

    fn next_look(&mut self) {
        self.quiet = self.quiet.max(1);
        let look = Instant::now() + self.idle / Self::LOOKS;
        self.timer.set(self.until.map_or(look, |until| until.min(look)));
    }

    /// What comes of `future`, unless the caller's deadline comes first.
    async fn in_time<F: Future>(&self, future: F) -> Result<F::Output, ProxyError> {
        match self.deadline {
            None => Ok(future.await),
            Some(deadline) => tokio::time::timeout_at(deadline, future).await.map_err(|_| past_deadline()),
        }
    }

    /// Passes the caller's deadline on, reduced by what has passed.
    fn shorten(&self, headers: &mut http::HeaderMap) {
        if let Some(deadline) = self.deadline {
            headers::put_deadline(headers, deadline);
        }
    }
}
