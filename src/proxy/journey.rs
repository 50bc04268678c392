//! A request's way to an endpoint: pick, connection, exchange; and round again where another try can help.

use super::{
    body::Body,
    fault, h1, h2, headers,
    http::{Interim, Proxy},
    pool::Lease,
    record::Record,
    retry,
    retry::Verdict,
    waiting::Waiting,
};
use crate::{
    backoff::Backoff,
    cluster::{
        Cluster, Endpoint, Snapshot,
        balance::Ask,
        budget::Grant,
        connect::ConnectError,
        endpoint::InFlight,
        health::{Choice, Outcome},
    },
    config::{FaultInjection, Service},
    error::{Fault, ProxyError, Reason},
    registry::Protocol,
    telemetry::flags::Flag,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, Version, request};
use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// A pooled connection that turns out to be dead is replaced by a fresh one at most this often per request. It is no retry:
/// the endpoint has seen nothing of the request, or may see it twice.
const MAX_FRESH: u32 = 2;
/// What is read of a response that is given up for another try, so that its connection can be used again.
const MAX_DISCARDED: usize = 64 * 1024;

/// Whose request it is, among its extensions where its connection is to come from there. (Not in [`Destination`], because every
/// connection's memory has one of those, and few need this.)
#[derive(Debug, Clone, Copy)]
pub struct Client(pub IpAddr);

/// A request on its way to an endpoint, once it is known which service it is for.
pub struct Journey<'j> {
    pub to: Destination<'j>,
    pub interim: &'j dyn Interim,
    /// From its start. Gone while it is being sent, and for good once it cannot be sent again.
    pub body: Option<Body>,
    pub parts: request::Parts,
    pub waiting: Waiting<'j>,
}

/// What all tries of a request have in common.
#[derive(Clone, Copy)]
pub struct Destination<'j> {
    pub cluster: &'j Cluster,
    pub snapshot: &'j Snapshot,
    /// The service's settings, or those of the request's route.
    pub service: &'j Service,
    pub proxy: &'j Proxy,
    pub is_grpc: bool,
    pub ask: Ask,
}

impl Journey<'_> {
    /// Finds what the request asks of its endpoint. (On its own because a borrow of the request before it is in here would
    /// make every connection's future larger.)
    pub fn find_ask(&mut self, source: IpAddr) {
        let Destination { cluster, snapshot, is_grpc, .. } = self.to;
        self.to.ask = Ask {
            key: snapshot.key(&self.parts, source, cluster.metrics.in_flight.get()),
            only_once: !is_grpc && !self.parts.method.is_idempotent(),
            ..self.to.ask
        };
    }

    /// The request, and its body if it is still at hand.
    pub fn into_request(self) -> (request::Parts, Option<Body>) {
        (self.parts, self.body)
    }

    /// As [`Self::try_endpoints`], after the faults that are put in for testing.
    pub async fn try_with_faults(
        &mut self,
        faults: &FaultInjection,
        record: &mut Record,
    ) -> Result<Response<Body>, ProxyError> {
        let (headers, is_grpc) = (&self.parts.headers, self.to.is_grpc);
        match fault::inject(faults, headers, is_grpc, &mut self.waiting, record).await? {
            None => self.try_endpoints(record).await,
            Some(response) => Ok(response),
        }
    }

    /// Sends the request to one endpoint after another until there is a response for the caller, or another try cannot
    /// help or is not allowed.
    pub async fn try_endpoints(&mut self, record: &mut Record) -> Result<Response<Body>, ProxyError> {
        let budget = &self.to.service.retry.budget;
        self.to.cluster.retries.earn(budget.percent, self.to.cluster.metrics.in_flight.get());
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let first = self.to.pick(&tried, record.started());
        let (mut endpoint, mut choice) = first.ok_or_else(|| self.to.snapshot.no_endpoints(self.to.ask.within))?;
        let (mut fresh, mut replaced, mut retries) = (false, 0, 0);
        // Held while a retry waits and until it has ended.
        let mut grant = None;
        loop {
            if fresh {
                record.tried_afresh();
            } else {
                record.attempt(InFlight::start(endpoint.clone(), choice));
            }
            let tried_once = match self.hedge_after(retries) {
                None => self.send_once(&endpoint, fresh).await,
                Some(after) => Box::pin(self.send_hedged(&mut endpoint, fresh, after, &mut tried, record)).await,
            };
            let failed = match tried_once {
                Ok(Sent { response, again }) => {
                    record.answered(&response, self.to.is_grpc);
                    self.body = again;
                    return Ok(response);
                }
                Err(mut failed) => {
                    self.body = failed.again.take();
                    failed
                }
            };
            drop(grant.take());
            if failed.stale && replaced < MAX_FRESH && self.body.is_some() {
                (fresh, replaced) = (true, replaced + 1);
                record.retried(failed.reason);
                continue;
            }
            match &failed.outcome {
                Ok(response) => record.answered(response, self.to.is_grpc),
                Err(error) if says_something(error.reason) => record.tell(Outcome::Failure),
                Err(error) if error.reason == Reason::DeadlineExceeded => record.tell(Outcome::Silence),
                Err(_) => {}
            }
            tried.push(endpoint.clone());
            let next = Box::pin(self.next_try(&failed, &tried, retries, &mut grant, record)).await;
            let Some(next) = next else { return failed.outcome };
            if let Ok(response) = failed.outcome {
                discard(response);
            }
            record.retried(failed.reason);
            ((endpoint, choice), fresh, retries) = (next, false, retries + 1);
            self.parts.headers.insert(headers::X_PILLION_ATTEMPT, HeaderValue::from(tried.len() + 1));
        }
    }

    /// One try.
    async fn send_once(&mut self, endpoint: &Arc<Endpoint>, fresh: bool) -> Result<Sent, Box<Failed>> {
        let Self { to, interim, body, parts, waiting } = self;
        let sent = to.send(endpoint, parts, body, fresh, waiting, *interim).await;
        to.classify(sent, endpoint, &parts.method, waiting.since())
    }

    /// The endpoint for another try, once the time for it has come. `None`: there is to be none.
    async fn next_try(
        &self,
        failed: &Failed,
        tried: &[Arc<Endpoint>],
        retries: u32,
        grant: &mut Option<Grant>,
        record: &mut Record,
    ) -> Option<(Arc<Endpoint>, Choice)> {
        let retry = &self.to.service.retry;
        if !failed.possible || self.body.is_none() || retries >= retry.attempts {
            return None;
        }
        // One that refused a stream may take the next, if there is no other.
        let refused = failed.reason == Reason::UpstreamRefused;
        let again = || tried.last().filter(|_| refused).map(|last| (last.clone(), Choice::Available));
        let next = self.to.pick(tried, Instant::now()).or_else(again)?;
        // Where nobody was reached, nobody has to be spared.
        if matches!(failed.reason, Reason::ConnectFailed | Reason::ConnectTimeout) {
            return Some(next);
        }
        let backoff = Backoff::nth_wait(retry.backoff.base, retry.backoff.max, retries);
        // The upstream's wish is obeyed where there is time for it. Where there is not, it holds for its own endpoint alone,
        // which is spared for a while; another one did not say it. A gRPC server says it of the whole service.
        let asked = failed.after.filter(|after| self.to.is_grpc || self.waiting.allows(*after));
        let wait = asked.unwrap_or(backoff);
        if !self.waiting.allows(wait) {
            return None;
        }
        *grant = self.to.allow_another();
        if grant.is_none() {
            record.flag(Flag::RetryDenied);
            return None;
        }
        tokio::time::sleep(wait).await;
        Some(next)
    }
}

impl Destination<'_> {
    /// An endpoint that was not tried yet, and how it comes to be chosen.
    pub(super) fn pick(self, tried: &[Arc<Endpoint>], now: Instant) -> Option<(Arc<Endpoint>, Choice)> {
        let Ask { within, first, .. } = self.ask;
        let pick = |within| self.snapshot.pick(self.is_grpc, Ask { within, ..self.ask }, tried, now);
        let probe = if first != within && tried.is_empty() { pick(first) } else { None };
        probe.or_else(|| pick(within)).map(|(endpoint, choice)| (endpoint.clone(), choice))
    }

    /// One try: a connection to the endpoint, and the exchange on it.
    pub(super) async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        parts: &mut request::Parts,
        body: &mut Option<Body>,
        fresh: bool,
        waiting: &mut Waiting<'_>,
        interim: &dyn Interim,
    ) -> Result<Sent, SendFailure> {
        if self.snapshot.leaves_zone(endpoint) {
            self.cluster.metrics.zone_left.inc();
        }
        let wanted = self.upstream_protocol(endpoint, parts);
        let settings = &self.snapshot.settings;
        let source = if settings.keeps_source { parts.extensions.get::<Client>().copied() } else { None };
        let checkout = self.proxy.pool.checkout(self.cluster, endpoint, settings, wanted, fresh, source);
        let lease = match waiting.in_time(checkout).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(error)) => return Err(SendFailure::before(connect_error(endpoint, &error), body.take())),
            Err(error) => return Err(SendFailure::before(error, body.take())),
        };
        if let Err(error) = waiting.check_deadline() {
            return Err(SendFailure::before(error, body.take()));
        }
        let body = body.take().unwrap_or_default();
        waiting.shorten(&mut parts.headers);
        waiting.begin_try();
        let keep = self.service.retry.buffer;
        let sent = match lease {
            Lease::H1(lease) => {
                let reused = lease.is_reused();
                let sent = h1::send(lease, parts, body, keep, waiting, interim).await;
                sent.map_err(|failure| SendFailure { reused, ..failure })
            }
            Lease::H2(lease) => h2::send(lease, parts, body, keep, waiting, interim).await,
        };
        sent.map_err(|failure| match failure.error.reason {
            // It was told when the caller's deadline is, and gave up then: the news of that may be faster than our own timer.
            Reason::UpstreamClosed if waiting.is_past_deadline() => {
                SendFailure { error: headers::past_deadline(), ..failure }
            }
            _ => failure,
        })
    }

    /// What to speak to the endpoint: what the config says, what the registry says, what the request needs. `None`: what
    /// ALPN settles.
    fn upstream_protocol(self, endpoint: &Endpoint, parts: &request::Parts) -> Option<Protocol> {
        let service = &self.snapshot.settings.service;
        let tls = service.tls.is_some() || endpoint.instance.tls == Some(true);
        service.protocol.or(endpoint.instance.protocol).or_else(|| {
            if self.is_grpc || (self.snapshot.settings.same_protocol && parts.version == Version::HTTP_2) {
                Some(Protocol::Http2)
            } else if tls && !headers::is_upgrade(&parts.headers) {
                None
            } else {
                Some(Protocol::Http1)
            }
        })
    }

    /// Leave to ask one endpoint more for the same request, from the service's budget.
    pub(super) fn allow_another(self) -> Option<Grant> {
        let budget = &self.service.retry.budget;
        let in_flight = self.cluster.metrics.in_flight.get();
        let grant = self.cluster.retries.take(budget.percent, budget.per_second, in_flight, Instant::now());
        if grant.is_none() {
            self.cluster.metrics.retries_denied.inc();
        }
        grant
    }

    /// What came of a try: a response for the caller, or a failure.
    /// `since`: since when its endpoint was waited for.
    pub(super) fn classify(
        self,
        sent: Result<Sent, SendFailure>,
        endpoint: &Endpoint,
        method: &Method,
        since: Instant,
    ) -> Result<Sent, Box<Failed>> {
        let retry = &self.service.retry;
        match sent {
            Ok(Sent { response, again }) => {
                let now = Instant::now();
                endpoint.live.observe(now - since, now);
                match retry::judge(&response, self.is_grpc, method, retry) {
                    Verdict::Final => Ok(Sent { response, again }),
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
                if matches!(
                    failure.error.reason,
                    Reason::RequestTimeout | Reason::DeadlineExceeded | Reason::TryTimeout
                ) {
                    // It takes at least this long, and others are to know.
                    let now = Instant::now();
                    endpoint.live.observe(now - since, now);
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
}

/// Whether a try that failed for this reason says something about its endpoint.
pub(super) fn says_something(reason: Reason) -> bool {
    // While it is sent, a request may just as well stall because its caller does.
    reason.fault() == Fault::Upstream && reason != Reason::IdleTimeout
}

pub(super) fn connect_error(endpoint: &Endpoint, error: &ConnectError) -> ProxyError {
    match error {
        // That the application does not listen, or that this client cannot be kept, says nothing of other clients.
        ConnectError::As(_, cause)
            if matches!(cause.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput) => {}
        ConnectError::As(..) => warn_of_source(&NOT_ALLOWED, endpoint, error),
        ConnectError::NoAnswer(..) => warn_of_source(&NO_WAY_BACK, endpoint, error),
        _ => {}
    }
    ProxyError::new(error.reason(), format!("{}: {error}", endpoint.instance.address))
}

/// Whether it was told of each. Once is enough: as a rule it is so of all clients.
static NOT_ALLOWED: AtomicBool = AtomicBool::new(false);
static NO_WAY_BACK: AtomicBool = AtomicBool::new(false);

fn warn_of_source(warned: &AtomicBool, endpoint: &Endpoint, error: &ConnectError) {
    if !warned.swap(true, Relaxed) {
        let app = &endpoint.instance.address;
        tracing::warn!(%app, %error, "with `source: client`, an application could not be connected to as its client");
    }
}

/// Reads what is at hand of a response that nobody gets. Its connection is then free for others, or closed.
pub(super) fn discard(response: Response<Body>) {
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
pub struct Failed {
    /// What the caller gets if it is not.
    pub outcome: Result<Response<Body>, ProxyError>,
    pub reason: Reason,
    /// The request's body from its start, if it is still at hand.
    pub again: Option<Body>,
    /// Not before this time is over, the upstream said.
    pub after: Option<Duration>,
    /// Whether another try is safe, and wanted by the config.
    pub possible: bool,
    /// Whether a pooled connection was found dead, which says nothing about its endpoint.
    pub stale: bool,
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
    pub fn before(error: ProxyError, body: Option<Body>) -> Self {
        Self { error, wrote: false, reused: false, body }
    }
}
